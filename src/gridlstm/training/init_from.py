"""Start a new run from the weights of another one, whose texts may have other symbols."""

import copy
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gridlstm.data.base import SequenceData
from gridlstm.data.words import vocabulary_from
from gridlstm.errors import UserError
from gridlstm.models.base import InputProjection
from gridlstm.tasks.base import Task
from gridlstm.tasks.translate import Translate
from gridlstm.training.checkpoint import data_state, load_content, load_source, load_weights

log = logging.getLogger(__name__)


class _Symbols(NamedTuple):
    """Symbols of a text, or of one side of a translation."""

    level: str
    """Unit of the symbols, such as "byte" or "pieces"."""
    by_id: tuple[Any, ...]


def init_from(task: Task, data: SequenceData, checkpoint: Path) -> None:
    """Load only the weights of a checkpoint into a run on ``data``; optimizer, data position and carried state are new.

    If both runs are on texts or both on translations, symbols keep their weights by name. New symbols keep their
    initial weights, and symbols that the new text lacks are dropped.

    Raises:
        UserError: the weights belong to another network, or to a text of another level or without a common symbol.
    """
    content = load_content(checkpoint)
    weights = content["state_dict"]
    old, new = _symbols(data_state(load_source(checkpoint), content)), _symbols(data.state_dict())
    if old.keys() != new.keys():
        raise UserError(
            f"init_from={checkpoint} was trained on other data than this run: on {_named(old)} instead of "
            f"{_named(new)}. Start from other weights."
        )
    for side in old:
        if old[side] != new[side]:
            weights = _for_symbols(task, weights, side, old[side], new[side], checkpoint)
    load_weights(task, weights)
    log.info("weights from %s", checkpoint)


def _symbols(state: dict[str, Any]) -> dict[str, _Symbols]:
    """Return the symbols in the state of a data module, by the name of their text; empty if the data has none."""
    if "vocabulary" in state:
        return {"text": _Symbols(state["level"], tuple(state["vocabulary"]))}
    sides = {side: state[f"{side}_vocabulary"] for side in ("source", "target") if f"{side}_vocabulary" in state}
    return {
        side: _Symbols("words" if "words" in each else "pieces", vocabulary_from(each).symbols)
        for side, each in sides.items()
    }


def _named(symbols: dict[str, _Symbols]) -> str:
    return {0: "data without a vocabulary", 1: "a text"}.get(len(symbols), "pairs of sentences")


def _for_symbols(
    task: Task, weights: dict[str, Tensor], side: str, old: _Symbols, new: _Symbols, checkpoint: Path
) -> dict[str, Tensor]:
    """Return the weights with the rows of the symbols of a side in the new order."""
    place = {symbol: id for id, symbol in enumerate(old.by_id)}
    known = [id for id, symbol in enumerate(new.by_id) if symbol in place]
    rows = [place[new.by_id[id]] for id in known]
    if old.level != new.level:
        option = "task.data.level" if side == "text" else f"task.data.{side}_level"
        raise UserError(
            f"init_from={checkpoint} was trained on a {side} of level {old.level}, but this {side} has level "
            f"{new.level}. Use {option} of that run, or start from other weights."
        )
    if not any(isinstance(new.by_id[id], str) or side == "text" for id in known):
        raise UserError(
            f"init_from={checkpoint} was trained on a {side} that has no symbol in common with this one. Start from "
            f"other weights."
        )
    if not (names := _weights_of_symbols(task, side)):
        raise UserError(f"init_from={checkpoint}: it is unknown which weights of this model belong to symbols.")
    log.info(
        "init_from: %d of %d symbols of the %s are known to the network, %d new ones keep their initial weights, %d of "
        "its own are dropped",
        len(known), len(new.by_id), side, len(new.by_id) - len(known), len(old.by_id) - len(known),
    )  # fmt: skip
    changed = copy.copy(weights)  # keeps the metadata of the state_dict
    own = task.state_dict()
    for name in names:
        fits = name in weights and weights[name].shape[1:] == own[name].shape[1:]  # else load_weights reports it
        if fits and len(weights[name]) == len(old.by_id):
            changed[name] = own[name].clone()
            changed[name][torch.tensor(known)] = weights[name][torch.tensor(rows)].to(own[name])
    return changed


def _weights_of_symbols(task: Task, side: str) -> list[str]:
    """Return the names of the weights with a row for each symbol of a side; none if they are unknown."""
    projections = {name: module for name, module in task.named_modules() if isinstance(module, InputProjection)}
    if isinstance(task, Translate):
        ours = task.model.source if side == "source" else task.model.target
        projections = {name: module for name, module in projections.items() if module is ours}
    head = [] if side == "source" or not projections else ["head.weight", "head.bias"]
    return [*(f"{name}.weight" for name in projections), *head]
