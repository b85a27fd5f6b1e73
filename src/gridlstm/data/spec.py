"""Sizes of data sets, used to build models and to make example inputs for them.

Shape legend: B batch rows, T time steps, S time steps of a source.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor


class DataSpec(ABC):
    """Sizes of a data set, used to build a model and to make an example input for it."""

    @property
    @abstractmethod
    def model_options(self) -> dict[str, int]:
        """Sizes that a model's constructor takes, by argument name."""

    @abstractmethod
    def example(self, rows: int, length: int | None = None) -> tuple[Tensor, ...]:
        """Return zeros in the shapes of one batch: the arguments of a task's call.

        Args:
            rows: rows of the batch (B).
            length: time steps; None for the length of a batch.
        """

    unit: str = "rows"
    """Name of one time step in the log, or of one row without time steps."""

    @property
    def length(self) -> int | None:
        """Time steps of a batch (cost is proportional to them); None if rows have no time steps."""
        return None

    @property
    @abstractmethod
    def row_size(self) -> int:
        """Number of symbols or values of one row."""

    @property
    @abstractmethod
    def widest(self) -> int:
        """Larger of the number of distinct inputs and the number of outputs."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the contents of a row, such as "42 steps"."""


@dataclass(frozen=True)
class Spec(DataSpec):
    """Sizes of sequences of symbols or vectors, with a class at each step."""

    input_size: int
    """Number of input symbols, or features per step."""
    output_size: int
    """Number of classes predicted at each step."""
    sequence_length: int
    """Time steps of one batch (T)."""
    test_lengths: Mapping[str, int] = field(default_factory=dict)
    """Test lengths by name, if the test is broken down by length: {"20_digits": 64}."""
    longest_test: int = 0
    """Time steps of the longest test sequence, if it is longer than the training sequences."""
    unit: str = "symbols"
    symbols: bool = True
    """True if inputs are int64 symbols (B, T); False if they are floats (B, T, input_size)."""

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
    """Sizes of images with one class each, or with a class at every pixel."""

    channels: int
    height: int
    width: int
    classes: int
    """Classes of an image, or of a pixel."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in pictures, in the order of their numbers; () to show the numbers."""

    unit = "images"

    def __post_init__(self) -> None:
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"expected {self.classes} class_names or none, got {len(self.class_names)}.")

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
class VideoSpec(DataSpec):
    """Sizes of moving images, in which the frame after each frame is predicted."""

    channels: int
    height: int
    width: int
    frames: int
    """Frames that a network reads (T)."""

    unit = "frames"

    @property
    def model_options(self) -> dict[str, int]:
        return {"channels": self.channels, "height": self.height, "width": self.width}

    @property
    def length(self) -> int:
        return self.frames

    def example(self, rows: int, length: int | None = None) -> tuple[Tensor, ...]:
        return (torch.zeros(rows, length or self.frames, self.channels, self.height, self.width),)

    @property
    def row_size(self) -> int:
        return (self.frames + 1) * prod((self.channels, self.height, self.width))

    @property
    def widest(self) -> int:
        return self.channels

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.channels}x{self.height}x{self.width} pixels"


@dataclass(frozen=True)
class PairSpec(DataSpec):
    """Sizes of pairs of symbol sequences: the source is read, the target is predicted symbol by symbol.

    Inputs are (source (B, S), source mask (B, S), target one step late (B, T)).
    """

    source_size: int
    """Number of source symbols."""
    target_size: int
    """Number of target symbols."""
    source_length: int
    """Time steps of a typical source (S)."""
    target_length: int
    """Time steps of a typical target (T)."""

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
