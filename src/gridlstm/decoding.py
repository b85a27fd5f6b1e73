"""Search for the most probable target of a source: greedily, or with a beam.

Shape legend: B sentences, S source places, R rows (hypotheses of all sentences), K beam width, V target symbols.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gridlstm.errors import UserError, check_at_least_one
from gridlstm.models.base import State
from gridlstm.models.translation import Context, select_rows
from gridlstm.tasks.ensemble import mean_log_p
from gridlstm.tasks.translate import Translate


class Hypothesis(NamedTuple):
    """A target that a search found."""

    symbols: list[int]
    """Symbols without the begin and end symbols."""
    score: float
    """Sum of log-probabilities, log p(symbols and end | source)."""


class Limits(NamedTuple):
    """Least and greatest lengths of the targets that a search considers.

    A target of a source of S symbols has at least ``shortest`` S symbols, rounded up (the paper discards candidates
    shorter than half the source), and at most ``longest`` S + ``more``, rounded down. The end symbols of source and
    target do not count.
    """

    shortest: float = 0.5
    longest: float = 2.0
    more: int = 10

    def lengths(self, source_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest length (B,) for sources with these masks (B, S)."""
        symbols = source_mask.sum(1) - 1
        least = symbols.double() * self.shortest - 1e-9  # 0.28 * 25 is above 7 by a rounding error
        return least.ceil().long(), (symbols * self.longest + self.more).floor().long()


DEFAULT = Limits()


class Networks:
    """Trained networks that predict the next symbol together: the mean of their probabilities.

    p = (p_1 + … + p_n) / n; each network keeps its own context and state.

    Args:
        tasks: trained tasks that read and predict the same symbols, at least one; in evaluation mode.

    Raises:
        UserError: there is no task, or one is in training mode; from ``step``, if an output is not a number.
    """

    def __init__(self, tasks: Sequence[Translate]) -> None:
        if not tasks:
            raise UserError("there is no network to decode with. Expected at least one trained task.")
        if any(task.training for task in tasks):
            raise UserError("a network is in training mode, with dropout. Expected evaluation mode: call task.eval().")
        self.tasks = tasks
        self.contexts: list[Context] = []
        self.states: list[State] = []

    def read(self, source: Tensor, source_mask: Tensor) -> None:
        """Begin with sources (B, S), one row each."""
        self.contexts = [task.model.read(source, source_mask) for task in self.tasks]
        self.states = [task.model.start(context) for task, context in zip(self.tasks, self.contexts, strict=True)]

    def step(self, symbols: Tensor) -> Tensor:
        """Return log p (R, V) of the next symbol after these (R,)."""
        found = []
        for n, task in enumerate(self.tasks):
            y, self.states[n] = task.model.step(self.contexts[n], self.states[n], symbols)
            found.append(task.head(y))
        log_p = mean_log_p(found)
        if log_p.isnan().any():
            raise UserError("the network's output is not a number, as after a diverged training. Use another ckpt.")
        return log_p

    def select(self, rows: Tensor, contexts: bool) -> None:
        """Continue with these rows (R,).

        Args:
            contexts: true to select the rows of the contexts too; false if every row keeps its source.
        """
        self.states = [select_rows(state, rows) for state in self.states]
        if contexts:
            self.contexts = [select_rows(context, rows) for context in self.contexts]


@torch.inference_mode()
def greedy(
    tasks: Sequence[Translate],
    source: Tensor,
    source_mask: Tensor,
    begin: int,
    end: int,
    limits: Limits = DEFAULT,
    never: Collection[int] = (),
) -> list[Hypothesis]:
    """Return one target for each source by choosing the most probable next symbol at every step.

    See ``beam_search`` for the arguments. With ``beam=1`` it finds the same targets.
    """
    networks = Networks(tasks)
    networks.read(source, source_mask)
    shortest, longest = limits.lengths(source_mask)
    found = [Hypothesis([], 0.0) for _ in source]
    active = torch.arange(len(source), device=source.device)
    symbols = torch.full_like(active, begin)
    while len(active):
        log_p = _allowed(networks.step(symbols), len(found[int(active[0])].symbols), shortest, longest, end, never)
        scores, symbols = log_p.max(-1)
        for b, score, symbol in zip(active.tolist(), scores.tolist(), symbols.tolist(), strict=True):
            earlier = found[b]
            found[b] = Hypothesis(earlier.symbols + [symbol] * (symbol != end), earlier.score + score)
        rows = (symbols != end).nonzero()[:, 0]
        if len(rows) < len(active):
            networks.select(rows, contexts=True)
            active, symbols, shortest, longest = (x[rows] for x in (active, symbols, shortest, longest))
    return found


@torch.inference_mode()
def beam_search(
    tasks: Sequence[Translate],
    source: Tensor,
    source_mask: Tensor,
    begin: int,
    end: int,
    beam: int = 20,
    best: int = 1,
    limits: Limits = DEFAULT,
    length_penalty: float = 0.0,
    never: Collection[int] = (),
) -> list[list[Hypothesis]]:
    """Return the best targets found for each source, in falling order of score / length^length_penalty.

    At each step, every hypothesis is extended by every symbol. Among the K best extensions of a sentence, those with
    the end symbol are finished and kept. The K best of the others continue. A sentence is done when it has K finished
    hypotheses, or when no other hypothesis can become one of the best. Rows of sentences that are done are no longer
    computed.

    With ``length_penalty=0`` and K at least the number of all hypotheses of any length, the search is exhaustive.

    Args:
        tasks: trained networks in evaluation mode. The probabilities of several networks are averaged.
        source: (B, S) int64 symbols, the last one of each source its end symbol.
        source_mask: (B, S) bool, False on padding.
        begin: symbol that is read before the first one.
        end: symbol that ends a target.
        beam: K.
        best: number of targets for each source, at most K. Fewer are returned if the search finds fewer.
        limits: lengths of the targets that are considered. At the greatest length, a hypothesis must end.
        length_penalty: 0 for sums of log-probabilities, 1 for their mean per symbol, including the end symbol.
        never: symbols that no target contains, such as padding.

    Raises:
        UserError: if an option is out of its range, or see ``Networks``.
    """
    check_search(beam, best, length_penalty)
    networks = Networks(tasks)
    networks.read(source, source_mask)
    shortest, longest = limits.lengths(source_mask)
    finished: list[list[tuple[float, Hypothesis]]] = [[] for _ in source]
    active = torch.arange(len(source), device=source.device)
    scores = torch.zeros(len(source), 1, dtype=torch.float64, device=source.device)  # (sentences, hypotheses)
    symbols = torch.full((len(source), 1, 1), begin, device=source.device)  # (sentences, hypotheses, length + 1)
    while len(active):
        (A, W), length = scores.shape, symbols.shape[-1] - 1
        log_p = _allowed(
            networks.step(symbols[:, :, -1].flatten()), length,
            shortest.repeat_interleave(W), longest.repeat_interleave(W), end, never,
        )  # fmt: skip
        # A hypothesis has only one extension that ends, so its best 2 K include the K best that continue. Sums are
        # float64.
        values, choices = log_p.topk(min(2 * beam, log_p.shape[-1]))
        extended = (scores[:, :, None] + values.unflatten(0, (A, W))).flatten(1)
        top, places = extended.topk(min(2 * beam, extended.shape[1]))
        origins, added = places // values.shape[-1], choices.view(A, -1).gather(1, places)
        for row, b in enumerate(active.tolist()):
            for place in (added[row, :beam] == end).nonzero()[:, 0].tolist():
                if (score := float(top[row, place])) > -math.inf:
                    target = symbols[row, int(origins[row, place]), 1:].tolist()
                    finished[b].append((score / (length + 1) ** length_penalty, Hypothesis(target, score)))
        # The K best that continue, in order. If a sentence has fewer, impossible ones fill the places.
        top = top.masked_fill(added == end, -torch.inf)
        scores, order = top.sort(dim=-1, descending=True, stable=True)
        width = max(1, min(beam, int((scores > -torch.inf).sum(1).max())))
        scores, order = scores[:, :width], order[:, :width]
        origins, added = origins.gather(1, order), added.gather(1, order)
        # Upper bound: a sum of log-probabilities only falls, and the greatest length divides it by the most.
        reachable = scores[:, 0] / (longest + 1.0) ** length_penalty
        going = torch.tensor(
            [
                len(finished[b]) < beam and reach > _bar(finished[b], best)
                for b, reach in zip(active.tolist(), reachable.tolist(), strict=True)
            ],
            device=source.device,
        )
        kept = going.nonzero()[:, 0]
        rows = (kept[:, None] * W + origins[kept]).flatten()
        networks.select(rows, contexts=width != W or len(kept) < A)
        symbols = torch.cat([symbols[kept[:, None], origins[kept]], added[kept][:, :, None]], dim=-1)
        active, scores, shortest, longest = (x[kept] for x in (active, scores, shortest, longest))
    ranked = [sorted(each, key=lambda scored: scored[0], reverse=True)[:best] for each in finished]
    return [[hypothesis for _, hypothesis in each] for each in ranked]


def check_search(beam: int, best: int, length_penalty: float) -> None:
    """Raise UserError if an option of ``beam_search`` is out of its range."""
    check_at_least_one(beam=beam, best=best)
    if best > beam:
        raise UserError(f"best must be at most beam={beam}, got {best}. Raise beam, or lower best.")
    if not 0 <= length_penalty < math.inf:
        raise UserError(f"length_penalty must be 0 or more and finite, got {length_penalty}.")


def _allowed(log_p: Tensor, length: int, shortest: Tensor, longest: Tensor, end: int, never: Collection[int]) -> Tensor:
    """Return log p (R, V) with -inf for symbols that cannot follow a target of this length in the row's limits (R,)."""
    log_p = log_p.clone()
    log_p[:, list(never)] = -torch.inf
    log_p[length < shortest.minimum(longest), end] = -torch.inf
    must_end = length >= longest
    last = log_p[must_end, end]
    log_p[must_end] = -torch.inf
    log_p[must_end, end] = last
    return log_p


def _bar(finished: list[tuple[float, Hypothesis]], best: int) -> float:
    """Return the score that a hypothesis must exceed to become one of the best; -inf while fewer are finished."""
    return sorted((ranked for ranked, _ in finished), reverse=True)[best - 1] if len(finished) >= best else -math.inf
