"""BLEU of a translation run, and its translations of the test."""

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import lightning as L
import torch.distributed
from lightning.pytorch.callbacks import Callback

from gridlstm.bleu import bleu, check_installed
from gridlstm.data.base import owned_rows
from gridlstm.data.translation import TranslationData
from gridlstm.errors import check_at_least_one
from gridlstm.files import write_text
from gridlstm.tasks.translate import Translate
from gridlstm.translator import Translator

log = logging.getLogger(__name__)


class Translations(Callback):
    """Logs BLEU, and writes translations.tsv after the test: sources, translations and references.

    Every ``every``-th validation logs val/bleu of greedy translations. The test logs test/bleu (cased), test/bleu_one
    (with one of several references), test/bleu_lowercased and test/chrf of a beam search; see ``gridlstm.bleu``. Ranks
    share the sentences. With trainer.limit_val_batches or limit_test_batches, these are the first ones of the split, as
    many as the batches hold. Runs of other tasks log nothing.

    Args:
        dir: the run directory.
        every: validations from one val/bleu to the next.
        beam: width of the beam in the test; 20 in the paper.

    Raises:
        UserError: ``every`` or ``beam`` is below 1, or the package sacrebleu is not installed.
    """

    def __init__(self, dir: str, every: int = 2, beam: int = 5) -> None:
        check_at_least_one(every=every, beam=beam)
        self.dir = Path(dir)
        self.every = every
        self.beam = beam
        self._validations = 0

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._validations = state_dict["validations"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if isinstance(pl_module, Translate):
            check_installed()  # now, and not only after the training

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = _data(trainer, pl_module)
        if trainer.sanity_checking or data is None:
            return
        self._validations += 1
        if self._validations % self.every == 0:
            number = _number(trainer, data, "val")
            found = _translated(trainer, data, data.sources("val")[:number], beam=1)
            self._log(pl_module, {"val/bleu": bleu(found, data.references("val")[:number]).bleu})

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (data := _data(trainer, pl_module)) is None:
            return
        number = _number(trainer, data, "test")
        sources, references = data.sources("test")[:number], data.references("test")[:number]
        found = _translated(trainer, data, sources, self.beam)
        scores = bleu(found, references)
        self._log(pl_module, {f"test/{name}": getattr(scores, name) for name in scores.signatures})
        if trainer.is_global_zero:
            for name, signature in scores.signatures.items():
                log.info("test/%s is sacrebleu's %s", name, signature)
            write_text(self.dir / "translations.tsv", table(sources, found, references))

    def _log(self, pl_module: L.LightningModule, values: dict[str, float]) -> None:
        for name, value in values.items():
            pl_module.log(name, value, on_step=False, on_epoch=True, logger=False)


def _data(trainer: L.Trainer, task: L.LightningModule) -> TranslationData | None:
    """Return the data of a translation run; None for other runs."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer, missing from its annotations
    return data if isinstance(task, Translate) and isinstance(data, TranslationData) else None


def _number(trainer: L.Trainer, data: TranslationData, split: Literal["val", "test"]) -> int:
    """Return the number of sentences of a split within the trainer's limit of batches."""
    sentences = len(data.sources(split))
    limit = trainer.limit_val_batches if split == "val" else trainer.limit_test_batches
    if limit is None:
        return sentences
    within = limit * data.batch_size if type(limit) is int else math.ceil(limit * sentences)
    return min(sentences, max(within, trainer.world_size))


def _translated(trainer: L.Trainer, data: TranslationData, sources: Sequence[str], beam: int) -> list[str]:
    """Return the best translation of each source; every rank returns all of them."""
    ranks = trainer.world_size
    owned = owned_rows(len(sources), trainer.global_rank, ranks, "the number of sentences")
    task = cast(Translate, trainer.lightning_module)
    found = Translator([task], data.source_vocabulary, data.target_vocabulary, beam).best_texts(
        [sources[n] for n in owned]
    )
    if ranks == 1:
        return found
    gathered: list[list[str]] = [[] for _ in range(ranks)]
    torch.distributed.all_gather_object(gathered, found)
    return [text for part in gathered for text in part]


def table(sources: Sequence[str], translations: Sequence[str], references: Sequence[Sequence[str]]) -> str:
    """Return lines of source, translation and references, separated by tabs, below a line of column names.

    A sentence with fewer references than others has empty cells. Tabs and line ends in a text become spaces.
    """
    most = max(map(len, references), default=1)
    rows = [["source", "translation", "reference", *(f"reference {n}" for n in range(2, most + 1))]]
    for source, found, texts in zip(sources, translations, references, strict=True):
        rows.append([source, found, *texts, *[""] * (most - len(texts))])
    return "".join("\t".join(re.sub(r"[\t\r\n]", " ", text) for text in row) + "\n" for row in rows)
