"""The command line that a run directory keeps, so that ``ckpt_path=last hydra.run.dir=…`` alone resumes the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from gridlstm.config import config_dirs, quoted
from gridlstm.options import DEFAULTS
from gridlstm.training.legs import last_checkpoint
from gridlstm.training.stored import read_config


def to_keep(source: DictConfig, paths: Sequence[str]) -> list[str]:
    """Return the words of the command line that composed a configuration; none where no command line did.

    Args:
        source: the configuration, in which ``paths`` do not depend on the working directory.
    """
    if not HydraConfig.initialized():
        return []
    words = []
    for word in HydraConfig.get().overrides.task:
        key, _, _ = word.partition("=")
        path = OmegaConf.select(source, key.lstrip("+")) if key.lstrip("+") in paths else None
        words.append(word if path is None else f"{key}={quoted(path)}")
    return [*config_dirs(HydraConfig.get()), *words]


def with_kept(arguments: Sequence[str]) -> list[str]:
    """Return a command line after the words that its run directory keeps, which later ones override.

    Where it does not resume a run in the run's own directory, it stays as it is.

    Raises:
        UserError: the configuration in the run directory is damaged.
    """
    typed = list(arguments)
    directory, checkpoint = _value(typed, "hydra.run.dir"), _value(typed, "ckpt_path")
    if directory is None or checkpoint is None or {"-m", "--multirun"}.intersection(typed):
        return typed
    root = Path(directory).expanduser()
    own = last_checkpoint(root) if checkpoint == "last" else Path(checkpoint).expanduser()
    if own is None or not own.resolve().is_relative_to(root.resolve()) or not (root / "config_source.yaml").is_file():
        return typed
    run: Any = OmegaConf.to_container(read_config(root / "config_source.yaml").run)  # references are the command line's
    kept = map(_without_default, run.get("arguments", []))
    again = {word.partition("=")[0] for word in typed}  # what is added (+) or deleted (~) can be so once alone
    return [*(word for word in kept if word.partition("=")[0] not in again), *typed]


def _without_default(word: str) -> str:
    """Return a word of an older run's command line, which may set a task's default, with the option itself."""
    key, sign, value = word.partition("=")
    return f"{DEFAULTS.get(key, key)}{sign}{value}"


def _value(arguments: Sequence[str], key: str) -> str | None:
    words = [word for word in arguments if word.startswith(f"{key}=")]
    return str(OverridesParser.create().parse_override(words[-1]).value()) if words else None
