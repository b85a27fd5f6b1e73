"""What a checkpoint and the run directory above it say: configuration, weights, vocabulary."""

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
from gridlstm.data.old_runs import todays_name, with_text_state
from gridlstm.data.vocabulary import Vocabulary
from gridlstm.errors import UserError, did_you_mean
from gridlstm.options import TRAINED, Role, role
from gridlstm.tasks.base import Task
from gridlstm.training.compatibility import run_directory
from gridlstm.training.intact import check_intact
from gridlstm.training.stored import read_config
from gridlstm.training.trust import check_trusted

log = logging.getLogger(__name__)

MADE = ("model", "task.data", "task.objective", "trainer")
"""What is made of a run's configuration to evaluate its network."""

_OF_TRAINING_SAMPLES = {"task.data.min_digits": None, "task.data.curriculum": 0}
"""Options that an evaluation's samples do not depend on, and what stands for none."""


def load_config(checkpoint: Path, overrides: Sequence[str], trust: Sequence[str] = ()) -> DictConfig:
    """Return the configuration of the run that wrote a checkpoint, with other options, to evaluate its network.

    What an evaluation has no use for is not in it, so that nothing of it is made: optimiser, schedule, callbacks but
    the suite's progress, loggers, and options of the trainer that are no plain values.

    Args:
        overrides: dotted ``key=value``.
        trust: packages or modules beside this one that the configuration may name; see ``gridlstm.training.trust``.

    Raises:
        UserError: there is no such checkpoint or option, no run directory above it or a damaged one, an option is of
            training alone, or code is named that is not trusted.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key == "hardware":
            raise UserError(
                f"{override} is a choice for training: here give trainer.accelerator=cpu trainer.devices=1."
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
        config.merge_with_dotlist([override for override in overrides if not _names_a_text(override)])
        for override in overrides:
            key, _, value = override.partition("=")
            if _names_a_text(override):  # whose value may mean something in YAML
                OmegaConf.update(config, key, None if value == "null" else value)
        check_trusted(config, MADE, trust)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{str(error).splitlines()[0]}. Options are those of {directory}/config.yaml.") from error
    return config


def _check_option(config: DictConfig, override: str, file: str) -> None:
    key = override.partition("=")[0]
    if OmegaConf.is_dict(OmegaConf.select(config, key)):
        raise UserError(
            f"{override} names a choice of a group, and a run has made its choices: give a single option of {file}, "
            f"such as {key}.{next(iter(config[key]), '…')}=…"
        )
    parent, _, name = key.rpartition(".")
    siblings = OmegaConf.select(config, parent) if parent else config
    if isinstance(siblings, DictConfig) and name.isidentifier() and name not in siblings:
        raise UserError(f"{key} does not exist.{did_you_mean(name, map(str, siblings))} Options are those of {file}.")


def load_source(checkpoint: Path) -> DictConfig:
    """Return the configuration of the run that wrote a checkpoint, its references still open: task.path still reaches
    task.data.source.path.

    Raises:
        UserError: there is no such checkpoint, or no run directory above it, or a damaged one.
    """
    if not checkpoint.is_file():
        raise UserError(f"ckpt={checkpoint} is no file. Give a checkpoint, such as outputs/…/checkpoints/best.ckpt.")
    if (directory := run_directory(checkpoint)) is None:
        raise UserError(f"no config.yaml lies above {checkpoint}: a checkpoint is evaluated inside its run directory.")
    return read_config(directory / "config_source.yaml")


def _leave_out_training(config: DictConfig) -> None:
    """Take out what is made for a training alone."""
    for name in ("scheduler", "logger"):
        config[name] = None
    config.optimizer = {"_target_": "torch.optim.SGD"}  # a task takes one
    config.callbacks = {"progress": OmegaConf.load(CONF / "callbacks" / "default.yaml").progress}
    config.trainer._target_ = "lightning.Trainer"
    for name in list(config.trainer):
        if OmegaConf.is_dict(config.trainer[name]):  # such as a profiler of one's own
            del config.trainer[name]
    for name, neutral in _OF_TRAINING_SAMPLES.items():  # which may not fit the sizes that are asked for
        if OmegaConf.select(config, name) is not None:
            OmegaConf.update(config, name, neutral)


def _names_a_text(override: str) -> bool:
    key = override.partition("=")[0]
    return role(key) is Role.SOURCE or key.rpartition(".")[2] == "data_dir"


def load_content(checkpoint: Path) -> dict[str, Any]:
    """What the file holds, on the CPU, by tensors and plain values alone (``weights_only``).

    Raises:
        UserError: it is no checkpoint of a run.
    """
    if checkpoint.suffix == ".safetensors":
        return _load_published(checkpoint)
    check_intact(checkpoint)
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{checkpoint} cannot be read: {str(error).splitlines()[0]}. Give a whole checkpoint of a run."
        ) from error
    except (EOFError, LookupError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        # Of a file that is none, torch says how to load it all the same, which would run what is in it.
        reason = "it is no checkpoint"
        raise UserError(f"{checkpoint} cannot be read: {reason}. Give a whole checkpoint of a run.") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{checkpoint} is no checkpoint of a run. Give one such as outputs/…/checkpoints/best.ckpt.")
    with_text_state(content)
    return cast(dict[str, Any], content)


def _load_published(file: Path) -> dict[str, Any]:
    """Return what ``python -m gridlstm.publish`` has written: weights and the state of the data.

    Raises:
        UserError: the file is damaged, or other software wrote it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no dictionary
            data = json.loads((opened.metadata() or {})["data"])
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}. Copy it again from where it was published.") from error
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} was not written by python -m gridlstm.publish. Give a file that was.") from error
    return {"state_dict": weights, **data}


def warn_of_change(data: SequenceData, overrides: Sequence[str]) -> None:
    """Warn of a text that is not what it was when the checkpoint was written, unless another one is asked for."""
    if data.changed and not _other_text(overrides):
        log.warning(
            "%s is not what it was when the checkpoint was written: its splits may hold what was trained on",
            data.called,
        )


def warn_of_splits(config: DictConfig, checkpoint: Path, overrides: Sequence[str]) -> None:
    """Warns of other parts of the same text than the run had."""
    if not any(override.startswith("task.data.splits=") for override in overrides) or _other_text(overrides):
        return
    if config.task.data.splits != load_source(checkpoint).task.data.splits:
        log.warning("the run had other task.data.splits: what is evaluated may be among what it was trained on")


def _other_text(overrides: Sequence[str]) -> bool:
    """Return whether another text than the run's is asked for, of which nothing was trained on."""
    return any(map(_names_a_text, overrides))


def load_weights(task: Task, weights: dict[str, Any]) -> None:
    """Fills a task with the weights of a checkpoint.

    Raises:
        UserError: they are those of another network.
    """
    own = {name: tuple(value.shape) for name, value in task.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if own != given:
        wrong = [name for name in {**own, **given} if own.get(name) != given.get(name)]
        here, there = (str(shapes.get(wrong[0], "missing")) for shapes in (own, given))
        raise UserError(
            f"the weights do not fit this network: {len(wrong)} of its tensors are others, such as {wrong[0]}, here "
            f"{here} and in the checkpoint {there}. Give the options of model and task of the run that wrote it."
        )
    task.load_state_dict(weights)


def data_state(config: DictConfig, content: dict[str, Any]) -> dict[str, Any]:
    """Return what the run's data module left in the checkpoint: its place in the stream, and a text's vocabulary."""
    kind = str(config.task.data._target_).rpartition(".")[2]  # by which Lightning calls it
    state: dict[str, Any] = content.get(kind, {})
    return state


def vocabulary(config: DictConfig, content: dict[str, Any]) -> Vocabulary | None:
    """The symbols of the text that a checkpoint was trained on; None where it was no text."""
    state = data_state(config, content)
    return Vocabulary(state["level"], tuple(state["vocabulary"])) if "vocabulary" in state else None
