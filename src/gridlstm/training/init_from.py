"""Start a new run from the weights of another one, whose text may have other symbols."""

import copy
import logging
from pathlib import Path

import torch
from torch import Tensor

from gridlstm.data.base import SequenceData
from gridlstm.data.vocabulary import Vocabulary
from gridlstm.errors import UserError
from gridlstm.models.base import InputProjection
from gridlstm.tasks.base import Task
from gridlstm.training.checkpoint import load_content, load_source, load_weights, vocabulary

log = logging.getLogger(__name__)


def init_from(task: Task, data: SequenceData, checkpoint: Path) -> None:
    """Load only the weights of a checkpoint into a run on ``data``; optimizer, data position and carried state are new.

    If both runs are on texts, symbols keep their weights by name. New symbols keep their initial weights, and symbols
    that the new text lacks are dropped.

    Raises:
        UserError: the weights belong to another network, or to a text of another level or without a common symbol.
    """
    content = load_content(checkpoint)
    weights = content["state_dict"]
    old = vocabulary(load_source(checkpoint), content)
    state = data.state_dict()
    new = Vocabulary(state["level"], tuple(state["vocabulary"])) if "vocabulary" in state else None
    if (old is None) != (new is None):
        raise UserError(f"init_from={checkpoint}: one of the two runs is on a text and the other is not.")
    if old and new and old != new:
        weights = _for_symbols(task, weights, old, new, checkpoint)
    load_weights(task, weights)
    log.info("weights from %s", checkpoint)


def _for_symbols(
    task: Task, weights: dict[str, Tensor], old: Vocabulary, new: Vocabulary, checkpoint: Path
) -> dict[str, Tensor]:
    """Return the weights with the rows of symbols in the new order."""
    place = {symbol: id for id, symbol in enumerate(old.symbols)}
    known = [id for id, symbol in enumerate(new.symbols) if symbol in place]
    rows = [place[new.symbols[id]] for id in known]
    if old.level == new.level and not known:
        raise UserError(
            f"init_from={checkpoint} was trained on a text that has no symbol in common with this one. Start from "
            f"other weights."
        )
    if old.level != new.level:
        raise UserError(
            f"init_from={checkpoint} was trained on symbols of level {old.level}, but this text has level "
            f"{new.level}. Use task.data.level={old.level}, or start from other weights."
        )
    names = ["head.weight", "head.bias"]
    names += [f"{name}.weight" for name, module in task.named_modules() if isinstance(module, InputProjection)]
    if len(names) == 2:
        raise UserError(f"init_from={checkpoint}: it is unknown which weights of this model belong to symbols.")
    log.info(
        "init_from: %d of %d symbols are known to the network, %d new ones keep their initial weights, %d of its own "
        "are dropped",
        len(known), len(new), len(new) - len(known), len(old) - len(known),
    )  # fmt: skip
    changed = copy.copy(weights)  # keeps the metadata of the state_dict
    own = task.state_dict()
    for name in names:
        fits = name in weights and weights[name].shape[1:] == own[name].shape[1:]  # else load_weights reports it
        if fits and len(weights[name]) == len(old):
            changed[name] = own[name].clone()
            changed[name][torch.tensor(known)] = weights[name][torch.tensor(rows)].to(own[name])
    return changed
