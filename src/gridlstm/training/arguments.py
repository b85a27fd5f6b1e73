"""Command line stored in a run directory, so that ``ckpt_path=last hydra.run.dir=…`` alone resumes the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from gridlstm.config import hydra_words, quoted
from gridlstm.options import DEFAULTS
from gridlstm.training.stored import data_here, read_config


def to_keep(source: DictConfig, paths: Sequence[str]) -> list[str]:
    """Return the words of the command line that composed a configuration; [] if no command line did.

    The data directory is among them even if nobody typed it: its default depends on the working directory and on the
    environment.

    Args:
        source: the configuration, with absolute ``paths``.
        paths: options whose stored values replace those of the command line.
    """
    if not HydraConfig.initialized():
        return []
    words = []
    for word in HydraConfig.get().overrides.task:
        key, _, _ = word.partition("=")
        path = OmegaConf.select(source, key.lstrip("+")) if key.lstrip("+") in paths else None
        words.append(word if path is None else f"{key}={_as_value(path)}")
    if "${data_dir}" in OmegaConf.to_yaml(source) and not any(word.startswith("data_dir=") for word in words):
        words.append(f"data_dir={quoted(source.data_dir)}")
    return [*hydra_words(HydraConfig.get()), *words]


def _as_value(path: str | ListConfig) -> str:
    return quoted(path) if isinstance(path, str) else f"[{','.join(map(quoted, path))}]"


def with_kept(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the words stored in its run directory in front; typed words override stored ones.

    A command line that does not resume a run in the run's own directory is returned unchanged. A run that ended before
    its first checkpoint starts again with its words.

    Raises:
        UserError: the configuration in the run directory is damaged.
    """
    typed = list(arguments)
    directory, checkpoint = _value(typed, "hydra.run.dir"), _value(typed, "ckpt_path")
    if directory is None or checkpoint is None or {"-m", "--multirun"}.intersection(typed):
        return typed
    root = Path(directory).expanduser()
    own = root if checkpoint == "last" else Path(checkpoint).expanduser()
    if not own.resolve().is_relative_to(root.resolve()) or not (root / "config_source.yaml").is_file():
        return typed
    run: Any = OmegaConf.to_container(read_config(root / "config_source.yaml").run)  # the command line sets references
    kept = [_without_default(word) for word in run.get("arguments", [])]
    again = {word.partition("=")[0] for word in typed}  # Hydra accepts an addition (+) or deletion (~) only once
    if (there := _value(kept, "data_dir")) is not None and data_here(there):
        again.add("data_dir")
    return [*(word for word in kept if word.partition("=")[0] not in again), *typed]


def with_home(word: str) -> str:
    """Return a word with the home directory in place of ~ in the directory of a run or a sweep.

    Hydra refuses an unquoted ~ and makes a directory of that name from a quoted one.
    """
    key, _, value = word.partition("=")
    directory = value.strip("'\"")
    if key not in ("hydra.run.dir", "hydra.sweep.dir") or not directory.startswith("~"):
        return word
    return f"{key}={quoted(str(Path(directory).expanduser()))}"


def _without_default(word: str) -> str:
    """Return a word of an older run's command line, which may set a task's default, with the option itself."""
    key, sign, value = word.partition("=")
    return f"{DEFAULTS.get(key, key)}{sign}{value}"


def _value(arguments: Sequence[str], key: str) -> str | None:
    words = [word for word in arguments if word.startswith(f"{key}=")]
    return str(OverridesParser.create().parse_override(words[-1]).value()) if words else None
