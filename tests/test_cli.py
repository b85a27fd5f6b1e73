"""The command line helps newcomers: it lists choices, corrects spelling and explains refusals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from tests.conftest import PATIENCE, ROOT, compose, run_python

from gridlstm.config import quoted
from gridlstm.train import explain
from gridlstm.training.arguments import with_home


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a new Python, which has imported nothing."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def refused(*arguments: str, cwd: Path = ROOT) -> str:
    """Run train.py, which must fail; return its error message, which must contain no traceback."""
    done = run_python(str(ROOT / "train.py"), *arguments, cwd=cwd)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    return done.stderr


def test_help_names_groups_and_first_commands() -> None:
    done = run("train.py", "--help")
    assert done.returncode == 0
    for words in (
        "Start here",
        "model: ",
        "grid2d, grid2d_gru",
        "stacked_lstm",
        "task: addition, btec, cifar10, digit_scene, enwik8",
        "trainer.max_time",
    ):
        assert words in done.stdout
    assert "$" not in done.stdout, "a placeholder was not filled in"


def test_engine_choices_are_written_to_the_log_file_and_not_to_the_terminal(tmp_path: Path) -> None:
    done = run_python(str(ROOT / "train.py"), "debug=smoke", "logger=csv", f"hydra.run.dir={tmp_path}", check=True)
    assert "sweep: wavefront (auto)" in (tmp_path / "train.log").read_text()
    assert "sweep: " not in done.stderr
    assert f"run directory: {tmp_path}" in done.stderr


def test_cfg_job_prints_the_configuration() -> None:
    done = run_python("train.py", "task=enwik8", "--cfg", "job")
    assert done.returncode == 0
    for words in ("_target_: gridlstm.models.grid2d.Grid2d", "batch_size: 100", "gradient_clip_val"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("modle=grid2d", ["no option modle", "Did you mean model?", "Groups: "]),
        ("experiment=paper/parety", ["experiment=paper/parety does not exist", "Did you mean paper/parity"]),
        ("experiment/paper=parity", ["experiment/paper=parity is not a group. Use experiment=paper/parity."]),
        ("experiment=memorization", ["experiment=memorization does not exist", "Did you mean paper/memorization"]),
        ("callbacks.criterion.at_least=1", ["Add callbacks=[default,criterion]."]),
        ("model=gird2d", ["model=gird2d does not exist", "Did you mean grid2d or ", "Choices of model: "]),
        ("task=enwik9", ["Did you mean enwik8?", "enwik8, fashion_mnist, hub, hub_pairs, memorization"]),
        ("model.hiden_size=3", ["no option model.hiden_size", "Did you mean model.hidden_size", "Options of model: "]),
        ("trainer.max_step=3", ["Did you mean trainer.max_steps"]),
        ("optimizer.learning_rate=3", ["Options of optimizer: ", "lr"]),
        ("task.data.windows=3", ["Did you mean task.data.", "--cfg job"]),
        ("sed=3", ["Did you mean seed"]),
        ("seed", ["seed", "--help"]),
        ("transform@model.depht=lstm", ["model.depth"]),
        ("task.path=größe (1).txt", ["cannot be parsed", "\"task.path='größe (1).txt'\""]),
        ("logger=null", ["a group cannot be null"]),
        ("stages={fit: 1}", ["error: stages={fit: 1} is not a list. Give stages=[…]."]),
        ("hydra.run.dir=/proc/nowhere", ["/proc/nowhere", "hydra.run.dir"]),
        ("--config-dir=nowhere", ["nowhere", "not found"]),
        ("optimizer.lr=${nowhere}", ["optimizer.lr has no value here", "Set optimizer.lr="]),
        ("hydra.run.dir=~nobody-here/run", ["Could not determine home directory. Write the path without ~."]),
    ],
)
def test_misspelt_options_get_the_nearest_valid_names(argument: str, words: list[str]) -> None:
    message = refused(argument, "task=text") if argument.startswith("task.data") else refused(argument)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["task.data.source_level={_target_:gridlstm.data.words.WordLevel,min_count:2}"],
        ["task.data.source_level._target_=gridlstm.data.words.WordLevel", "task.data.source_level.min_count=2"],
    ],
)
def test_options_of_another_class_are_told_how_to_replace_the_present_ones(arguments: list[str]) -> None:
    advice = '~task.data.source_level "+task.data.source_level={_target_:CLASS,OPTION:VALUE}"'
    assert f"Replace them together: {advice}" in refused("task=translation", *arguments)
    remove, add = advice.replace("CLASS,OPTION:VALUE", "gridlstm.data.words.WordLevel,min_count:2").split(" ")
    level = compose("task=translation", remove, add.strip('"')).task.data.source_level
    assert level == {"_target_": "gridlstm.data.words.WordLevel", "min_count": 2}


def test_options_of_a_chosen_cell_are_listed() -> None:
    message = refused("transform@model.depth=gru", "model.depth.forget_bias=3")
    assert "there is no option model.depth.forget_bias" in message
    assert "Options of model.depth: _target_, bias, gain" in message


def test_an_unreadable_file_of_ones_own_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text("model: {size: 3\nseed: 1\n")
    message = refused(f"--config-dir={tmp_path}", "experiment=own")
    assert "error: a YAML file cannot be read: " in message
    assert "own.yaml" in message


def test_many_swept_choices_do_not_hide_a_misspelt_option() -> None:
    assert "there is no option typo" in explain(HydraException("Could not override 'typo'"), ["model=" + "a,b" * 99])


def test_the_home_directory_replaces_a_tilde_in_directories() -> None:
    home = Path.home()
    assert with_home("hydra.run.dir=~/runs/1") == f"hydra.run.dir='{home}/runs/1'"
    assert with_home("hydra.sweep.dir='~/my runs'") == f"hydra.sweep.dir='{home}/my runs'"
    for word in ("hydra.run.dir=runs/~", "task.path=~/text", "-m"):
        assert with_home(word) == word


@pytest.mark.parametrize("text", ["a\\", "a\\'b", "it's", "\\\\", "\\'", "C:\\data\\", ""])
def test_quoted_text_is_read_back_unchanged(text: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text


def test_misspelt_name_from_config_dir_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "average.yaml").write_text("_target_: mine.Average\n")
    error = HydraException("Could not find 'model/averag'")
    for flag in (["--config-dir", str(tmp_path / "mine")], [f"--config-dir={tmp_path}/mine"]):
        assert "model=averag does not exist. Did you mean average?" in explain(error, [*flag, "model=averag"])


def test_batches_of_a_sweep_are_refused(tmp_path: Path) -> None:
    message = refused("-m", "seed=1,2", "hydra.sweeper.max_batch_size=1", cwd=tmp_path)
    assert "Use hydra.launcher.jobs to limit how many jobs run at once" in message


def test_option_missing_from_one_task_gets_no_suggestion() -> None:
    message = refused("-m", "task=memorization,parity", "task.length=2")
    assert "task.length does not exist for every choice of this command." in message
    assert "Did you mean" not in message


def test_srun_tasks_beyond_the_first_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert "error: srun has started several tasks, and only the first" in refused("seed=2", cwd=tmp_path)


def test_a_missing_path_is_asked_for(tmp_path: Path) -> None:
    assert "error: a value is missing. Give task.path=…" in refused("task=text", cwd=tmp_path)


def test_a_refused_run_leaves_nothing_behind(tmp_path: Path) -> None:
    assert "error: task.val_every must be at least 1, got 0" in refused("task.val_every=0", cwd=tmp_path)
    assert not list(tmp_path.iterdir())
    (kept := tmp_path / "run").mkdir()
    (kept / "mine.txt").write_text("mine")
    refused("task.val_every=0", "hydra.run.dir=run", cwd=tmp_path)
    assert "error: task.lr is only the default of an option. Set the option itself: optimizer.lr=…" in refused(
        "task.lr=0.1", cwd=tmp_path
    )
    assert (kept / "mine.txt").read_text() == "mine"


def test_a_wrong_path_is_named(tmp_path: Path) -> None:
    said = refused("task=text", "task.path=nothing.txt", "logger=csv", cwd=tmp_path)
    assert "error: nothing.txt cannot be read: there is no such file" in said
    assert refused("task=text", "logger=csv", cwd=tmp_path).strip() == "error: a value is missing. Give task.path=…"
    assert not list(tmp_path.iterdir())


def test_startup_without_work_does_not_wait_for_torch() -> None:
    code = "import sys, gridlstm.train; sys.exit('torch' in sys.modules)"
    assert run("-c", code).returncode == 0


def test_openmp_spin_count_is_limited_unless_already_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)  # an earlier command in this process may have set it
    code = "from gridlstm.command import prepare; prepare(); import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert run("-c", code).stdout.strip() == "10000"
    assert run("-c", code, GOMP_SPINCOUNT="5").stdout.strip() == "5"
    assert run("-c", code, OMP_WAIT_POLICY="active").stdout.strip() == "None"


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's malloc is told to keep memory")
def test_malloc_keeps_freed_memory_unless_the_user_configures_it() -> None:
    """Count page faults of ten 64 MB allocations after warm-up: 160,000 pages of 4 kB, or 320 large ones."""
    code = (
        "from gridlstm.command import prepare; prepare(); import numpy, resource\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def make(): numpy.ones(8_000_000)\n"
        "for _ in range(20): make()\n"
        "before = faults()\n"
        "for _ in range(10): make()\n"
        "print(faults() - before)"
    )
    assert int(run("-c", code).stdout) < 100
    assert int(run("-c", code, MALLOC_MMAP_THRESHOLD_="1000000").stdout) > 100


@pytest.mark.parametrize("words", [["train.py", "--help"], ["train.py", "--info"], ["-m", "gridlstm.sample", "-h"]])
def test_closed_reader_ends_the_command_by_sigpipe(words: list[str]) -> None:
    """This happens in ``--help | head``."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.returncode in (-signal.SIGPIPE, 128 + signal.SIGPIPE)
    assert done.stderr == b""


def test_closed_streams_are_opened(tmp_path: Path) -> None:
    """A daemon may start a command with its standard streams closed."""
    code = (
        "from gridlstm.command import prepare; prepare(); import os, sys\n"
        "print('nobody reads this', sys.stderr.isatty(), file=sys.stderr, flush=True); print(sys.stdin.read())\n"
        "file = open('found', 'w'); file.write(str(file.fileno()))"
    )
    subprocess.run(
        ["sh", "-c", f'{sys.executable} -c "$CODE" <&- >&- 2>&-'],
        cwd=tmp_path,
        check=True,
        env=os.environ | {"CODE": code},
    )
    assert int((tmp_path / "found").read_text()) > 2


def test_help_of_evaluate() -> None:
    done = run_python("-m", "gridlstm.evaluate", "--help")
    assert done.returncode == 0
    assert "--split" in done.stdout
    assert run_python("-m", "gridlstm.evaluate").returncode == 1


def test_the_default_run_works_anywhere(tmp_path: Path) -> None:
    """The run needs no account, no environment variable, no terminal, and no repository as its working directory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "GRIDLSTM"))}
    steps = ["trainer.max_steps=3", "model.num_layers=2", "trainer.limit_test_batches=1", "task.data.num_val=15"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *steps],
        cwd=tmp_path,
        env={**environment, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in ("all files are in   outputs/memorization/grid2d/", "try next", "learning curve"):
        assert words in done.stderr
    (directory,) = (tmp_path / "outputs" / "memorization" / "grid2d").iterdir()
    assert len(list(directory.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    assert {"config.yaml", "metrics.csv", "result.json", "checkpoints", "learning_curve.png", "train.log"} <= {
        path.name for path in directory.iterdir()
    }


def test_broken_pipe_prints_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m gridlstm.list --help | true"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stderr == ""
