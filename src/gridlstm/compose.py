"""Where the configuration lies, and what it can be composed to."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

_HERE = Path(__file__).parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parents[1] / "conf"
"""The configuration: inside an installed wheel, else the repository's."""


MATRIX = CONF / "models.txt"
"""Which model goes with which task, as ``python -m gridlstm.list --write`` left it."""


def choices(group: str) -> list[str]:
    """The names in a group of the configuration, those of the user's own directories (--config-dir) among them."""
    with _loader() as loader:
        return sorted(loader.get_group_options(group))


def as_typed(name: str, value: object) -> str:
    """``name=value`` as one types it in a shell: in Hydra's quotes, and those of the shell, only where need be."""
    text = str(value)
    return f"{name}={text}" if re.fullmatch(r"[\w./-]+", text) else shlex.quote(f"{name}={quoted(text)}")


def quoted(text: str) -> str:
    """Text as a value of an override, whatever is in it."""
    return "'" + text.replace("'", r"\'") + "'"


def compose(*overrides: str) -> DictConfig:
    """The configuration of a job."""
    with _loader():
        return hydra.compose("train", list(overrides))


def compose_model(name: str) -> DictConfig:
    """The node of ``model=name`` by itself, its references still open."""
    with _loader():
        return _cut_out(hydra.compose(f"model/{name}").model)


def compose_model_here(name: str) -> DictConfig:
    """The same with all that this job's experiment and command line say, but for what they say of the model."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    others = [line for line in given if not re.match(r"[+~]*(model[.=]|transform@model|match\.)", line)]
    return _cut_out(compose(*others, f"model={name}").model)


def _cut_out(node: Any) -> DictConfig:
    """A node that can be put into another configuration."""
    return DictConfig(node._content, flags={"struct": True})


@contextmanager
def _loader() -> Iterator[Any]:
    if GlobalHydra.instance().is_initialized():
        yield GlobalHydra.instance().config_loader()
        return
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()
