"""Where the configuration lies, and what it can be composed to."""

import re
from collections.abc import Iterator, Sequence
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


def choices(group: str) -> list[str]:
    """The names in a group of the configuration, those of the user's own directories (--config-dir) among them."""
    with _loader() as loader:
        return sorted(loader.get_group_options(group))


def compose_model(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The node of ``model=name`` with its references still open, as this job's experiment has it.

    Args:
        overrides: further ones, such as another task.
    """
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    others = [line for line in given if not re.match(r"[+~]*(model[.=]|transform@model|match\.)", line)]
    with _loader():
        node: Any = hydra.compose("train", [*others, *overrides, f"model={name}"]).model
    # Out of its configuration, so that it can be put into another one.
    return DictConfig(node._content, flags={"struct": True})


@contextmanager
def _loader() -> Iterator[Any]:
    if GlobalHydra.instance().is_initialized():
        yield GlobalHydra.instance().config_loader()
        return
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()
