"""A model and a task need one Python file and one YAML file each, as CONTRIBUTING.md says; tried in a copy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MODEL = '''"""A leaky mean of the inputs."""

from typing import NamedTuple

import torch
from torch import Tensor

from gridlstm.models.base import InputProjection, SequenceModel


class LeakyState(NamedTuple):
    h: Tensor


class Leaky(SequenceModel):
    """h_t = a h_{t-1} + W x_t with a learned a for each unit, in a stack of one layer."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.output_size = hidden_size
        self.input = InputProjection(input_size, hidden_size)
        self.decay = torch.nn.Parameter(torch.zeros(hidden_size))

    def initial_state(self, batch_size: int) -> LeakyState:
        return LeakyState(self.decay.new_zeros(1, batch_size, len(self.decay)))

    def forward(self, x: Tensor, state: LeakyState | None = None) -> tuple[Tensor, LeakyState]:
        h, outputs = self.state_before(state, len(x)).h[0], []
        for x_t in self.input(x).unbind(1):
            h = self.decay.sigmoid() * h + x_t
            outputs.append(h)
        return torch.stack(outputs, 1), LeakyState(h[None])
'''

TASK = '''"""Repeat the input of the step before: inputs a b c, targets - a b."""

import torch
from torch import Tensor

from gridlstm.data.base import Batch
from gridlstm.data.counter import random_integers
from gridlstm.data.generated import GeneratedData
from gridlstm.data.spec import Spec


class EchoData(GeneratedData):
    """Random symbols as inputs; the target is the input of the step before."""

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__(batch_size, seed, num_val=20, num_test=20)

    @property
    def spec(self) -> Spec:
        return Spec(input_size=4, output_size=4, sequence_length=5)

    def generate(self, key: tuple[int, ...], index: Tensor) -> Batch:
        symbols = random_integers(key, index, 5, 4)
        targets = torch.cat([torch.zeros_like(symbols[:, :1]), symbols[:, :-1]], dim=1)
        everything = torch.ones_like(symbols, dtype=torch.bool)
        return Batch(symbols, targets, loss_mask=everything, answer_mask=everything, reset=everything[:, 0])
'''

FILES = {
    "src/gridlstm/models/leaky.py": MODEL,
    "conf/model/leaky.yaml": """# A leaky mean of the inputs.
_target_: gridlstm.models.leaky.Leaky
hidden_size: ${task.network.hidden_size}
num_layers: ${task.network.num_layers}
""",
    "src/gridlstm/data/echo.py": TASK,
    "conf/task/echo.yaml": """# Repeat the input of the step before.
data:
  _target_: gridlstm.data.echo.EchoData
  batch_size: 4
  seed: ${seed}
objective:
  _target_: gridlstm.tasks.tag_sequence.TagSequence
  _partial_: true
network: {hidden_size: 8, num_layers: 2, forget_bias: 1.0}
lr: 0.01
monitor: val/accuracy
mode: max
max_steps: 4
val_every: 2
""",
}


@pytest.mark.slow  # it starts three processes, and other tests check the same for the models and tasks of the suite
def test_a_model_and_a_task_take_one_file_and_one_yaml_each(tmp_path: Path) -> None:
    copied = ("src", "conf", "tests", "docs", "docker", "pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile")
    for name in copied:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    paths = os.pathsep.join([str(tmp_path / "src"), str(tmp_path)])

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-m", "gridlstm.list", "--write")
    run("-m", "tests.test_models")
    assert (tmp_path / "tests/golden/parameters.json").read_text().count("\n") == 1 + len(
        (ROOT / "tests/golden/parameters.json").read_text().splitlines()
    ), "the record must gain one line"
    found = run(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0", "-n0"),
        *("tests/test_models.py", "tests/test_fit.py", "tests/test_imports.py", "tests/test_conf.py"),
        *("-k", "leaky or echo or record or matrix or imports or layer or models_that_fit or written or step or line"),
    )
    assert "leaky" in found
    assert "echo" in found
