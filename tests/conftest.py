"""What several test files share: real data where it is, jobs of toy size in this process, commands in others."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from tests.warm_python import WarmPython

from gridlstm.look.__main__ import PARSER, look
from gridlstm.train import CONF

ROOT = Path(__file__).parents[1]
PATIENCE = 600.0
"""Seconds after which what is waited for is taken to have failed. A busy machine needs a minute for many things."""

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
"""Of a network whose layers have weights of their own: no check of options finds it, and no machine has the memory."""


def pytest_configure(config: pytest.Config) -> None:
    """Start the Python of the commands under test, once: the processes of pytest-xdist find it in the environment."""
    if "GRIDLSTM_WARM_PYTHON" in os.environ:
        return
    # Tests run side by side. The variable is read when torch is imported, which is later.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.platform == "linux":
        warm = WarmPython()
        os.environ["GRIDLSTM_WARM_PYTHON"] = warm.start()
        config.add_cleanup(warm.stop)


def python() -> str:
    """Return the Python that starts a command within a tenth of a second; see warm_python.py."""
    return os.environ.get("GRIDLSTM_WARM_PYTHON", sys.executable)


def run_python(
    *arguments: str, cwd: Path = ROOT, check: bool = False, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Return what became of a command, by default of one that may fail.

    Args:
        environment: variables beside those of the tests.
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
    """Return when the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Have SIGINT interrupt this process and those that it starts, also where the tests are started with it ignored.

    A shell starts so what it puts in the background. Lightning ignores further interrupts until the process ends, which
    here it does not.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory of real data sets; the test is skipped where there is none."""
    directory = os.environ.get("GRIDLSTM_DATA")
    if not directory:
        pytest.skip("real data is not here: set GRIDLSTM_DATA to its directory")
    return Path(directory)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text that a model can learn something of."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n} times {n} is {n * n}; " for n in range(700)))
    return path


def compose(*overrides: str) -> DictConfig:
    """The configuration of a job, as train.py composes it.

    What the choices of groups compose to is kept, for it takes Hydra ten times as long as to apply the other overrides.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = [
        override
        for override in parsed
        # A search path decides which files there are to choose from.
        if (CONF / override.key_or_group).is_dir() or override.key_or_group == "hydra.searchpath"
    ]
    config = deepcopy(_composed(*(str(choice.input_line) for choice in choices)))
    ConfigLoaderImpl._apply_overrides_to_config([override for override in parsed if override not in choices], config)
    return config


@lru_cache
def _composed(*choices: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(choices))


@pytest.fixture(scope="session")
def job_in(text_file: Path) -> Callable[..., DictConfig]:
    """Composes a toy job whose run directory is below a given one, by default without pictures, such as that of
    its learning curve, which take as long as all the rest."""

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
    """Composes a toy job whose run directory is below this test's own."""
    return partial(job_in, tmp_path)


def look_at(options: dict[str, str]) -> list[Path]:
    """Run the look command with these options, in this process."""
    return look(*PARSER.parse([f"{name}={value}" for name, value in options.items()]))


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
