"""Estimates of time and memory that a sweep prints before it starts, compared with the time that training takes."""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import hydra
import pytest
from tests.conftest import TOY_TASKS, compose, python, wait_for

from gridlstm.config import CONF
from gridlstm.files import write_text
from gridlstm.multirun import estimate as estimating
from gridlstm.multirun.devices import Demand, Pool
from gridlstm.multirun.estimate import Estimate, _measurable, announce, estimate, estimates, lines, warnings
from gridlstm.multirun.jobs import Job, Trained
from gridlstm.multirun.launch import Launch
from gridlstm.multirun.measure import measure, result_file, validation_batches
from gridlstm.multirun.start import start_here
from gridlstm.tasks.tag_sequence import TagSequence
from gridlstm.training.build import build

GIB, HOUR = 2**30, 3600.0
SMALL = [*TOY_TASKS["memorization"], "hardware=cpu", "model.num_layers=2", "logger=csv"]


def job(number: int, *overrides: str) -> Job:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", [*SMALL, *overrides], return_hydra_config=True)
    return Job(number, f"job{number}", Path("nowhere"), list(overrides), config)


def test_estimate_line_summarizes_time_and_memory() -> None:
    two = [Estimate(31 * HOUR, 2 * GIB), Estimate(31 * HOUR, 2 * GIB)]
    assert lines(two, at_once=1) == [
        "estimate: 2 jobs, about 31 h each of training, 62 h in all, 62 h with 1 at once; 2.0 GiB of memory each"
    ]
    (text,) = lines([Estimate(4 * HOUR, GIB), Estimate(2 * HOUR, 3 * GIB), Estimate(None, GIB)], at_once=2)
    assert "3 jobs, about 2.0 to 4.0 h each of training, 6.0 h in all, 4.0 h with 2 at once" in text
    assert "1 without a last step; 1.0 to 3.0 GiB of memory each" in text
    assert lines([Estimate(0.4 * HOUR, GIB), Estimate(0.5 * HOUR, GIB)], at_once=1) == [], (
        "nothing is estimated for less than an hour"
    )
    assert lines([], at_once=1) == []


def test_warnings_name_jobs_beyond_memory() -> None:
    known = {"a": Estimate(HOUR, 6 * GIB), "b": Estimate(HOUR, 3 * GIB), "c": Estimate(HOUR, 3 * GIB)}
    assert warnings(known, at_once=2, there=10 * GIB) == []
    (text,) = warnings(known, at_once=3, there=10 * GIB)
    assert "3 jobs at once need up to 12 GiB of memory, but this machine has 10. Run fewer" in text
    (text,) = warnings(known, at_once=1, there=4 * GIB)
    assert text.startswith("a: needs about 6.0 GiB of memory, but this machine has 4.0")


@pytest.fixture
def _warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in processes that start with torch already imported."""
    monkeypatch.setattr(sys, "executable", python())


@pytest.mark.usefixtures("_warm")
def test_jobs_are_measured_and_build_errors_are_reported() -> None:
    base = [(job(0), Demand(1)), (job(1, "seed=2", "optimizer.lr=0.1", "trainer.max_steps=3000"), Demand(1))]
    more = [
        (job(2, "trainer.accumulate_grad_batches=2", "trainer.max_time=00:10:00:00"), Demand(1)),
        (job(3, "trainer.max_steps=-1", "trainer.max_time=00:02:00:00"), Demand(1)),
        (job(4, "trainer.max_steps=-1"), Demand(1)),
        (job(5, "model.num_layers=0"), Demand(1)),
        (job(6, "hardware=ddp_cpu"), Demand(2)),
    ]
    found = estimates([*base, *more], os.environ)
    first, longer, accumulated, timed, endless, impossible, two = (found[f"job{i}"] for i in range(7))
    assert isinstance(first, Estimate)
    assert isinstance(longer, Estimate)
    assert isinstance(accumulated, Estimate)
    assert first.seconds is not None
    assert longer.seconds == first.seconds * 2, (
        "twice the steps take twice as long; the seed and the learning rate make no difference"
    )
    assert accumulated.seconds is not None
    assert (timed.seconds, endless.seconds) == (2 * HOUR, None)  # type: ignore[union-attr]
    assert isinstance(impossible, str)
    assert "num_layers must be a whole number of at least 1" in impossible
    assert isinstance(two, Estimate)
    assert two.bytes > 1.5 * first.bytes, "two processes have a Python each"


@pytest.mark.usefixtures("_warm")
def test_each_job_is_measured_at_its_own_width() -> None:
    """The width is ``widths.${run.model}``, and Hydra sets run.model to the model of the job."""
    size = ["experiment=paper/memorization_small", "task.network.num_layers=1", "trainer.max_steps=3000"]
    size += ["model.hidden_size=${task.network.hidden_size}"]
    jobs = [(job(n, *size, f"model={model}"), Demand(1)) for n, model in enumerate(["grid2d", "stacked_lstm"])]
    wide = ["model=stacked_lstm", "task.network.hidden_size=2000", "model.num_layers=1"]
    jobs += [
        (job(2, *wide), Demand(1)),
        (job(3, *wide, "match.parameters_to=rnn", "task.network.hidden_size=20"), Demand(1)),
    ]
    found = estimates(jobs, os.environ)
    assert all(isinstance(one, Estimate) for one in found.values()), found
    assert found["job2"].seconds > 10 * found["job3"].seconds, "job 3 matches a smaller network"  # type: ignore[union-attr, operator]


@pytest.fixture
def _own_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the CPU time of this process, because other processes lengthen the elapsed time."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)


@pytest.mark.usefixtures("_own_seconds")
def test_estimate_is_close_to_measured_training_time(tmp_path: Path) -> None:
    size = ["model.hidden_size=32", "task.length=5", "task.alphabet=4", "trainer.enable_progress_bar=false"]
    config = compose(*SMALL, *size, "logger={}", "trainer.max_steps=600", f"run.dir={tmp_path}")
    config.callbacks = {}

    def seconds(limit_val_batches: int) -> float:
        config.trainer.limit_val_batches, config.trainer.val_check_interval = limit_val_batches, 600
        run = build(config)
        start = time.perf_counter()
        run.trainer.fit(run.task, run.data)
        assert run.trainer.global_step == 600
        return time.perf_counter() - start

    seconds(limit_val_batches=0)  # fills caches
    taken = seconds(limit_val_batches=0)
    config.trainer.max_steps, config.trainer.limit_val_batches = -1, None
    found = measure(config)
    # CPU time depends on other processes too: they share the caches and a core's two threads.
    assert 1 / 3 < found.seconds / (taken / 600) < 3
    assert found.bytes > sum(p.nbytes for p in build(config).task.parameters())
    assert found.validation_seconds > 0


def test_validations_are_counted() -> None:
    """The interval determines the number of validations."""
    found = {"seconds": 2.0, "validation_seconds": 5.0, "bytes": GIB}
    config = compose(*SMALL, "trainer.max_steps=100", "task.val_every=30", "trainer.accumulate_grad_batches=2")
    new = Trained(0, 0.0)
    assert estimate(config, Demand(1), found, new) == Estimate(200 * 2.0 + 6 * 5.0, GIB)
    assert estimate(config, Demand(2), found, new).bytes == 2 * GIB


def test_a_resumed_job_is_estimated_without_what_it_has_trained(tmp_path: Path) -> None:
    found = {"seconds": 2.0, "validation_seconds": 5.0, "bytes": GIB}
    resumed = job(0, "trainer.max_steps=100", "task.val_every=30")
    resumed.directory = tmp_path
    write_text(tmp_path / "result.json", json.dumps({"status": "running", "steps": 20, "fit_seconds": 100.0}))
    assert resumed.trained() == (0, 0), "without a checkpoint it begins anew"
    write_text(tmp_path / "checkpoints" / "last.ckpt", "")
    write_text(tmp_path / "progress.json", json.dumps({"step": 40, "seconds": 30.0}))
    assert resumed.trained() == (40, 130.0)
    assert estimate(resumed.config, Demand(1), found, resumed.trained()).seconds == 60 * 2.0 + 2 * 5.0
    limited = job(0, "trainer.max_steps=-1", "trainer.max_time=00:00:03:00").config
    assert estimate(limited, Demand(1), found, resumed.trained()).seconds == 50.0


@pytest.mark.parametrize("limit", ["null", "7", "0.5"])
def test_an_estimate_validates_on_only_two_batches(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(*SMALL, "run.dir=.", "task.data.num_val=3000", f"trainer.limit_val_batches={limit}")
    config.trainer.enable_checkpointing = False
    config.callbacks, config.logger = {}, {}
    config.trainer.max_steps = -1
    seen: list[int] = []
    original = TagSequence.validation_step

    def count(task: TagSequence, batch: Any, batch_idx: int) -> Any:
        seen.append(batch_idx)
        return original(task, batch, batch_idx)

    monkeypatch.setattr(TagSequence, "validation_step", count)
    assert measure(config).validation_seconds > 0
    assert set(seen) == {0, 1}


def test_a_job_is_measured_on_the_gpus_that_it_chose() -> None:
    config = compose(*SMALL, "trainer.devices=[2,3]")
    config.run = {"dir": "."}
    assert _measurable(config, Demand(2, gpus=2, chosen=True))["trainer"]["devices"] == [2, 3]
    assert _measurable(config, Demand(2, gpus=2))["trainer"]["devices"] == 2


def test_jobs_that_were_measured_in_time_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        """A measurement that ends after its first job."""

        def __init__(self, line: list[str], environment: object, console: Path) -> None:
            result_file(Path(line[-1]), 0).write_text('{"seconds": 1.0}')

        def ended(self) -> None:
            return None

        def kill(self) -> None:
            """Do nothing: there is no process."""

    monkeypatch.setattr(estimating, "ProcessTree", Slow)
    monkeypatch.setattr(estimating, "_PATIENCE_SECONDS", 0.0)
    first, second = estimating._measured_by(1, [{}, {}], {}, ())
    assert first == {"seconds": 1.0}
    assert "took more than" in second["error"]


def test_an_estimate_measures_the_step_that_the_jobs_use() -> None:
    config = compose(*SMALL, "callbacks.engine_choices.pointwise=eager")
    config.run = {"dir": "."}
    assert list(_measurable(config, Demand(1))["callbacks"]) == ["engine_choices"]
    assert _measurable(config, Demand(1))["callbacks"]["engine_choices"]["pointwise"] == "eager"


@pytest.mark.parametrize(("limit", "batches"), [("null", 200), ("7", 7), ("0.5", 100)])
def test_the_batches_of_a_validation_are_counted(limit: str, batches: int) -> None:
    config = compose(*SMALL, "run.dir=.", "task.data.num_val=3000", f"trainer.limit_val_batches={limit}")
    config.trainer.enable_checkpointing = False
    config.callbacks, config.logger = {}, {}
    assert validation_batches(build(config)) == batches


def test_a_short_sweep_is_not_estimated(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    announce([(job(0, "trainer.max_steps=1000"), Demand(1))], 1, os.environ)
    announce([(job(0, "trainer.max_steps=1000000", "trainer.max_time=00:00:01:00"), Demand(1))], 1, os.environ)
    assert not caplog.records


def test_jobs_that_do_not_train_are_not_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    monkeypatch.setattr(estimating, "estimates", lambda jobs, *_: measured.extend(one.name for one, _ in jobs) or {})
    tested = job(0, "trainer.max_steps=1000000", "stages=[test]")
    announce([(tested, Demand(1))], 1, os.environ)
    assert measured == []
    announce([(tested, Demand(1)), (job(1, "trainer.max_steps=1000000"), Demand(1))], 1, os.environ)
    assert measured == ["job1"]


def test_an_interrupted_estimate_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    launch = Launch(
        Path("sweep"), [(job(0, "trainer.max_steps=1000000"), Demand(1))], Pool((), 1, 1, 1), start_here([])
    )
    before = signal.signal(signal.SIGTERM, lambda *_: None)

    def interrupt() -> None:
        wait_for(lambda: any(tmp_path.iterdir()))  # the directory of the measurement
        os.kill(os.getpid(), signal.SIGTERM)

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    try:
        with pytest.raises(SystemExit) as ended:
            launch.estimate()
    finally:
        waiting.join()
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + signal.SIGTERM
    assert caplog.messages == [
        "interrupted: 1 of 1 jobs are not completed. To resume, repeat the command with hydra.sweep.dir=sweep"
    ]
    assert list(tmp_path.iterdir()) == []
