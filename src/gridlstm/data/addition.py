"""Addition of two numbers, digit by digit (section 4.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.data.base import Batch
from gridlstm.data.counter import random_words
from gridlstm.data.generated import TEST, TRAIN, GeneratedData
from gridlstm.data.spec import Spec


class AdditionData(GeneratedData):
    """Two numbers of n digits to read, then their sum to write, each with the most significant digit first.

    The examples are 123 + 899 = 1022 and, on the right, the end of 111 + 222 = 333, whose sum is one digit shorter.
    Symbol 0 is "-", and digit d is symbol d + 1::

        inputs  - 1 2 3 - 8 9 9 - - - - -        - - - - -
        targets - - - - - - - - 1 0 2 2 -        3 3 3 - -
        answer  . . . . . . . . x x x x .        x x x x .

    The first digit of the sum is due at the step after the second number. T = 3 n + 4 for n digits: 49 for the paper's
    15. No number begins with 0. The loss covers every step of a sample, including "-" (the paper does not say which
    steps count). Accuracy covers the n + 1 columns of the sum, where "-" ends a shorter sum.

    Args:
        digits: n of every validation sample, and the largest n of training samples; 15 in the paper.
        min_digits: smallest n of training samples, which draw n uniformly up to ``digits``; null for ``digits``.
        test_digits: values that n takes in turn in test samples, reported separately if there are several; [] for
            ``digits``.
        leading_zero: always write n + 1 digits of the sum, with a leading 0 if the sum has only n digits.
        curriculum: training samples after which one more digit is allowed, starting at ``min_digits``; 0 allows all.
        batch_size, seed, num_val, num_test: see ``GeneratedData``. A small problem space is soon exhausted: training on
            280,000 samples covers 29 % of the 810,000 problems of 3 digits, and the same share of evaluation problems.
    """

    def __init__(
        self,
        digits: int,
        batch_size: int,
        seed: int,
        min_digits: int | None = None,
        test_digits: Sequence[int] = (),
        leading_zero: bool = False,
        curriculum: int = 0,
        num_val: int = 100,
        num_test: int = 1000,
    ) -> None:
        super().__init__(batch_size, seed, num_val, num_test, curriculum)
        if digits < 1:
            raise ValueError(f"digits must be at least 1, got {digits}.")
        least = digits if min_digits is None else min_digits
        if not 1 <= least <= digits:
            raise ValueError(f"min_digits must be from 1 to digits={digits}, got {least}.")
        if any(type(n) is not int or n < 1 for n in test_digits):
            raise ValueError(f"test_digits must be whole numbers of at least 1, got {list(test_digits)}.")
        if num_test < len(test_digits):
            raise ValueError(
                f"num_test must be at least {len(test_digits)}, one for each of the test_digits, got {num_test}."
            )
        if curriculum and least == digits:
            raise ValueError(f"curriculum={curriculum} needs min_digits below digits={digits}, got {least}.")
        self.digits = digits
        self.min_digits = least
        self.test_digits = list(test_digits) or [digits]
        self.leading_zero = leading_zero
        self.curriculum_samples = curriculum * (digits - least)

    @property
    def spec(self) -> Spec:
        lengths = {f"{n}_digits": _steps(n) for n in self.test_digits} if len(self.test_digits) > 1 else {}
        return Spec(
            input_size=11,
            output_size=11,
            sequence_length=_steps(self.digits),
            test_lengths=lengths,
            longest_test=_steps(max(self.test_digits)),
        )

    def generate(self, key: tuple[int, ...], index: Tensor) -> Batch:
        most = max(self.test_digits) if key[1] == TEST else self.digits
        words = random_words(key, index, 2 * most + 1)
        n = self._number_of_digits(key[1], index, words[:, :1])  # (B, 1)
        a, b = self._number(words[:, 1 : most + 1], n), self._number(words[:, most + 1 :], n)
        total = add(a, b)  # (B, most + 1)
        step = torch.arange(_steps(most), device=index.device)  # (T,)
        written = n + (total.gather(1, n) > 0) if not self.leading_zero else n + 1  # (B, 1) digits of the sum
        # Digit 0 is the last of a number, so the digit at a step is counted from the end of the number.
        inputs = _place(a, n - step, n) + _place(b, 2 * n + 1 - step, n)
        targets = _place(total, 2 * n + 1 + written - step, written)
        answer = (step >= 2 * n + 2) & (step < 3 * n + 3)
        return Batch(inputs, targets, step < 3 * n + 4, answer, reset=torch.ones_like(index, dtype=torch.bool))

    def _number_of_digits(self, split: int, index: Tensor, word: Tensor) -> Tensor:
        if split == TEST:
            return torch.tensor(self.test_digits, device=index.device)[index % len(self.test_digits)][:, None]
        if split != TRAIN:
            return torch.full_like(word, self.digits)
        choices = torch.full_like(word, self.digits - self.min_digits + 1)
        if self.curriculum:
            choices = torch.minimum(choices, 1 + index[:, None] // self.curriculum)
        return self.min_digits + word % choices

    def _number(self, words: Tensor, n: Tensor) -> Tensor:
        """Return (B, most) digits, the least significant first: n digits, then zeros."""
        position = torch.arange(words.shape[1], device=words.device)
        first = position == n - 1
        digits = torch.where(first, 1 + words % 9, words % 10)
        return digits * (position < n)


def add(a: Tensor, b: Tensor) -> Tensor:
    """Return the (B, n + 1) digits of the sums of numbers (B, n), the least significant digit first."""
    columns = F.pad(a + b, (0, 1))
    # A column of 9 passes an incoming carry on. The carry out of any other column does not depend on the carry in. So
    # the carry out of a column that is 9 equals the carry out of the last column before it that is not 9.
    position = torch.arange(columns.shape[1], device=a.device)
    decider = torch.where(columns != 9, position, -1).cummax(dim=1).values
    carry_out = (columns > 9).gather(1, decider.clamp(min=0)) & (decider >= 0)
    carry_in = F.pad(carry_out[:, :-1], (1, 0))
    return (columns + carry_in) % 10


def _steps(digits: int) -> int:
    return 3 * digits + 4


def _place(number: Tensor, which: Tensor, length: Tensor) -> Tensor:
    """Return (B, T) symbols: 1 plus digit ``which`` (B, T) of a number, or 0 if the number has no such digit."""
    inside = (which >= 0) & (which < length)
    return (number.gather(1, which.clamp(0, number.shape[1] - 1)) + 1) * inside
