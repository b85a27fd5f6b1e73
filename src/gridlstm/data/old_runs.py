"""Configurations and checkpoints of older runs, as the same runs would be written today."""

from collections.abc import Mapping
from typing import Any

_SOURCES = {
    "gridlstm.data.text.TextData": "gridlstm.data.text_file.File",
    "gridlstm.data.enwik8.Enwik8Data": "gridlstm.data.enwik8.Enwik8",
    "gridlstm.data.enwik8.Text8Data": "gridlstm.data.text8.Text8",
    "gridlstm.data.penn_treebank.PennTreebankData": "gridlstm.data.penn_treebank.PennTreebank",
    "gridlstm.data.hub.HubTextData": "gridlstm.data.hub.Hub",
}
"""The source of today, by the class that was data of its own."""

_OF_THE_SOURCE = (
    *("path", "data_dir", "url", "zip_size", "zip_sha256", "size", "sha256"),
    *("name", "config", "column", "streaming", "max_documents"),
)
"""Options that stood in the node of the data."""


_FIXED_OF_TRAINER = ("max_epochs", "check_val_every_n_epoch", "limit_train_batches", "use_distributed_sampler")
"""Options of the trainer that had the one value that they are fixed to now (build.OF_EVERY_TRAINER)."""


_PLACES = {
    "gridlstm.training.callbacks": (
        *("best_checkpoint", "criterion", "divergence", "early_stopping", "engine_choices", "final_validation"),
        *("interruption", "learning_curve", "progress", "progress_file", "weight_averaging"),
    ),
    "gridlstm.training.loggers": ("csv_logger", "wandb_logger"),
}
"""Modules that stood in gridlstm.runtime."""


def rewrite(config: Any, references: bool) -> None:
    """Rewrite a run's configuration, a plain container, in place.

    Args:
        references: an option may refer to another, so that one that is given anew reaches it.
    """
    _with_source(config, references)
    _with_places(config)
    if isinstance(config, dict) and isinstance(config.get("trainer"), dict):
        for name in _FIXED_OF_TRAINER:
            config["trainer"].pop(name, None)


def _with_source(config: Any, references: bool) -> None:
    """Rewrite the data node of a run's configuration, a plain container, in place."""
    task = config.get("task") if isinstance(config, dict) else None
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(task, dict) or not isinstance(data, dict) or data.get("_target_") not in _SOURCES:
        return
    if "source" in data:
        return
    moved = {name: data.pop(name) for name in _OF_THE_SOURCE if name in data}
    source, data["_target_"] = _SOURCES[data["_target_"]], "gridlstm.data.text.TextData"
    data["source"] = {"_target_": source, **moved}
    if source == "gridlstm.data.hub.Hub":  # whose options are given as the task's own
        task |= moved
        data["source"] |= {name: f"${{task.{name}}}" for name in moved if references}


def _with_places(node: Any) -> None:
    """Name the classes of callbacks and loggers by where they are now."""
    for value in node.values() if isinstance(node, dict) else []:
        _with_places(value)
    if isinstance(node, dict) and str(target := node.get("_target_")).startswith("gridlstm.runtime."):
        module, _, name = str(target).removeprefix("gridlstm.runtime.").partition(".")
        node["_target_"] = next((f"{p}.{module}.{name}" for p, names in _PLACES.items() if module in names), target)


def todays_name(config: Mapping[Any, Any], override: str) -> str:
    """Return ``key=value`` with the key that the option has now, in a configuration that was rewritten."""
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
    """Rename what a checkpoint holds of its text, in place: Lightning names it for the class of the data."""
    for target in _SOURCES:
        old = target.rpartition(".")[2]
        if old in checkpoint:
            checkpoint["TextData"] = checkpoint.pop(old)
