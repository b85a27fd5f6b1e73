"""Draw a text from a language model, symbol by symbol."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gridlstm.errors import UserError
from gridlstm.tasks.sequence import SequenceTask

_PIECE = 1000
"""Symbols of the prime read at a time: for a whole book, attention and the logits of many words would exceed the
memory."""


def next_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Return (C,) probabilities of (C,) logits: p_i proportional to exp(logits_i / temperature) for kept symbols.

    Args:
        logits: logits of the next symbol.
        temperature: above 0; 1 for the probabilities of the model.
        top_k: keep only the k most probable symbols (Fan et al. 2018).
        top_p: keep the fewest most probable symbols whose probabilities sum to at least p (Holtzman et al. 2020). With
            ``top_k``, choose them among the symbols that it keeps.

    Raises:
        UserError: a value is out of range.
    """
    if not 0 < temperature < math.inf:
        raise UserError(
            f"temperature must be above 0 and finite, got {temperature}. Use argmax=true for the most probable symbol."
        )
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}.")
    # Subtract before the division, which could overflow.
    p = torch.softmax((logits.double() - logits.max()) / temperature, dim=-1)
    ranked, order = p.sort(descending=True)
    if top_k is not None:
        ranked[top_k:] = 0
    if top_p is not None:
        # A symbol is dropped if those before it suffice.
        before = ranked.cumsum(0) - ranked
        ranked[before >= top_p * ranked.sum()] = 0
    return torch.zeros_like(p).scatter(0, order, ranked / ranked.sum())


@torch.inference_mode()
def sample(
    task: SequenceTask,
    prime: Sequence[int],
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    argmax: bool = False,
) -> Iterator[int]:
    """Yield symbols without end, each drawn given all before it: x_t ~ p(. | prime, x_1 ... x_{t-1}).

    Args:
        task: trained language model.
        prime: symbols that are read first, at least one.
        generator: random generator of the draws, on the CPU.
        temperature, top_k, top_p: see ``next_probabilities``.
        argmax: yield the most probable symbol instead of drawing one.

    Raises:
        UserError: a value is out of range, or the network's output is not a number.
    """
    device = next(task.parameters()).device
    state = None
    for piece in torch.tensor([list(prime)], device=device).split(_PIECE, dim=1):
        logits, state = task(piece, state)
    while True:
        last = logits[0, -1].cpu()
        if last.isnan().any():
            raise UserError("the network's output is not a number, as after a diverged training. Use another ckpt.")
        if argmax:
            symbol = int(last.argmax())
        else:
            symbol = int(torch.multinomial(next_probabilities(last, temperature, top_k, top_p), 1, generator=generator))
        yield symbol
        logits, state = task(torch.tensor([[symbol]], device=device), state)
