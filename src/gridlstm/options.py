"""One table of the effects of all options. Resuming, evaluation, reports, estimates and pictures all read it.

A key is a dotted path of the configuration, such as ``model.depth.forget_bias``, or an override's key, such as
``optimizer`` or ``transform@model.time``. The longest entry of ``ROLES`` that is a prefix of the key gives its role; a
``*`` in an entry stands for any one name.
"""

from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import Any

from gridlstm.errors import UserError


class Role(Enum):
    """Effect of an option."""

    NETWORK = "the function that a network computes, and the precision of its numbers"
    DATA = "the problem, its samples and the batches they come in"
    SEED = "random numbers: runs that differ in nothing else are repetitions of one experiment"
    START = "the weights that a training starts from"
    TRAINING = "how a training changes the weights"
    LENGTH = "how a training is judged and when it ends; may change on a resume"
    TEST = "what a trained network is tested on, and how; its training never sees it"
    TEST_SIZE = "number of samples of a test"
    SPEED = "how fast the same numbers are computed"
    SOURCE = "the name or path of a text; its checksum shows if another name is another text"
    PLACE = "where a run computes and keeps copies of data"
    DISPLAY = "what a run shows on the terminal"
    RECORD = "the stages of a run, and its files and logs"
    DEFAULT = "the default of another option, which decides"


# fmt: off
ROLES: dict[str, Role] = {
    "model": Role.NETWORK,
    "model.sweep": Role.SPEED,
    "model.dropout": Role.TRAINING,
    "model.time_regularizers": Role.TRAINING,
    "model.depth_regularizers": Role.TRAINING,
    "model.init_bound": Role.START,
    "model.transform_bias": Role.START,
    "model.*.gain": Role.START,
    "model.*.gate_bias": Role.START,
    # Tasks. task.network holds defaults that the model's options refer to.
    "task": Role.DATA,
    "task.network": Role.NETWORK,
    "task.objective": Role.NETWORK,
    "task.objective.dropout": Role.TRAINING,
    "task.objective.label_smoothing": Role.TRAINING,
    "task.lr": Role.DEFAULT,  # of optimizer.lr
    "task.max_steps": Role.DEFAULT,  # of trainer.max_steps
    "task.val_every": Role.LENGTH,
    "task.monitor": Role.LENGTH,
    "task.mode": Role.LENGTH,
    "task.path": Role.SOURCE,
    "task.pairs": Role.SOURCE,
    "task.test_pairs": Role.TEST,
    "task.data": Role.DATA,
    "task.data.seed": Role.SEED,
    "task.name": Role.SOURCE,
    "task.streaming": Role.PLACE,
    "task.data.source.path": Role.SOURCE,
    "task.data.source.name": Role.SOURCE,
    "task.data.source.url": Role.SOURCE,
    "task.data.source.train": Role.SOURCE,
    "task.data.source.val": Role.SOURCE,
    "task.data.source.data_dir": Role.PLACE,
    "task.data.source.streaming": Role.PLACE,
    "task.data.cache_dir": Role.PLACE,
    "task.data.min_digits": Role.TRAINING,
    "task.data.curriculum": Role.TRAINING,
    "task.data.density": Role.TRAINING,
    "task.data.max_words": Role.TRAINING,
    "task.data.max_length": Role.DATA,  # also the longest sentence that an evaluation accepts
    "task.data.max_shift": Role.TRAINING,
    "task.data.max_rotation": Role.TRAINING,
    "task.data.source_level": Role.TRAINING,  # a checkpoint contains its vocabularies
    "task.data.target_level": Role.TRAINING,
    "task.data.val_symbols": Role.LENGTH,
    "task.data.num_test": Role.TEST_SIZE,
    "task.data.test_digits": Role.TEST,
    "task.data.source.test": Role.TEST,
    "data_dir": Role.PLACE,
    # How it is trained.
    "seed": Role.SEED,
    "init_from": Role.START,
    "match": Role.TRAINING,
    "optimizer": Role.TRAINING,
    "optimizer.fused": Role.SPEED,
    "scheduler": Role.TRAINING,
    "callbacks": Role.LENGTH,
    "callbacks.weight_averaging": Role.TRAINING,
    "callbacks.final_validation": Role.RECORD,
    "callbacks.checkpoint": Role.RECORD,
    "callbacks.last_checkpoint": Role.RECORD,
    "callbacks.last_checkpoints": Role.RECORD,
    "callbacks.interruption": Role.RECORD,
    "callbacks.engine_choices": Role.RECORD,
    "callbacks.engine_choices.pointwise": Role.SPEED,
    "callbacks.progress_file": Role.RECORD,
    "callbacks.learning_curve": Role.RECORD,
    "callbacks.image_pictures": Role.RECORD,
    "callbacks.pixel_pictures": Role.RECORD,
    "callbacks.translations": Role.RECORD,
    "callbacks.translations.beam": Role.TEST,
    "callbacks.free_memory": Role.SPEED,
    "callbacks.progress": Role.DISPLAY,
    "callbacks.early_stopping.verbose": Role.DISPLAY,
    # lightning.Trainer
    "trainer": Role.TRAINING,
    "trainer._target_": Role.TRAINING,
    "trainer.precision": Role.NETWORK,
    "trainer.accumulate_grad_batches": Role.TRAINING,
    "trainer.gradient_clip_val": Role.TRAINING,
    "trainer.gradient_clip_algorithm": Role.TRAINING,
    "trainer.overfit_batches": Role.TRAINING,
    "trainer.fast_dev_run": Role.TRAINING,
    "trainer.sync_batchnorm": Role.TRAINING,
    "trainer.max_steps": Role.LENGTH,
    "trainer.max_time": Role.LENGTH,
    "trainer.val_check_interval": Role.LENGTH,
    "trainer.limit_val_batches": Role.DATA,
    "trainer.limit_test_batches": Role.TEST_SIZE,
    "trainer.deterministic": Role.SPEED,
    "trainer.accelerator": Role.PLACE,
    "trainer.devices": Role.PLACE,
    "trainer.num_nodes": Role.PLACE,
    "trainer.strategy": Role.PLACE,
    "trainer.enable_progress_bar": Role.DISPLAY,
    "trainer.enable_model_summary": Role.DISPLAY,
    "trainer.detect_anomaly": Role.DISPLAY,
    "trainer.profiler": Role.DISPLAY,
    "trainer.default_root_dir": Role.RECORD,
    "trainer.num_sanity_val_steps": Role.RECORD,
    "trainer.log_every_n_steps": Role.RECORD,
    "trainer.enable_checkpointing": Role.RECORD,
    # The run.
    "stages": Role.RECORD,
    "ckpt_path": Role.RECORD,
    "logger": Role.RECORD,
    "report": Role.RECORD,
    "run": Role.RECORD,
    "hydra": Role.RECORD,
    "hardware": Role.PLACE,
    "debug": Role.RECORD,
    "experiment": Role.TRAINING,
}
# fmt: on

PRECISIONS = {
    **{name: name for name in ("16-true", "16-mixed", "bf16-true", "bf16-mixed", "32-true", "64-true")},
    "16": "16-mixed",
    "bf16": "bf16-mixed",
    "32": "32-true",
    "64": "64-true",
}
"""Values of trainer.precision, and Lightning's full name of each."""

DEFAULTS = {"task.lr": "optimizer.lr", "task.max_steps": "trainer.max_steps"}
"""Defaults in a task's file, and the options that the command line sets instead of them."""

TRANSLATION_READS = ("task.", "model.", "data_dir=")
"""Beginnings of the options of a run that a translation of its data reads."""

IDENTITY = frozenset({Role.NETWORK, Role.DATA, Role.START, Role.TRAINING, Role.LENGTH, Role.TEST})
"""Roles of the options that distinguish experiments: runs with equal values form one row of a report."""

FIXED = frozenset({Role.NETWORK, Role.DATA, Role.SEED, Role.START, Role.TRAINING})
"""Roles of the options that a resumed run keeps."""

TRAINED = frozenset({Role.SEED, Role.START, Role.TRAINING, Role.LENGTH, Role.RECORD, Role.DEFAULT})
"""Roles of the options that have no effect on a trained network."""


def role(key: str) -> Role:
    """Return the role of an option, or ``Role.NETWORK`` for a user's own node, which ``ROLES`` does not contain."""
    entry = find(key)
    return Role.NETWORK if entry is None else ROLES[entry]


def check_read_by_validation(key: str, value: str) -> None:
    """Raise UserError for an option of the test, which a validation does not read."""
    if role(key) is Role.TEST:
        raise UserError(f"{key}={value} has no effect on the validation. Give split=test, or remove it.")


def find(key: str) -> str | None:
    """Return the entry of ``ROLES`` that covers a key, or None."""
    names = key.lstrip("+~").rpartition("@")[2].split(".")
    return max((entry for entry in ROLES if _covers(entry.split("."), names)), key=_length, default=None)


def _covers(entry: list[str], names: list[str]) -> bool:
    return len(entry) <= len(names) and all(part in ("*", name) for part, name in zip(entry, names, strict=False))


def _length(entry: str) -> int:
    return entry.count(".")


def chosen(config: Mapping[str, Any], roles: Collection[Role]) -> dict[str, Any]:
    """Return the options of some roles by dotted key, from a resolved configuration with dotted keys.

    Nulls are omitted, because an absent key means the same, and so are names and paths of the run's own directory.
    """
    own = (str(config.get("run.dir")), str(config.get("run.name")))
    return {
        key: PRECISIONS.get(str(value), value) if key == "trainer.precision" else value
        for key, value in config.items()
        if value is not None
        and role(key) in roles
        and not (isinstance(value, str) and (value in own or value.startswith(f"{own[0]}/")))
    }


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and the values of nested dictionaries; lists, and dictionaries without keys, are values."""
    if not isinstance(node, Mapping) or not node:
        yield prefix, node
        return
    for name, child in node.items():
        yield from leaves(child, f"{prefix}.{name}" if prefix else str(name))
