"""Networks to analyse: trained ones with their data, or new ones."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from hydra.errors import HydraException
from hydra.utils import get_class
from lightning import seed_everything
from numpy.typing import NDArray
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from gridlstm.config import compose
from gridlstm.data.base import Batch, SequenceData
from gridlstm.data.spec import Spec
from gridlstm.data.vocabulary import Vocabulary
from gridlstm.errors import UserError
from gridlstm.explain import explain
from gridlstm.models.base import ImageModel, PixelModel, VideoModel
from gridlstm.models.translation import TranslationModel
from gridlstm.tasks.base import Task
from gridlstm.tasks.sequence import SequenceTask
from gridlstm.training.build import make_data, make_sequence_task, make_task
from gridlstm.training.checkpoint import (
    data_state,
    load_config,
    load_content,
    load_weights,
    warn_of_change,
    warn_of_splits,
)
from gridlstm.training.init_from import init_from

log = logging.getLogger(__name__)

AnyTask = TypeVar("AnyTask", bound=Task)


class Text(NamedTuple):
    """The test split of a text."""

    ids: NDArray[np.integer[Any]]
    vocabulary: Vocabulary


class Trained(NamedTuple):
    """A checkpoint and its training data."""

    name: str
    data: SequenceData
    start: SequenceTask
    """at the start of the run"""
    task: SequenceTask
    """in the checkpoint"""


def load(checkpoint: Path, overrides: Sequence[str], trust: Sequence[str] = ()) -> Trained:
    """Load a checkpoint inside its run directory, on the CPU.

    Args:
        trust: packages whose code the run may use; see ``gridlstm.training.trust``.

    Raises:
        UserError: if a checkpoint or option does not exist, code is not trusted, the text has changed, weights do not
            fit or are not finite, or the network does not read sequences.
    """
    cfg, weights, data = _opened(checkpoint, overrides, trust)
    start = make_task(cfg, data.spec)
    if not isinstance(start, SequenceTask):
        raise UserError(
            f"{checkpoint} is of task={cfg.run.task}. Expected a network that reads sequences of symbols. Give one, or "
            f"what=image for a classifier of images, what=alignment for a translation."
        )
    if (origin := cfg.get("init_from")) is not None:
        if Path(origin).is_file():
            init_from(start, data, Path(origin))
        else:
            log.warning("init_from=%s does not exist any more: the network shown as the start is untrained", origin)
    task = make_sequence_task(cfg, data.spec)
    load_weights(task, weights)
    return Trained(cfg.run.model, data, start.eval(), task.eval())


def load_task(
    checkpoint: Path, overrides: Sequence[str], trust: Sequence[str], kind: type[AnyTask], what: str, example: str
) -> tuple[SequenceData, AnyTask]:
    """Load a checkpoint of a kind of task, as ``load`` does; return its data and the trained task.

    Args:
        checkpoint, overrides, trust: see ``load``.
        kind: class of the task.
        what, example: name of the picture, and of a task that suits it, for errors.

    Raises:
        UserError: if the checkpoint is of another kind of task, or see ``load``.
    """
    cfg, weights, data = _opened(checkpoint, overrides, trust)
    task = make_task(cfg, data.spec)
    if not isinstance(task, kind):
        raise UserError(
            f"what={what} cannot show {checkpoint}, which is of task={cfg.run.task}. Give a checkpoint of a task such "
            f"as task={example}."
        )
    load_weights(task, weights)
    return data, task.eval()


def _opened(
    checkpoint: Path, overrides: Sequence[str], trust: Sequence[str]
) -> tuple[DictConfig, dict[str, Tensor], SequenceData]:
    """Return the configuration of a checkpoint's run, its weights and the run's data."""
    cfg = load_config(checkpoint, overrides, trust)
    seed_everything(cfg.seed, verbose=False)
    content = load_content(checkpoint)
    _check_finite(checkpoint, content["state_dict"])
    data = make_data(cfg, data_state(cfg, content))
    warn_of_change(data, overrides)
    warn_of_splits(data, cfg, checkpoint, overrides)
    return cfg, content["state_dict"], data


def _check_finite(checkpoint: Path, weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        if not value.isfinite().all():
            raise UserError(
                f"the weights of {checkpoint} are not finite, first in {name}. Give best.ckpt, or another checkpoint "
                f"from before the training diverged."
            )


def new(model: str, spec: Spec, overrides: Sequence[str]) -> SequenceTask:
    """Build a network of conf/model, with a read-out, as at the start of training.

    Args:
        overrides: options as for train.py, such as "model.hidden_size=32" and "seed=2".

    Raises:
        UserError: if the model or an option does not exist, or seed is invalid.
    """
    # task.network sets default sizes and the forget bias. The values of task=memorization suit a deep grid.
    words = ["task=memorization", f"model={model}", *overrides]
    try:
        cfg: DictConfig = compose(*words)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, words)) from error
    if type(cfg.seed) is not int or not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed must be a whole number from 0 to {2**32 - 1}, got {cfg.seed!r}.")
    if issubclass(get_class(cfg.model._target_), ImageModel | PixelModel | VideoModel | TranslationModel):
        raise UserError(
            f"model={model} does not read sequences of symbols. Give networks that do, such as model=grid2d; for a "
            f"network of images or translations, give a checkpoint with what=image or what=alignment."
        )
    seed_everything(cfg.seed, verbose=False)
    return make_sequence_task(cfg, spec).eval()


def text_of(trained: Trained) -> Text:
    """Return the text of a character model.

    Raises:
        UserError: if its data is not a text.
    """
    if (vocabulary := trained.data.vocabulary) is None:
        raise UserError(
            f"the checkpoint's data is {trained.data.called}. Expected a text (task=text, enwik8, text8, "
            f"penn_treebank or hub). Give another checkpoint."
        )
    return Text(trained.data.text("test"), vocabulary)


def windows(text: Text, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Return (rows, length) symbols from evenly spaced positions, and the (rows,) symbols that follow.

    Raises:
        UserError: if the text is too short.
    """
    if len(text.ids) <= length:
        raise UserError(
            f"the test split has {len(text.ids):,} symbols, but steps={length} needs {length + 1:,}. Give fewer steps."
        )
    starts = np.linspace(0, len(text.ids) - length - 1, rows).astype(np.int64)
    symbols = np.asarray(text.ids)[starts[:, None] + np.arange(length + 1)].astype(np.int64)
    ids = torch.from_numpy(symbols)
    return ids[:, :-1], ids[:, -1]


def test_batches(data: SequenceData) -> Iterator[Batch]:
    """Yield the batches of the test split."""
    for drawn in data.test_dataloader():
        yield data.on_after_batch_transfer(drawn, 0)


def sequences(data: SequenceData, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs of the test split, (B, T) or (B, T, input_size), and a (B, T) mask that is False at padding.

    Args:
        steps: stop after the batch that contains this many steps in total.
    """
    for batch in test_batches(data):
        number = torch.arange(1, batch.loss_mask.shape[1] + 1)
        inside = number <= (batch.loss_mask * number).amax(dim=1, keepdim=True)  # up to the last step in the loss
        yield batch.inputs, inside
        steps -= int(inside.sum())
        if steps <= 0:
            return
