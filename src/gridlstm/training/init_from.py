"""Starting a new run from the weights of another one, whose text may have other symbols."""

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
    """Fills the network of a run on ``data`` with a checkpoint's weights, and nothing else: optimiser, place in the
    data and carried state start afresh.

    Where both are of texts, symbols keep their weights by name: those that are new to the network keep their initial
    ones, those that the new text lacks are left out.

    Raises:
        UserError: weights of another network, or of a text of another level or without a common symbol.
    """
    content = load_content(checkpoint)
    weights = content["state_dict"]
    old = vocabulary(load_source(checkpoint), content)
    state = data.state_dict()
    new = Vocabulary(state["level"], tuple(state["vocabulary"])) if "vocabulary" in state else None
    if (old is None) != (new is None):
        raise UserError(f"init_from={checkpoint}: one of the two runs is of a text and the other is not.")
    if old and new and old != new:
        weights = _for_symbols(task, weights, old, new, checkpoint)
    load_weights(task, weights)
    log.info("weights from %s", checkpoint)


def _for_symbols(
    task: Task, weights: dict[str, Tensor], old: Vocabulary, new: Vocabulary, checkpoint: Path
) -> dict[str, Tensor]:
    """The weights with the rows of the symbols in the new order."""
    place = {symbol: id for id, symbol in enumerate(old.symbols)}
    known = [id for id, symbol in enumerate(new.symbols) if symbol in place]
    rows = [place[new.symbols[id]] for id in known]
    if old.level == new.level and not known:
        raise UserError(
            f"init_from={checkpoint} was trained on a text that has no symbol in common with this one: start from "
            f"other weights."
        )
    if old.level != new.level:
        raise UserError(
            f"init_from={checkpoint} was trained on symbols of level {old.level}, and this text is read at level "
            f"{new.level}: choose task.data.level={old.level}, or start from other weights."
        )
    names = ["head.weight", "head.bias"]
    names += [f"{name}.weight" for name, module in task.named_modules() if isinstance(module, InputProjection)]
    if len(names) == 2:
        raise UserError(f"init_from={checkpoint}: which weights of this model belong to symbols is not known here.")
    log.info(
        "init_from: %d of %d symbols are known to the network, %d are new to it and start afresh, %d of its own are "
        "left out",
        len(known), len(new), len(new) - len(known), len(old) - len(known),
    )  # fmt: skip
    changed = copy.copy(weights)  # with what modules say beside their tensors
    own = task.state_dict()
    for name in names:
        fits = name in weights and weights[name].shape[1:] == own[name].shape[1:]  # or load_weights says what does not
        if fits and len(weights[name]) == len(old):
            changed[name] = own[name].clone()
            changed[name][torch.tensor(known)] = weights[name][torch.tensor(rows)].to(own[name])
    return changed
