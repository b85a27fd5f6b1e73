"""How much of a loss at the last step reaches each earlier step, and each layer: dL_T/dh_i and its norm.

The contributions of Pascanu et al. 2013 (arXiv 1211.5063), exact, by automatic differentiation.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.cell import HiddenMemory
from gridlstm.errors import UserError
from gridlstm.look.watch import watching
from gridlstm.models.base import SequenceModel, VectorModel
from gridlstm.models.recurrent import Recurrent
from gridlstm.models.recurrent_highway import RecurrentHighway

_VECTORS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("h",): ("h",),
    ("h", "m"): ("h", "m"),
    ("s",): ("s",),
    ("h", "clock"): ("h",),
}
"""By the names of what travels along time, which of it are hidden and memory vectors: a clock is none."""


class Contributions(NamedTuple):
    """Norms, the mean over rows; element i belongs to step or layer i."""

    h: Tensor
    """of dL_T/dh_i"""
    m: Tensor | None
    """of dL_T/dm_i; None in a network without memory"""


def through_time(model: SequenceModel, head: nn.Module, x: Tensor, targets: Tensor) -> Contributions:
    """Contributions of the state after i steps, i = 0 (what the first step reads) to T - 1 (what the last one reads).

    h_i and m_i hold all layers, and are taken as independent: dL_T/dh_i goes by way of the h that step i + 1 reads.
    The h of a recurrent highway network is its s.

    Args:
        head: read-out of y, (B, output_size) -> (B, classes).
        x: (B, T) symbols or (B, T, input_size).
        targets: (B,) classes of the last step; L_T is the cross-entropy of each row.

    Raises:
        UserError: the model's state is not made of hidden and memory vectors.
    """
    state: Any = model.initial_state(len(x))
    names = _VECTORS.get(getattr(state, "_fields", ()))
    if names is None:
        raise UserError(
            f"gradients through time need a model whose state is its hidden (and memory) vectors, and that of "
            f"{type(model).__name__} is not."
        )
    state = state._replace(**{name: getattr(state, name).requires_grad_() for name in names})
    states = []
    for step in range(x.shape[1]):
        states.append([getattr(state, name) for name in names])
        y, state = model(x[:, step : step + 1], state)
    loss = F.cross_entropy(head(y[:, -1]), targets, reduction="sum")  # a row's gradient is that of its own loss
    leaves = [leaf for each in states for leaf in each]
    gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return _norms([gradients[i : i + len(names)] for i in range(0, len(leaves), len(names))], rows=1)


def through_depth(model: nn.Module, head: nn.Module, x: Tensor, targets: Tensor) -> Contributions:
    """Contributions of what each layer passes up at the last step: element i is layer i + 1's, the last the top's.

    Args:
        head, targets: as of ``through_time``.
        x: the same, or (B, input_size) for a network without time.

    Raises:
        UserError: a kind of model whose layers cannot be seen.
    """
    state = None
    if isinstance(model, SequenceModel):
        with torch.no_grad():  # no layer's vector at the last step reaches into the steps before
            state = model(x[:, :-1])[1] if x.shape[1] > 1 else model.initial_state(len(x))
        x = x[:, -1:]
    y, passed = _layers(model, x, state)
    loss = F.cross_entropy(head(y), targets, reduction="sum")
    leaves = [leaf for each in passed for leaf in each]
    gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return _norms([gradients[i : i + 2] for i in range(0, len(leaves), 2)], rows=0)


def _layers(model: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, list[HiddenMemory]]:
    """y (B, output_size) of one step, and what each layer passes to the next."""
    if isinstance(model, Recurrent):
        run = getattr(torch, model.layers.mode.lower())
        y, passed = model.input(x), []
        for h, weights in zip(state.h, model.layers.all_weights, strict=True):
            y, _ = run(y, h[None], weights, model.layers.bias, 1, 0.0, False, False, True)
            passed.append(HiddenMemory(y, y.new_zeros(*y.shape[:-1], 0).requires_grad_()))
        return y[:, -1], passed
    if isinstance(model, RecurrentHighway):  # whose layers lie between one step and the next
        s, entering, passed = state.s[0], model.from_below(model.input(x))[:, 0], []
        for weight, bias in zip(model.weight, model.bias, strict=True):
            z_h, z_t = (F.linear(s, weight, bias) + entering).chunk(2, dim=-1)
            s = s + z_t.sigmoid() * (z_h.tanh() - s)
            passed.append(HiddenMemory(s, s.new_zeros(len(s), 0).requires_grad_()))
            entering = torch.zeros_like(entering)  # the first layer alone reads the input
        return s, passed
    with watching(model) as seen:
        y = model(x) if isinstance(model, VectorModel) else model(x, state)[0][:, -1]
    upward = seen["depth" if "depth" in seen else "time"]
    # A stacked LSTM's memory goes on along time, and not to the layer above; and what is empty depends on nothing.
    remembers = "depth" in seen and upward.calls[0].m.shape[-1] > 0
    return y, [HiddenMemory(h, m if remembers else h.new_zeros(len(h), 0).requires_grad_()) for _, h, m in upward.calls]


def _norms(gradients: Sequence[Sequence[Tensor]], rows: int) -> Contributions:
    """Norms over all axes but that of the rows."""

    def norm(part: int) -> Tensor:
        flat = [each[part].movedim(rows, 0).flatten(1) for each in gradients]
        return torch.stack([each.norm(dim=1).mean() for each in flat])

    has_memory = len(gradients[0]) > 1 and gradients[0][1].numel() > 0
    return Contributions(norm(0), norm(1) if has_memory else None)
