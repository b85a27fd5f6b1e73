"""A call of ``torch.nn.LSTM`` that works under autocast on every CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gridlstm.engine.operands import autocast_type


def run_lstm(lstm: nn.Module, x: Tensor | PackedSequence, state: tuple[Tensor, ...] | None = None) -> Any:
    """Return ``lstm(x, state)`` of a ``torch.nn.LSTM``, in float32 if the CPU's kernel does not have autocast's type.

    The kernel cannot be trained in float16, and some CPUs, such as those with only AVX2, cannot multiply in bfloat16.
    There the kernel raises an error for that type, while PyTorch's other operations convert.
    """
    data = x.data if isinstance(x, PackedSequence) else x
    lowered = autocast_type(data)
    if data.device.type != "cpu" or lowered is None:
        return lstm(x, state)
    if lowered == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return lstm(x, state)
    with torch.autocast("cpu", enabled=False):
        return lstm(x.float(), None if state is None else tuple(part.float() for part in state))
