"""What several test files share: real data where it is, and jobs run in this process at toy size."""

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

from gridlstm.train import CONF

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
    """The configuration of a job, as train.py composes it."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(overrides))


@pytest.fixture(scope="session")
def job_in(text_file: Path) -> Callable[..., DictConfig]:
    """Composes a toy job whose run directory is below a given one."""

    def make(
        root: Path, *overrides: str, directory: str = "run", task: str = "memorization", model: str = "grid2d"
    ) -> DictConfig:
        names = [f"run.task={task}", f"run.model={model}", "run.group=test", f"run.dir={root / directory}"]
        data = [f"task.path={text_file}", f"task.data.cache_dir={root / 'cache'}"] if task == "text" else []
        return compose(f"task={task}", f"model={model}", *TOY, *TOY_TASKS[task], *names, *data, *overrides)

    return make


@pytest.fixture
def job(tmp_path: Path, job_in: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """Composes a toy job whose run directory is below this test's own."""
    return partial(job_in, tmp_path)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
