"""Choices made by measuring this machine. They change speed, and results only by float32 rounding.

To repeat bit for bit, a run stores ``current()`` in its checkpoint and passes it to ``force`` when it resumes; the
ranks of one job pass the first rank's choices.
"""

import logging
from dataclasses import dataclass

from gridlstm.engine import fused, matmul
from gridlstm.engine.fused import PointwiseStep
from gridlstm.engine.matmul import Product

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """The choices as plain values, so that ``dataclasses.asdict`` fits into a checkpoint.

    Args:
        product: matrix product for float32 on the CPU.
        pointwise: pointwise step of LSTM cells; "triton" is never measured, the user chooses it.
    """

    product: Product
    pointwise: PointwiseStep


def current() -> Choices:
    """Return the choices in use, after measuring any that are not yet measured."""
    return Choices(matmul.product(), fused.pointwise_step())


def force(choices: Choices) -> None:
    """Use these choices from now on; log and replace any that this machine does not support."""
    matmul.force_product(choices.product)
    fused.force_pointwise_step(choices.pointwise)
    if current() != choices:
        log.warning("this machine has %s instead of %s: results will differ by rounding", current(), choices)
