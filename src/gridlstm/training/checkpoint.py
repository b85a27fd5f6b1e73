"""Read a checkpoint and its run directory: configuration, weights and vocabulary."""

import json
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gridlstm.config import CONF
from gridlstm.data.base import SequenceData
from gridlstm.data.generated import GeneratedData
from gridlstm.data.old_runs import todays_name, with_text_state
from gridlstm.data.vocabulary import Vocabulary
from gridlstm.errors import UserError, did_you_mean
from gridlstm.options import TRAINED, Role, role
from gridlstm.tasks.base import Task
from gridlstm.training.compatibility import run_directory
from gridlstm.training.intact import check_intact
from gridlstm.training.stored import data_here, read_config
from gridlstm.training.trust import check_trusted

log = logging.getLogger(__name__)

MADE = ("model", "task.data", "task.objective", "trainer")
"""Nodes of a run's configuration that are built to evaluate its network."""

_SPLITTING = ("task.data.splits", "task.data.num_val", "task.data.source.num_val", "task.data.source.num_test")
"""Options that divide a data set into splits."""

_LANGUAGES = ("task.data.source.source", "task.data.source.target", "task.source_language", "task.target_language")
"""Options that name a language of the run's own sentence pairs; the checkpoint has the vocabularies of both."""

_OF_TRAINING_SAMPLES = {"task.data.min_digits": None, "task.data.curriculum": 0}
"""Options that do not affect the samples of an evaluation, with their neutral values."""


def load_config(checkpoint: Path, overrides: Sequence[str], trust: Sequence[str] = ()) -> DictConfig:
    """Return the configuration of the run that wrote a checkpoint, with other options, for an evaluation.

    The configuration omits everything used only in training, so that it is not built: optimizer, schedule, loggers,
    callbacks except the progress bar, and trainer options that are nodes.

    Args:
        checkpoint: path of the checkpoint.
        overrides: dotted ``key=value``.
        trust: other packages or modules that the configuration may name; see ``gridlstm.training.trust``.

    Raises:
        UserError: the checkpoint or an option does not exist, the run directory is missing or damaged, an option
            affects training only or names another language, or the configuration names untrusted code.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key == "hardware":
            raise UserError(
                f"{override} can be chosen only for training. Use trainer.accelerator=cpu trainer.devices=1 instead."
            )
        if role(key) in TRAINED:
            raise UserError(f"{override} has no effect on a trained network. Remove it.")
    config = load_source(checkpoint)
    directory = run_directory(checkpoint)
    try:
        _leave_out_training(config)
        OmegaConf.set_struct(config, True)
        overrides = [todays_name(config, override) for override in overrides]
        for override in overrides:
            _check_option(config, override, f"{directory}/config.yaml")
        _check_languages(config, overrides)
        config.merge_with_dotlist([override for override in overrides if not _is_plain(override)])
        for override in filter(_is_plain, overrides):
            key, _, value = override.partition("=")
            OmegaConf.update(config, key, None if value == "null" else value)
        check_trusted(config, MADE, trust)
        if not any(override.startswith("data_dir=") for override in overrides):
            _find_data(config)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{str(error).splitlines()[0]}. See {directory}/config.yaml for all options.") from error
    return config


def _find_data(config: DictConfig) -> None:
    """Use $GRIDLSTM_DATA if the run's data directory is not here: the run may be from another machine."""
    there = config.get("data_dir")
    if there is not None and (here := data_here(there)):
        log.info("data_dir=%s is not here. Using GRIDLSTM_DATA=%s", there, here)
        config.data_dir = here


def _check_option(config: DictConfig, override: str, file: str) -> None:
    key = override.partition("=")[0]
    if OmegaConf.is_dict(OmegaConf.select(config, key)):
        raise UserError(
            f"{override} chooses from a group, which is fixed by the run. Set a single option of {file}, {key}.….=…"
        )
    parent, _, name = key.rpartition(".")
    siblings = OmegaConf.select(config, parent) if parent else config
    if isinstance(siblings, DictConfig) and name.isidentifier() and name not in siblings:
        raise UserError(f"{key} does not exist.{did_you_mean(name, map(str, siblings))} See {file} for all options.")


def _check_languages(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse other languages of the run's own data. Another data set may name the same language differently."""
    given = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    if any(role(key) is Role.SOURCE for key in given):
        return
    for key, value in given.items():
        if key in _LANGUAGES and value != (before := OmegaConf.select(config, key)):
            raise UserError(
                f"{key}={value} is another language than this checkpoint was trained on. Expected {key}={before}. "
                f"Remove it, or give a checkpoint that was trained with it."
            )


def load_source(checkpoint: Path) -> DictConfig:
    """Return the configuration of the run that wrote a checkpoint, with unresolved references.

    An override of task.path therefore still changes task.data.source.path.

    Raises:
        UserError: the checkpoint does not exist, or its run directory is missing or damaged.
    """
    if not checkpoint.is_file():
        raise UserError(f"ckpt={checkpoint} is not a file. Give a checkpoint, such as outputs/…/checkpoints/best.ckpt.")
    if (directory := run_directory(checkpoint)) is None:
        raise UserError(f"no config.yaml above {checkpoint}. A checkpoint is evaluated inside its run directory.")
    return read_config(directory / "config_source.yaml")


def _leave_out_training(config: DictConfig) -> None:
    """Remove the nodes that are built only for training."""
    for name in ("scheduler", "logger"):
        config[name] = None
    config.optimizer = {"_target_": "torch.optim.SGD"}  # every task needs one
    config.callbacks = {"progress": OmegaConf.load(CONF / "callbacks" / "default.yaml").progress}
    config.trainer._target_ = "lightning.Trainer"
    for name in list(config.trainer):
        if OmegaConf.is_dict(config.trainer[name]):  # such as a custom profiler
            del config.trainer[name]
    for name, neutral in _OF_TRAINING_SAMPLES.items():  # the run's values may not fit the requested sizes
        if OmegaConf.select(config, name) is not None:
            OmegaConf.update(config, name, neutral)


def _names_a_text(override: str) -> bool:
    key = override.partition("=")[0]
    return role(key) is Role.SOURCE or key.rpartition(".")[2] == "data_dir"


def _is_plain(override: str) -> bool:
    """Return True if the value of an override is a plain string, not YAML."""
    return _names_a_text(override) and not override.partition("=")[2].startswith("[")


def load_content(checkpoint: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint on the CPU, tensors and plain values only (``weights_only``).

    Raises:
        UserError: the file is not a checkpoint of a run.
    """
    if checkpoint.suffix == ".safetensors":
        return _load_published(checkpoint)
    check_intact(checkpoint)
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{checkpoint} cannot be read: {str(error).splitlines()[0]}. Give a complete checkpoint of a run."
        ) from error
    except (EOFError, LookupError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        # torch's own message explains how to load the file anyway, which would run code in it.
        reason = "it is not a checkpoint"
        raise UserError(f"{checkpoint} cannot be read: {reason}. Give a complete checkpoint of a run.") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{checkpoint} is not a checkpoint of a run. Give one such as outputs/…/checkpoints/best.ckpt.")
    with_text_state(content)
    return cast(dict[str, Any], content)


def _load_published(file: Path) -> dict[str, Any]:
    """Return the weights and the state of the data from a file of ``python -m gridlstm.publish``.

    Raises:
        UserError: the file is damaged, or other software wrote it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dictionary
            data = json.loads((opened.metadata() or {})["data"])
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}. Copy it again from where it was published.") from error
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} was not written by python -m gridlstm.publish. Give a file that was.") from error
    return {"state_dict": weights, **data}


def warn_of_change(data: SequenceData, overrides: Sequence[str]) -> None:
    """Warn if the text has changed since the checkpoint was written, unless the overrides name another text."""
    if data.changed and not any(_names_a_text(each) or role(each.partition("=")[0]) is Role.TEST for each in overrides):
        log.warning(
            "%s has changed since the checkpoint was written: its splits may include training data",
            data.called,
        )


def warn_of_splits(data: SequenceData, config: DictConfig, checkpoint: Path, overrides: Sequence[str]) -> None:
    """Warn if the overrides change the splits of the run's own data."""
    if isinstance(data, GeneratedData) or _other_text(overrides):
        return
    earlier = load_source(checkpoint)
    for option in _SPLITTING:
        if OmegaConf.select(config, option) != (before := OmegaConf.select(earlier, option)):
            log.warning("the run had %s=%s: the evaluated part may include training data", option, before)


def _other_text(overrides: Sequence[str]) -> bool:
    """Return True if the overrides name another text, which was not used for training."""
    return any(map(_names_a_text, overrides))


def load_weights(task: Task, weights: dict[str, Any]) -> None:
    """Load the weights of a checkpoint into a task.

    Raises:
        UserError: the weights belong to another network.
    """
    own = {name: tuple(value.shape) for name, value in task.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if own != given:
        wrong = [name for name in {**own, **given} if own.get(name) != given.get(name)]
        here, there = (str(shapes.get(wrong[0], "missing")) for shapes in (own, given))
        raise UserError(
            f"the weights do not fit this network: {len(wrong)} tensors differ, such as {wrong[0]}, here {here} and in "
            f"the checkpoint {there}. Use the model and task options of the run that wrote it."
        )
    task.load_state_dict(weights)


def move(task: Task, device: str) -> None:
    """Move a task to a device that a user named.

    Raises:
        UserError: there is no such device, or one without float64 or without values.
    """
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("its tensors have no values")
        task.to(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(
            f"device={device} cannot be used: {str(error).splitlines()[0]}. Expected cpu or cuda."
        ) from error


def data_state(config: DictConfig, content: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the run's data module in a checkpoint: the stream position and a text's vocabulary."""
    kind = str(config.task.data._target_).rpartition(".")[2]  # Lightning's key
    state: dict[str, Any] = content.get(kind, {})
    return state


def vocabulary(config: DictConfig, content: dict[str, Any]) -> Vocabulary | None:
    """Return the symbols of the text that a checkpoint was trained on; None if the data was not a text."""
    state = data_state(config, content)
    return Vocabulary(state["level"], tuple(state["vocabulary"])) if "vocabulary" in state else None
