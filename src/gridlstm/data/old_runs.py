"""Convert configurations and checkpoints of older runs to today's format."""

from collections.abc import Mapping
from typing import Any

_SOURCES = {
    "gridlstm.data.text.TextData": "gridlstm.data.text_file.File",
    "gridlstm.data.enwik8.Enwik8Data": "gridlstm.data.enwik8.Enwik8",
    "gridlstm.data.enwik8.Text8Data": "gridlstm.data.text8.Text8",
    "gridlstm.data.penn_treebank.PennTreebankData": "gridlstm.data.penn_treebank.PennTreebank",
    "gridlstm.data.hub.HubTextData": "gridlstm.data.hub.Hub",
}
"""Present class of the source for each former data class."""

_OF_THE_SOURCE = (
    *("path", "data_dir", "url", "zip_size", "zip_sha256", "size", "sha256"),
    *("name", "config", "column", "streaming", "max_documents"),
)
"""Options of the source that were formerly in the node of the data."""


_FIXED_OF_TRAINER = ("max_epochs", "check_val_every_n_epoch", "limit_train_batches", "use_distributed_sampler")
"""Former trainer options, whose values are now fixed (build.OF_EVERY_TRAINER)."""


_PLACES = {
    "gridlstm.training.callbacks": (
        *("best_checkpoint", "criterion", "divergence", "early_stopping", "engine_choices", "final_validation"),
        *("interruption", "learning_curve", "progress", "progress_file", "weight_averaging"),
    ),
    "gridlstm.training.loggers": ("csv_logger", "wandb_logger"),
}
"""Present packages of the modules that were in gridlstm.runtime."""


def rewrite(config: Any, references: bool) -> None:
    """Rewrite a run's configuration, a plain container, in place.

    Args:
        config: the configuration.
        references: True to make options of the source refer to those of the task, so that a new value of the task's
            option reaches the source.
    """
    _with_source(config, references)
    _with_places(config)
    task = config.get("task") if isinstance(config, dict) else None
    objective = task.get("objective") if isinstance(task, dict) else None
    if isinstance(objective, dict) and objective.get("_target_") == "gridlstm.tasks.translate.Translate":
        objective.setdefault("label_smoothing", 0.0)  # formerly in no file of conf/
    if isinstance(config, dict) and isinstance(config.get("trainer"), dict):
        for name in _FIXED_OF_TRAINER:
            config["trainer"].pop(name, None)


def _with_source(config: Any, references: bool) -> None:
    """Move the options of the source to their own node of a run's configuration, in place."""
    task = config.get("task") if isinstance(config, dict) else None
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(task, dict) or not isinstance(data, dict) or data.get("_target_") not in _SOURCES:
        return
    if "source" in data:
        return
    moved = {name: data.pop(name) for name in _OF_THE_SOURCE if name in data}
    source, data["_target_"] = _SOURCES[data["_target_"]], "gridlstm.data.text.TextData"
    data["source"] = {"_target_": source, **moved}
    if source == "gridlstm.data.hub.Hub":  # users set its options in the node of the task
        task |= moved
        data["source"] |= {name: f"${{task.{name}}}" for name in moved if references}


def _with_places(node: Any) -> None:
    """Replace the former modules of callbacks and loggers by their present ones."""
    for value in node.values() if isinstance(node, dict) else []:
        _with_places(value)
    if isinstance(node, dict) and str(target := node.get("_target_")).startswith("gridlstm.runtime."):
        module, _, name = str(target).removeprefix("gridlstm.runtime.").partition(".")
        node["_target_"] = next((f"{p}.{module}.{name}" for p, names in _PLACES.items() if module in names), target)


def todays_name(config: Mapping[Any, Any], override: str) -> str:
    """Return ``key=value`` with the present key of the option in a rewritten configuration."""
    name = override.removeprefix("task.data.").partition("=")[0]
    task = config["task"]
    if (
        name not in _OF_THE_SOURCE
        or not override.startswith("task.data.")
        or name not in task["data"].get("source", {})
    ):
        return override
    place = "task" if name in task else "task.data.source"
    return f"{place}.{override.removeprefix('task.data.')}"


def with_text_state(checkpoint: dict[str, Any]) -> None:
    """Rename the state of the text in a checkpoint, in place; Lightning stores it by the name of the data class."""
    for target in _SOURCES:
        old = target.rpartition(".")[2]
        if old in checkpoint:
            checkpoint["TextData"] = checkpoint.pop(old)
