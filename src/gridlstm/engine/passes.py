"""Share what all hand-written forward and backward passes need: saved tensors, checks and settings."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from gridlstm.engine.fused import pointwise_step, using_step
from gridlstm.errors import UserError

as_it_is = torch.compiler.disable(
    reason="buffers are filled in place, partly by compiled C. Remove fullgraph, or use sweep=reference"
)
"""Decorator for functions that torch.compile must run uncompiled."""


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Keep tensors, and the pointwise step in use, for the backward pass."""
    ctx.dtypes = [None if x is None else x.dtype for x in tensors]
    ctx.step = pointwise_step()
    ctx.save_for_backward(*tensors)


def saved(ctx: Any) -> list[Any]:
    """Return the tensors of ``save``. Hooks may have changed their types, which are restored, and their strides."""
    return [x if x is None else x.to(dtype) for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]


def backward_pass(what_has: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a backward pass after ``save``.

    It runs without autocast, as its forward pass, and with the pointwise step of its forward pass: steps differ in what
    they leave in Z.

    Args:
        what_has: beginning of the errors of ``check_backward``.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @as_it_is
        @wraps(function)
        def run(ctx: Any, *grads: Tensor) -> Any:
            check_backward(what_has, grads)
            same_step = nullcontext() if ctx.step == pointwise_step() else using_step(ctx.step)
            with torch.autocast(grads[0].device.type, enabled=False), same_step:
                return function(ctx, *grads)

        return run

    return decorate


def check_backward(what_has: str, grads: Sequence[Tensor]) -> None:
    """Raise UserError for second derivatives and batched gradients, which hand-written backward passes lack."""
    if torch.is_grad_enabled():
        raise UserError(f"{what_has} no second derivatives. Use sweep=reference to differentiate twice.")
    if any(map(torch._C._functorch.is_legacy_batchedtensor, grads)):
        raise UserError(f"{what_has} no batched gradients (is_grads_batched, vectorize=True). Use sweep=reference.")
