"""Sentences translated as text: encoded, searched in batches of similar lengths, decoded."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch

from gridlstm.data.words import BOS, EOS, PAD, UNK, SentenceVocabulary
from gridlstm.decoding import DEFAULT, Hypothesis, Networks, beam_search, check_search, greedy
from gridlstm.errors import UserError, check_at_least_one
from gridlstm.tasks.translate import Translate

log = logging.getLogger(__name__)

LONGEST = 200
"""Largest number of source symbols translated at once. The cost of a search grows with its square, or faster."""


SENTENCES = 32
"""Largest number of sentences that are searched together by default."""
HYPOTHESES = 160
"""Largest number of hypotheses in one step on a CPU by default.

Measured with a Reencoder of 192 units (docs/translation.md): 640 take 1.16 times as long as 160, and 80 1.03 times.
"""


class Translation(NamedTuple):
    """A translation of a sentence."""

    text: str
    score: float
    """log p(translation | sentence); for a sentence in parts, the sum over the parts."""


class Translator:
    """Trained networks with their vocabularies.

    An empty sentence has an empty translation. Text outside the vocabulary is read as the unknown symbol, which is
    never written. A sentence of more than ``LONGEST`` symbols is translated in parts of equal lengths, which are joined
    by a space; it has a single translation.

    Args:
        tasks: trained networks in evaluation mode, for the same symbols. Their probabilities are averaged.
        source, target: vocabularies.
        beam: width of the beam; 1 for the greedy search.
        best: number of translations of each sentence, the best first; at most ``beam``.
        length_penalty: see ``gridlstm.decoding.beam_search``; 0 with ``beam=1``.
        shortest: least number of symbols of a translation for each symbol of its source; see
            ``gridlstm.decoding.Limits``.
        batch_size: sentences that are searched together; None for 32, on a CPU fewer with a wide beam. It changes only
            the speed.

    Raises:
        UserError: an option is out of its range, or there is no task, or one is in training mode.
    """

    def __init__(
        self,
        tasks: Sequence[Translate],
        source: SentenceVocabulary,
        target: SentenceVocabulary,
        beam: int = 20,
        best: int = 1,
        length_penalty: float = 0.0,
        shortest: float = DEFAULT.shortest,
        batch_size: int | None = None,
    ) -> None:
        check_search(beam, best, length_penalty)
        if beam == 1 and length_penalty:
            raise UserError(
                f"length_penalty={length_penalty} ranks the translations of a beam, but beam=1 finds only one. Raise "
                f"beam, or remove length_penalty."
            )
        if not 0 <= shortest <= DEFAULT.longest:
            raise UserError(f"shortest must be from 0 to {DEFAULT.longest:g}, got {shortest}.")
        Networks(tasks)  # checks them
        if batch_size is None:
            on_cpu = next(tasks[0].parameters()).device.type == "cpu"
            batch_size = min(SENTENCES, max(1, HYPOTHESES // beam)) if on_cpu else SENTENCES
        check_at_least_one(batch_size=batch_size)
        self.tasks = tasks
        self.source = source
        self.target = target
        self.beam = beam
        self.best = best
        self.length_penalty = length_penalty
        self.limits = DEFAULT._replace(shortest=shortest)
        self.batch_size = batch_size

    def translate(self, sentences: Sequence[str]) -> list[list[Translation]]:
        """Return the translations of each sentence."""
        parts = [self._parts(sentence) for sentence in sentences]
        if long := sum(len(each) > 1 for each in parts):
            log.info("sentences of more than %d symbols are translated in parts: %d", LONGEST, long)
        flat = [part for each in parts for part in each]
        order = sorted(range(len(flat)), key=lambda n: len(flat[n]))
        found: dict[int, list[Hypothesis]] = {}
        for first in range(0, len(order), self.batch_size):
            places = order[first : first + self.batch_size]
            found |= dict(zip(places, self._search([flat[place] for place in places]), strict=True))
        results, start = [], 0
        for each in parts:
            results.append(self._joined([found[place] for place in range(start, start + len(each))]))
            start += len(each)
        return results

    def best_texts(self, sentences: Sequence[str]) -> list[str]:
        """Return the best translation of each sentence as text."""
        return [found[0].text for found in self.translate(sentences)]

    def _parts(self, sentence: str) -> list[list[int]]:
        ids = self.source.encode(sentence)
        number = -(-len(ids) // LONGEST)
        return [ids[n * len(ids) // number : (n + 1) * len(ids) // number] for n in range(number)]

    def _search(self, rows: list[list[int]]) -> list[list[Hypothesis]]:
        device = next(self.tasks[0].parameters()).device
        longest = 1 + max(map(len, rows))
        source = torch.tensor([[*row, EOS] + [PAD] * (longest - 1 - len(row)) for row in rows], device=device)
        mask = torch.arange(longest, device=device) <= torch.tensor([len(row) for row in rows], device=device)[:, None]
        never = (PAD, BOS, UNK)
        if self.beam == 1:
            return [[one] for one in greedy(self.tasks, source, mask, BOS, EOS, self.limits, never)]
        return beam_search(
            self.tasks, source, mask, BOS, EOS, self.beam, self.best, self.limits, self.length_penalty, never
        )

    def _joined(self, parts: list[list[Hypothesis]]) -> list[Translation]:
        if len(parts) == 1:
            return [Translation(self.target.decode(one.symbols), one.score) for one in parts[0]]
        best = [each[0] for each in parts]
        return [
            Translation(
                " ".join(self.target.decode(one.symbols) for one in best), sum((one.score for one in best), 0.0)
            )
        ]
