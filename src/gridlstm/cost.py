"""Cost of a sequence model: parameters, state, arithmetic and memory.

Shape legend: B batch rows, T time steps.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from gridlstm.models.base import SequenceModel

aten = torch.ops.aten


@dataclass(frozen=True)
class Cost:
    """Cost of one sequence (B = 1).

    Attributes:
        parameters: trained numbers.
        state_size: numbers carried from one time step to the next.
        flops_per_step: floating-point operations of all matrix products (a multiplication and an addition are two) in
            the forward and the backward pass, per additional time step.
        saved_bytes_per_step: memory held between the forward and the backward pass, including the output, per
            additional time step.
    """

    parameters: int
    state_size: int
    flops_per_step: int
    saved_bytes_per_step: int


@dataclass(frozen=True)
class Pass:
    """Measured cost of one forward and backward pass.

    Attributes:
        flops: arithmetic of all matrix products.
        saved_bytes: memory held between the two passes, without parameters and input.
        peak_bytes: largest memory held at any time, including the gradients of the parameters.
    """

    flops: int
    saved_bytes: int
    peak_bytes: int


def cost(model: SequenceModel, input_size: int | None = None, steps: int = 8) -> Cost:
    """Run sequences of T = ``steps`` and 2 T through the model, forward and backward; the slope is the cost of a step.

    Costs that do not grow with T cancel. For a model whose cost is not linear in T, such as attention over all earlier
    steps, the slope holds only near T = ``steps``.

    Args:
        input_size: features of a step, as floats; None for symbols, whose projection is a look-up without arithmetic.
        steps: T; for a model with a periodic cost, a multiple of its period.
    """

    def x(T: int) -> Tensor:
        place = next(model.parameters())
        if input_size is None:
            return torch.zeros(1, T, dtype=torch.int64, device=place.device)
        return place.new_zeros(1, T, input_size)

    run_once(model, x(1))  # builds and caches whatever is needed once, so that it is not counted
    short, long = (run_once(model, x(T)) for T in (steps, 2 * steps))
    return Cost(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        state_size=sum(leaf.numel() for leaf in tree_leaves(model.initial_state(1))),
        flops_per_step=round((long.flops - short.flops) / steps),
        saved_bytes_per_step=round((long.saved_bytes - short.saved_bytes) / steps),
    )


def run_once(model: nn.Module, *x: Tensor) -> Pass:
    """Run a forward pass of ``model(*x)`` and a backward pass from all its outputs; discard the gradients."""
    trained = [p for p in model.parameters() if p.requires_grad]
    devices = [x[0].device] if x[0].device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.enable_grad(),
        FlopCounterMode(display=False, custom_mapping=_MORE_PRODUCTS) as flops,
        _AliveBytes() as memory,
    ):
        outputs = [leaf for leaf in tree_leaves(model(*x)) if leaf.requires_grad]
        saved = memory.alive
        torch.autograd.grad(outputs, trained, [torch.ones_like(y) for y in outputs], allow_unused=True)
        return Pass(flops.get_total_flops(), saved, memory.peak)


class _AliveBytes(TorchDispatchMode):
    """Counter of the bytes of all tensors made inside and still referenced, by autograd or anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in given or key in self._known:  # a view
                continue
            self._known.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._release, key, size)
        return out

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def _rnn_flops(x: Any, w_input: Any, w_hidden: Any, *_: Any, **__: Any) -> int:
    """Count torch's recurrent layer on the CPU: x (T, B, input), weights (gates, input) and (gates, hidden)."""
    return 2 * int(x[0] * x[1] * w_input[0] * (w_input[1] + w_hidden[1]))


_MORE_PRODUCTS: dict[Any, Callable[..., Any]] = {
    # Fused operations that torch's own counter ignores.
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda y, q, k, v, *_, **__: sdpa_backward_flop_count(y, q, k, v)
    ),
    aten.mkldnn_rnn_layer: _rnn_flops,
    aten.mkldnn_rnn_layer_backward: lambda *shapes, **options: 2 * _rnn_flops(*shapes, **options),
}
