"""Find the configuration and compose it."""

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from gridlstm.errors import UserError

_HERE = Path(__file__).parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parents[1] / "conf"
"""The configuration: inside an installed wheel, else the repository's."""


MATRIX = CONF / "models.txt"
"""File of the models that fit each task; ``python -m gridlstm.list --write`` writes it."""


def _batches(samples: int, _root_: DictConfig) -> int:
    return math.ceil(samples / _positive(_root_.task.data.batch_size))


def _steps(samples: int, _root_: DictConfig) -> int:
    return math.ceil(_batches(samples, _root_) / _positive(_root_.trainer.accumulate_grad_batches))


def _whole_steps(batches: object, _root_: DictConfig) -> object:
    if type(batches) is not int:
        return batches
    accumulated = _positive(_root_.trainer.accumulate_grad_batches)
    return math.ceil(batches / accumulated) * accumulated


def _bits(level: str) -> str:
    return "bpw" if level == "word" else "bpc"


def _models_for(task: str) -> str:
    head, *rows = (line.split() for line in MATRIX.read_text().splitlines())
    column = 1 + head.index(task)
    return ",".join(row[0] for row in rows if row[column] != "-")


def _positive(value: object) -> int:
    """Return the value, or 1 for a value that its consumer will refuse later."""
    return value if type(value) is int and value > 0 else 1


# ${gridlstm.batches:N} and ${gridlstm.steps:N}: the number of batches, or of optimizer steps, with N samples.
OmegaConf.register_new_resolver("gridlstm.batches", _batches, replace=True)
OmegaConf.register_new_resolver("gridlstm.steps", _steps, replace=True)
# ${gridlstm.bits:LEVEL}: the metric of bits per symbol of a text read by bytes, characters or words.
OmegaConf.register_new_resolver("gridlstm.bits", _bits, replace=True)
# ${gridlstm.models_for:TASK}: the models that fit a task, for a sweep over all of them.
OmegaConf.register_new_resolver("gridlstm.models_for", _models_for, replace=True)
# ${gridlstm.whole_steps:N}: N batches, rounded up to whole optimizer steps.
OmegaConf.register_new_resolver("gridlstm.whole_steps", _whole_steps, replace=True)


def choices(group: str) -> list[str]:
    """Return the names in a group of the configuration, including the user's own (--config-dir)."""
    with _loader() as loader:
        return sorted(loader.get_group_options(group))


def as_typed(name: str, value: object) -> str:
    """Return ``name=value`` as typed in a shell, with Hydra's quotes and the shell's only if needed."""
    text = str(value)
    if re.fullmatch(r"[\w./-]+", text, re.ASCII):
        return f"{name}={text}"
    return in_shell(f"{name}={quoted(text)}")


def in_shell(word: str) -> str:
    """Return a word of a command line as the user types it, with the shell's quotes only if it needs them."""
    if re.fullmatch(r"[\w./=,:@%+-]+", word, re.ASCII):
        return word
    return shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'


def quoted(text: str) -> str:
    """Return any text in quotes, as the value of an override; backslashes before a quote must be doubled."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"


_OF_A_JOB = ("searchpath", "job.env_set", "job.env_copy", "job_logging", "hydra_logging", "verbose", "output_subdir")
"""Beginnings of Hydra's options that concern a single run, whether it is a job of a sweep or not."""


def hydra_words(hydra: Any) -> list[str]:
    """Return the words of the command line for Hydra that a job of a sweep needs, and a resumed run.

    They name the user's own configuration, or set logging, environment variables and the like.
    """
    sources = hydra.runtime.config_sources
    named = [f"--config-dir={each.path}" for each in sources if each.provider == "command-line"]
    own = tuple(f"hydra{mark}{name}" for name in _OF_A_JOB for mark in "./")
    return named + [word for word in hydra.overrides.hydra if word.lstrip("+~").startswith(own)]


def compose(*overrides: str) -> DictConfig:
    """Return the configuration of a job."""
    with _loader():
        return hydra.compose("train", list(overrides))


def compose_model(name: str) -> DictConfig:
    """Return the node of ``model=name`` alone, with unresolved references.

    A process composes each model once: Hydra needs a tenth of a second, and matching and lists ask for all of them.
    """
    with _loader() as loader:
        node = _model(name, tuple(source.path for source in loader.get_sources()))
    return deepcopy(node)


@cache
def _model(name: str, sources: tuple[str, ...]) -> DictConfig:
    """Compose the node of a model. The cache distinguishes ``sources``, the directories of the current loader."""
    node: Any = hydra.compose(f"model/{name}").model
    return DictConfig(node._content, flags={"struct": True})  # without a parent: others can adopt it


@contextmanager
def with_directories(directories: Sequence[Path]) -> Iterator[None]:
    """Compose also from the user's own directories inside the block, as ``--config-dir`` does for a run.

    Raises:
        UserError: a directory does not exist.
    """
    path = create_config_search_path(str(CONF))
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"--config-dir={directory} is not a directory. Give an existing directory.")
        path.prepend("command-line", f"file://{directory.absolute()}", anchor="schema")
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("gridlstm", path)
    try:
        yield
    finally:
        GlobalHydra.instance().clear()


@contextmanager
def _loader() -> Iterator[Any]:
    if GlobalHydra.instance().is_initialized():
        yield GlobalHydra.instance().config_loader()
        return
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()
