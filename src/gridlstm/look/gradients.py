"""Gradients of a loss at the last step with respect to each earlier step and each layer: norms of dL_T/dh_i.

These are the contributions of Pascanu et al. 2013 (arXiv 1211.5063), computed exactly by automatic differentiation.

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
"""The hidden and memory vectors among the fields of a state. A clock is neither."""


class Contributions(NamedTuple):
    """Norms, averaged over rows; element i belongs to step or layer i."""

    h: Tensor
    """norms of dL_T/dh_i"""
    m: Tensor | None
    """norms of dL_T/dm_i; None in a network without memory"""


def through_time(model: SequenceModel, head: nn.Module, x: Tensor, targets: Tensor) -> Contributions:
    """Return contributions of the state after i steps, i = 0 (read by the first step) to T - 1 (read by the last).

    h_i and m_i hold all layers and count as independent: dL_T/dh_i is the gradient through the h that step i + 1 reads.
    For a recurrent highway network, h is s.

    Args:
        head: read-out of y, (B, output_size) -> (B, classes).
        x: (B, T) symbols or (B, T, input_size).
        targets: (B,) classes of the last step; L_T is the cross-entropy of each row.

    Raises:
        UserError: if the model's state does not consist of hidden and memory vectors.
    """
    state: Any = model.initial_state(len(x))
    names = _VECTORS.get(getattr(state, "_fields", ()))
    if names is None:
        raise UserError(
            f"{type(model).__name__} has no gradients through time. Expected a model whose state consists of hidden "
            f"(and memory) vectors."
        )
    state = state._replace(**{name: getattr(state, name).requires_grad_() for name in names})
    states = []
    for step in range(x.shape[1]):
        states.append([getattr(state, name) for name in names])
        y, state = model(x[:, step : step + 1], state)
    loss = F.cross_entropy(head(y[:, -1]), targets, reduction="sum")  # rows are independent: each gets its own gradient
    leaves = [leaf for each in states for leaf in each]
    gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return _norms([gradients[i : i + len(names)] for i in range(0, len(leaves), len(names))], rows=1)


def through_depth(model: nn.Module, head: nn.Module, x: Tensor, targets: Tensor) -> Contributions:
    """Return contributions of the output of each layer at the last step; element i belongs to layer i + 1.

    Args:
        head, targets: as in ``through_time``.
        x: as in ``through_time``, or (B, input_size) for a network without time.

    Raises:
        UserError: if the model does not expose its layers.
    """
    state = None
    if isinstance(model, SequenceModel):
        with torch.no_grad():  # gradients with respect to the last step do not need the steps before
            state = model(x[:, :-1])[1] if x.shape[1] > 1 else model.initial_state(len(x))
        x = x[:, -1:]
    y, passed = _layers(model, x, state)
    loss = F.cross_entropy(head(y), targets, reduction="sum")
    leaves = [leaf for each in passed for leaf in each]
    gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return _norms([gradients[i : i + 2] for i in range(0, len(leaves), 2)], rows=0)


def _layers(model: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, list[HiddenMemory]]:
    """Return y (B, output_size) of one step, and the output of each layer."""
    if isinstance(model, Recurrent):
        run = getattr(torch, model.layers.mode.lower())
        y, passed = model.input(x), []
        for h, weights in zip(state.h, model.layers.all_weights, strict=True):
            y, _ = run(y, h[None], weights, model.layers.bias, 1, 0.0, False, False, True)
            passed.append(HiddenMemory(y, y.new_zeros(*y.shape[:-1], 0).requires_grad_()))
        return y[:, -1], passed
    if isinstance(model, RecurrentHighway):  # its layers are between one step and the next
        s, entering, passed = state.s[0], model.from_below(model.input(x))[:, 0], []
        for weight, bias in zip(model.weight, model.bias, strict=True):
            z_h, z_t = (F.linear(s, weight, bias) + entering).chunk(2, dim=-1)
            s = s + z_t.sigmoid() * (z_h.tanh() - s)
            passed.append(HiddenMemory(s, s.new_zeros(len(s), 0).requires_grad_()))
            entering = torch.zeros_like(entering)  # only the first layer reads the input
        return s, passed
    with watching(model) as seen:
        y = model(x) if isinstance(model, VectorModel) else model(x, state)[0][:, -1]
    upward = seen["depth" if "depth" in seen else "time"]
    # A stacked LSTM's memory does not reach the layer above, and an empty memory has no gradient.
    remembers = "depth" in seen and upward.calls[0].m.shape[-1] > 0
    return y, [HiddenMemory(h, m if remembers else h.new_zeros(len(h), 0).requires_grad_()) for _, h, m in upward.calls]


def _norms(gradients: Sequence[Sequence[Tensor]], rows: int) -> Contributions:
    """Return norms over all axes except the rows."""

    def norm(part: int) -> Tensor:
        flat = [each[part].movedim(rows, 0).flatten(1) for each in gradients]
        return torch.stack([each.norm(dim=1).mean() for each in flat])

    has_memory = len(gradients[0]) > 1 and gradients[0][1].numel() > 0
    return Contributions(norm(0), norm(1) if has_memory else None)
