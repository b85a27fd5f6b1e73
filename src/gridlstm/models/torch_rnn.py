"""A call of ``torch.nn.RNN``, ``GRU`` or ``LSTM`` that computes in autocast's type or in float32, on every device."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from gridlstm.engine.operands import autocast_type


def run_rnn(layers: nn.Module, x: Tensor | PackedSequence, state: Tensor | tuple[Tensor, ...] | None = None) -> Any:
    """Return ``layers(x, state)``, in float32 if PyTorch's kernel does not have autocast's type."""
    data = x.data if isinstance(x, PackedSequence) else x
    device, lowered = data.device.type, autocast_type(data)
    if lowered is None or kernel_has(layers, device, lowered):
        return layers(x, state)
    with torch.autocast(device, enabled=False):
        return layers(x.float(), None if state is None else tree_map(Tensor.float, state))


def kernel_has(layers: nn.Module, device: str, lowered: torch.dtype) -> bool:
    """Return True if autocast runs the kernel of these layers in this type.

    Under any autocast cuDNN's kernels compute in float16, in which small gradients vanish unless the loss is scaled, as
    ``trainer.precision=16-mixed`` does. On a CPU, LSTM's kernel cannot be trained in float16, and raises an error in
    bfloat16 where the processor cannot multiply in it; the others are loops of operations that autocast converts.
    """
    if device == "cuda":
        return lowered == torch.float16
    if device == "cpu" and isinstance(layers, nn.LSTM):
        return lowered == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True
