"""The sizes of data sets: what a model is made for, and what it is called with.

Shape legend: B batch rows, T time steps, S time steps of a source.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor


class DataSpec(ABC):
    """The sizes of a data set: what a model is made for, and what it is called with."""

    @property
    @abstractmethod
    def model_options(self) -> dict[str, int]:
        """The sizes that a model's constructor takes, by the names of its arguments."""

    @abstractmethod
    def example(self, rows: int, length: int | None = None) -> tuple[Tensor, ...]:
        """Return zeros in the shapes of one batch, the arguments of a task's call.

        Args:
            length: time steps; None for those of a batch.
        """

    unit: str = "rows"
    """The name of one time step in the log, or of one row where that is one whole."""

    @property
    def length(self) -> int | None:
        """Time steps of a batch, along which costs grow in proportion; None where a row is one whole."""
        return None

    @property
    @abstractmethod
    def row_size(self) -> int:
        """Symbols or numbers of one row."""

    @property
    @abstractmethod
    def widest(self) -> int:
        """The larger of the numbers of different inputs and of outputs."""

    @abstractmethod
    def __str__(self) -> str:
        """Return what a row holds, such as "42 steps"."""


@dataclass(frozen=True)
class Spec(DataSpec):
    """Sequences of symbols or of vectors, with a class at every step."""

    input_size: int
    """Number of input symbols, or features per step."""
    output_size: int
    """Number of classes predicted at each step."""
    sequence_length: int
    """Time steps of one batch (T)."""
    test_lengths: Mapping[str, int] = field(default_factory=dict)
    """Names of the lengths by which the test is broken down, where it has several: {"20_digits": 64}."""
    longest_test: int = 0
    """Time steps of the longest sequences of the test, where that has longer ones than the training."""
    unit: str = "symbols"
    symbols: bool = True
    """Inputs are int64 symbols (B, T); False for floats (B, T, input_size)."""

    @property
    def model_options(self) -> dict[str, int]:
        return {"input_size": self.input_size}

    @property
    def length(self) -> int:
        return self.sequence_length

    def example(self, rows: int, length: int | None = None) -> tuple[Tensor, ...]:
        shape = (rows, length or self.sequence_length)
        return (torch.zeros(shape, dtype=torch.int64) if self.symbols else torch.zeros(*shape, self.input_size),)

    @property
    def row_size(self) -> int:
        steps = max(self.sequence_length, self.longest_test, *self.test_lengths.values())
        return steps if self.symbols else steps * self.input_size

    @property
    def widest(self) -> int:
        return max(self.input_size, self.output_size)

    def __str__(self) -> str:
        return f"{self.sequence_length} {self.unit}"


@dataclass(frozen=True)
class ImageSpec(DataSpec):
    """Images with one class each."""

    channels: int
    height: int
    width: int
    classes: int

    unit = "images"

    @property
    def model_options(self) -> dict[str, int]:
        return {"channels": self.channels, "height": self.height, "width": self.width}

    def example(self, rows: int, length: int | None = None) -> tuple[Tensor, ...]:
        return (torch.zeros(rows, self.channels, self.height, self.width),)

    @property
    def row_size(self) -> int:
        return prod((self.channels, self.height, self.width))

    @property
    def widest(self) -> int:
        return max(self.channels, self.classes)

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width} pixels"


@dataclass(frozen=True)
class PairSpec(DataSpec):
    """Pairs of sequences of symbols: a source that is read, and a target that is predicted symbol by symbol.

    Its inputs are (source (B, S), source mask (B, S), target one step late (B, T)).
    """

    source_size: int
    """Number of symbols of the source."""
    target_size: int
    """Number of symbols of the target."""
    source_length: int
    """Time steps of a usual source (S)."""
    target_length: int
    """Time steps of a usual target (T)."""

    unit = "pairs"

    @property
    def model_options(self) -> dict[str, int]:
        return {"source_size": self.source_size, "target_size": self.target_size}

    def example(self, rows: int, length: int | None = None) -> tuple[Tensor, ...]:
        source = torch.zeros(rows, self.source_length, dtype=torch.int64)
        return source, torch.ones_like(source, dtype=torch.bool), source.new_zeros(rows, self.target_length)

    @property
    def row_size(self) -> int:
        return self.source_length + self.target_length

    @property
    def widest(self) -> int:
        return max(self.source_size, self.target_size)

    def __str__(self) -> str:
        return f"{self.source_length} + {self.target_length} symbols"
