"""The exception for errors that the user can fix. Any other exception is a bug and keeps its traceback."""

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import TypeGuard


class UserError(ValueError):
    """Invalid input or configuration.

    The message says what is wrong, what was expected and how to fix it. The command line prints only the message,
    without a traceback, and exits with status 1.
    """


def check_at_least_one(**sizes: object) -> None:
    """Raise UserError unless all values are integers of at least 1."""
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, got {value!r}.")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_finite(**numbers: object) -> None:
    """Raise UserError unless all values are finite numbers."""
    for name, value in numbers.items():
        if not _is_number(value) or not math.isfinite(value):
            raise UserError(f"{name} must be a finite number, got {value!r}.")


def check_above_zero(**sizes: object) -> None:
    """Raise UserError unless all values are finite numbers above 0."""
    for name, value in sizes.items():
        if not _is_number(value) or not 0 < value < math.inf:
            raise UserError(f"{name} must be above 0 and finite, got {value!r}.")


def check_true_or_false(**choices: object) -> None:
    """Raise UserError unless all values are booleans: a string or a list would count as true."""
    for name, value in choices.items():
        if not isinstance(value, bool):
            raise UserError(f"{name} must be true or false, got {value!r}.")


@contextmanager
def within_memory(advice: str) -> Iterator[None]:
    """Report a lack of memory inside the block as one sentence.

    Args:
        advice: a sentence on how to use less memory.

    Raises:
        UserError: if memory runs out. Torch has an exception class for this only on GPUs.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        has_own_class = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if not has_own_class and re.search("allocate|[Oo]verflow", reason) is None:
            raise
        raise UserError(f"these sizes need more memory than is available ({reason}). {advice}") from error


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a hint with the choices closest to a misspelt name, after a space; "" if none is close."""
    near = difflib.get_close_matches(name, list(dict.fromkeys(choices)))
    return f" Did you mean {' or '.join(near)}?" if near else ""


def check_probability(name: str, p: object) -> None:
    """Raise UserError unless ``p`` is a probability below 1."""
    if not _is_number(p) or not 0 <= p < 1:
        raise UserError(f"{name} must be a probability in [0, 1), got {p!r}.")


def check_dropout(dropout: object) -> None:
    """Raise UserError unless ``dropout`` is a probability below 1."""
    check_probability("dropout", dropout)
