"""What is chosen by measuring this machine. Choices change speed, and results by float32 rounding alone.

A run that must repeat bit for bit stores ``current()`` in its checkpoint and calls ``force`` with it when it resumes;
ranks of one job call ``force`` with the first rank's.
"""

import logging
from dataclasses import dataclass

from gridlstm.engine import fused, matmul
from gridlstm.engine.fused import PointwiseStep
from gridlstm.engine.matmul import Product

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """Plain values, so that ``dataclasses.asdict`` fits into a checkpoint.

    Args:
        product: of float32 matrices on the CPU.
        pointwise: of LSTM cells in float32 on the CPU.
    """

    product: Product
    pointwise: PointwiseStep


def current() -> Choices:
    """The choices in use; measures what has not been measured."""
    return Choices(matmul.product(), fused.pointwise_step())


def force(choices: Choices) -> None:
    """Uses these from now on. What this machine does not have is logged and replaced."""
    matmul.force_product(choices.product)
    fused.force_pointwise_step(choices.pointwise)
    if current() != choices:
        log.warning("asked for %s, this machine offers %s: results will differ by rounding", choices, current())
