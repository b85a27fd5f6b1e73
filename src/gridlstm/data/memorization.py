"""Memorization of a random sequence (section 4.2)."""

import torch
from torch import Tensor

from gridlstm.data.base import Batch
from gridlstm.data.counter import random_integers
from gridlstm.data.generated import GeneratedData
from gridlstm.data.spec import Spec


class MemorizationData(GeneratedData):
    """Random strings of symbols to read, then to write unchanged.

    The example has three symbols a, b, c of an alphabet of any size. One more symbol, "-", has index 0::

        inputs  - a b c - - - -
        targets - - - - a b c -
        answer  . . . . x x x .

    With a delay of 2, "?" marks the time to answer, so that the network must remember but need not count. This symbol
    has the last index, alphabet + 1::

        inputs  - a b c - - ? - - -
        targets - - - - - - a b c -
        answer  . . . . . . x x x .

    Each step has one symbol, T = 2 * length + delay + 2. The loss covers every step, including "-" (the paper does not
    say which steps count). Accuracy covers the answer.

    Args:
        length: symbols to remember; 20 in the paper.
        alphabet: distinct symbols; 64 in the paper.
        delay: steps between the string and the answer; 0 in the paper.
        batch_size, seed, num_val, num_test: see ``GeneratedData``.
    """

    def __init__(
        self,
        length: int,
        alphabet: int,
        batch_size: int,
        seed: int,
        delay: int = 0,
        num_val: int = 100,
        num_test: int = 1000,
    ) -> None:
        super().__init__(batch_size, seed, num_val, num_test)
        for name, value, least in (("length", length, 1), ("alphabet", alphabet, 2), ("delay", delay, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        self.length = length
        self.alphabet = alphabet
        self.delay = delay

    @property
    def spec(self) -> Spec:
        symbols = self.alphabet + (2 if self.delay else 1)
        steps = 2 * self.length + self.delay + 2
        return Spec(input_size=symbols, output_size=self.alphabet + 1, sequence_length=steps)

    def generate(self, key: tuple[int, ...], index: Tensor) -> Batch:
        n, answer_from = self.length, self.length + self.delay + 1
        symbols = random_integers(key, index, n, self.alphabet) + 1  # (B, n)
        inputs = symbols.new_zeros(len(index), self.spec.sequence_length)
        targets = inputs.clone()
        inputs[:, 1 : n + 1] = symbols
        if self.delay:
            inputs[:, answer_from] = self.alphabet + 1
        targets[:, answer_from : answer_from + n] = symbols
        everything = torch.ones_like(inputs, dtype=torch.bool)
        return Batch(inputs, targets, everything, answer_mask=targets != 0, reset=everything[:, 0])
