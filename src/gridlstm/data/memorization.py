"""Memorization of a random sequence (section 4.2)."""

import torch
from torch import Tensor

from gridlstm.data.base import Batch, Spec
from gridlstm.data.counter import random_integers
from gridlstm.data.generated import GeneratedData
from gridlstm.errors import UserError


class MemorizationData(GeneratedData):
    """Read a random string of symbols, then write it out unchanged.

    Three symbols a, b, c of an alphabet of any size; "-" is one symbol more, index 0::

        inputs  - a b c - - - -
        targets - - - - a b c -
        answer  . . . . x x x .

    One symbol a step, T = 2 * length + 2. The loss covers every step, "-" included (the paper does not say); accuracy
    is judged on the answer.

    Args:
        length: symbols to remember; the paper's 20.
        alphabet: distinct symbols; the paper's 64.
        batch_size, seed, num_val, num_test: see ``GeneratedData``.
    """

    def __init__(
        self, length: int, alphabet: int, batch_size: int, seed: int, num_val: int = 100, num_test: int = 1000
    ) -> None:
        super().__init__(batch_size, seed, num_val, num_test)
        if length < 1 or alphabet < 2:
            raise UserError(f"memorization needs task.length >= 1 and task.alphabet >= 2, got {length} and {alphabet}.")
        self.length = length
        self.alphabet = alphabet

    @property
    def spec(self) -> Spec:
        return Spec(input_size=self.alphabet + 1, output_size=self.alphabet + 1, sequence_length=2 * self.length + 2)

    def generate(self, key: tuple[int, ...], index: Tensor) -> Batch:
        n = self.length
        symbols = random_integers(key, index, n, self.alphabet) + 1  # (B, n)
        inputs = symbols.new_zeros(len(index), 2 * n + 2)
        targets = inputs.clone()
        inputs[:, 1 : n + 1] = symbols
        targets[:, n + 1 : 2 * n + 1] = symbols
        everything = torch.ones_like(inputs, dtype=torch.bool)
        answer = targets != 0
        return Batch(inputs, targets, everything, answer, reset=everything[:, 0])
