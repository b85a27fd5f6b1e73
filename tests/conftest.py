"""Fixtures and helpers of several test files: real data if available, toy jobs in this process, commands in others."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache, partial
from pathlib import Path

import hydra
import omegaconf.base
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict
from tests.stand_in import StandIn
from tests.warm_python import WarmPython

from gridlstm.engine import graphs
from gridlstm.look.__main__ import PARSER, look
from gridlstm.train import CONF

# OmegaConf parses the text of a reference at every access, which takes a fifth of a toy job's time.
omegaconf.base.parse = cache(omegaconf.base.parse)  # type: ignore[attr-defined]

ROOT = Path(__file__).parents[1]
PATIENCE = 600.0
"""Seconds to wait before a test fails. On a busy machine, many operations take a minute."""

TOY = (
    "logger=csv",
    "hardware=cpu",
    "model.hidden_size=8",
    "model.num_layers=2",
    "trainer.max_steps=4",
    "task.val_every=2",
    "trainer.log_every_n_steps=2",
)
"""Overrides that make any run small."""

TOY_TASKS = {
    "memorization": ["task.length=2", "task.alphabet=4", "task.data.num_val=20", "task.data.num_test=20"],
    "addition": ["task.digits=2", "task.data.num_val=20", "task.data.num_test=20"],
    "parity": ["task.bits=5", "task.data.num_val=20", "task.data.num_test=20"],
    "hub": ["task.data.window=10", "task.data.stream_length=20", "task.data.batch_size=3"],
    "text": ["task.data.window=10", "task.data.stream_length=100", "task.data.batch_size=6"],
}


TOO_MANY_LAYERS = 10**13
"""Number of layers that passes every check of options but exceeds any memory if each layer has its own weights."""


def pytest_configure(config: pytest.Config) -> None:
    """Start the Python for the commands under test once; workers of pytest-xdist find it through the environment."""
    if "GRIDLSTM_WARM_PYTHON" in os.environ:
        return
    # Tests run in parallel. torch reads the variable when it is imported, which happens later.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.platform == "linux":
        warm = WarmPython()
        os.environ["GRIDLSTM_WARM_PYTHON"] = warm.start()
        config.add_cleanup(warm.stop)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same numbers in a test whichever tests ran before it in the same process."""
    torch.default_generator.manual_seed(0)


def python() -> str:
    """Return the path of a Python that starts a command within a tenth of a second; see warm_python.py."""
    return os.environ.get("GRIDLSTM_WARM_PYTHON", sys.executable)


def run_python(
    *arguments: str, cwd: Path = ROOT, check: bool = False, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments and return the completed process.

    Args:
        check: raise an error if the command fails.
        environment: variables to set in addition to those of the tests.
    """
    return subprocess.run(
        [python(), *arguments],
        cwd=cwd,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=check,
    )


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until the condition holds; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Make SIGINT interrupt this process and its children, even if the tests were started with SIGINT ignored.

    A shell ignores SIGINT in the processes that it starts in the background. After an interrupt, Lightning ignores all
    further ones until the process ends, but the process of the tests continues.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def recorded_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a stand-in record sweeps on the CPU, and forget the recordings of other tests."""
    monkeypatch.setattr(graphs, "Recorder", StandIn)
    monkeypatch.setattr(graphs, "RECORDED_ON", {"cpu"})
    monkeypatch.setattr(StandIn, "made", 0)
    graphs.recordings.clear()
    yield
    graphs.recordings.clear()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the directory of real data sets; skip the test if there is none."""
    directory = os.environ.get("GRIDLSTM_DATA")
    if not directory:
        pytest.skip("real data is not here: set GRIDLSTM_DATA to its directory")
    return Path(directory)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a text with patterns that a model can learn."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n} times {n} is {n * n}; " for n in range(700)))
    return path


def compose(*overrides: str) -> DictConfig:
    """Return the configuration of a job, as train.py composes it.

    The composition of the chosen groups is cached: it takes Hydra ten times as long as applying the other overrides.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = [
        override
        for override in parsed
        # A search path determines which files can be chosen.
        if (CONF / override.key_or_group).is_dir() or override.key_or_group == "hydra.searchpath"
    ]
    config = deepcopy(_composed(*(str(choice.input_line) for choice in choices))[0])
    ConfigLoaderImpl._apply_overrides_to_config([override for override in parsed if override not in choices], config)
    return config


def chosen_model(choice: str) -> str:
    """Return the name of the model of a job with this choice, such as ``experiment=paper/parity``."""
    return _composed(choice)[1]


@cache
def _composed(*choices: str) -> tuple[DictConfig, str]:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", list(choices), return_hydra_config=True)
    model = config.hydra.runtime.choices.model
    with open_dict(config):
        del config["hydra"]  # as Hydra does
    return config, model


@pytest.fixture(scope="session")
def job_in(text_file: Path) -> Callable[..., DictConfig]:
    """Return a function that composes a toy job whose run directory is inside a given one.

    By default the job draws no pictures, such as the learning curve: they take as long as everything else.
    """

    def make(
        root: Path,
        *overrides: str,
        directory: str = "run",
        task: str = "memorization",
        model: str = "grid2d",
        picture: bool = False,
    ) -> DictConfig:
        text = [f"task.path={text_file}"] if task == "text" else []
        cfg = compose(f"task={task}", f"model={model}", *TOY, *TOY_TASKS.get(task, []), *text, *overrides)
        cfg.run.task, cfg.run.model, cfg.run.group = task, model, "test"
        cfg.run.dir = str(root / directory)
        if task == "text" and cfg.task.data.cache_dir is None:
            cfg.task.data.cache_dir = str(root / "cache")
        for name in ("learning_curve", "image_pictures", "pixel_pictures"):
            if not picture and name in cfg.callbacks and name not in " ".join(overrides):
                cfg.callbacks[name] = None
        return cfg

    return make


@pytest.fixture
def job(tmp_path: Path, job_in: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """Return a function that composes a toy job whose run directory is inside ``tmp_path``."""
    return partial(job_in, tmp_path)


def look_at(options: dict[str, str]) -> list[Path]:
    """Run the look command with these options, in this process."""
    return look(*PARSER.parse([f"{name}={value}" for name, value in options.items()]))


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface on which nothing listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
