"""Types and devices of the operands of a matrix product."""

import torch
from torch import Tensor

from gridlstm.errors import UserError


def autocast_type(like: Tensor) -> torch.dtype | None:
    """Return the type to which autocast converts tensors like this one for products; None if it keeps their type."""
    device = like.device.type
    if like.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def check_device(name: str, x: Tensor, weight: Tensor) -> None:
    """Raise UserError unless both are on one device."""
    if x.device != weight.device:
        raise UserError(f"expected {name} on {weight.device} like the weights, got {x.device}. Move it with .to(...).")


def check_factor(name: str, x: Tensor, weight: Tensor) -> None:
    """Raise UserError unless both are on one device and have one type, or two types that autocast converts to one."""
    check_device(name, x, weight)
    if x.dtype == weight.dtype:
        return
    if not (x.is_floating_point() and autocast_type(x) and autocast_type(weight)):
        raise UserError(
            f"expected {name} of type {weight.dtype} like the weights, got {x.dtype}. Convert it with .to(...)."
        )
