"""Parity of a string of bits given in one step (section 4 of the paper's first version)."""

from typing import Literal

import torch
from torch import Tensor

from gridlstm.data.base import Batch
from gridlstm.data.counter import random_words
from gridlstm.data.generated import TRAIN, GeneratedData
from gridlstm.data.spec import Spec

_HALF = 2**62
"""Half the range of ``random_words``."""


class ParityData(GeneratedData):
    """Strings of k bits, each given as one vector, with class 1 if the number of ones is odd, else 0.

    The example has four bits, and three of them are ones::

        inputs  [1 0 1 1]   one step, a vector of k numbers
        target  1

    Validation and test strings have uniform bits. The paper does not say how its strings are drawn. Long uniform
    strings give a weak gradient, because almost all have about k / 2 ones. With ``density="drawn"`` each training
    string first draws its own probability of a one, p ~ U(0, 1), so that every number of ones from 0 to k is equally
    frequent.

    Args:
        bits: k; 20 to 250 in the paper.
        density: density of ones in training strings: "half" for uniform strings, or "drawn".
        curriculum: training samples after which one more bit may be a one, starting with one bit; 0 allows all.
        batch_size, seed, num_val, num_test: see ``GeneratedData``.
    """

    def __init__(
        self,
        bits: int,
        batch_size: int,
        seed: int,
        density: Literal["half", "drawn"] = "drawn",
        curriculum: int = 0,
        num_val: int = 100,
        num_test: int = 1000,
    ) -> None:
        super().__init__(batch_size, seed, num_val, num_test, curriculum)
        if bits < 1:
            raise ValueError(f"bits must be at least 1, got {bits}.")
        if curriculum and bits == 1:
            raise ValueError(f"curriculum={curriculum} adds bit after bit, but bits=1 has only one. Remove it.")
        if density not in ("half", "drawn"):
            raise ValueError(f"density must be half or drawn, got {density!r}.")
        self.bits = bits
        self.density = density
        self.curriculum_samples = curriculum * (bits - 1)

    @property
    def spec(self) -> Spec:
        return Spec(input_size=self.bits, output_size=2, sequence_length=1, unit="strings", symbols=False)

    def generate(self, key: tuple[int, ...], index: Tensor) -> Batch:
        words = random_words(key, index, self.bits + 1)
        training = key[1] == TRAIN
        # Comparing with a uniform word makes the probability of a one uniform.
        below = words[:, :1] if training and self.density == "drawn" else _HALF
        ones = words[:, 1:] < below  # (B, k)
        if training and self.curriculum:
            ones &= torch.arange(self.bits, device=index.device) <= index[:, None] // self.curriculum
        targets = ones.sum(dim=1, keepdim=True) % 2  # (B, 1)
        everything = torch.ones_like(targets, dtype=torch.bool)
        inputs = ones.to(torch.get_default_dtype())[:, None]  # (B, 1, k)
        return Batch(inputs, targets, everything, everything, reset=everything[:, 0])
