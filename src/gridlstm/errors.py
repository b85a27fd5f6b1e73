"""The one exception that is the user's to mend; everything else is a defect of ours and keeps its traceback."""

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Input or configuration that cannot work.

    The message says what was expected, what was got and how to fix it. The command line prints the message alone,
    without a traceback, and exits with status 1.
    """


def check_at_least_one(**sizes: object) -> None:
    """Raises UserError unless all are whole numbers of at least 1."""
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, got {value!r}.")


def check_above_zero(**sizes: float) -> None:
    """Raises UserError unless all are finite numbers above 0."""
    for name, value in sizes.items():
        if not 0 < value < math.inf:
            raise UserError(f"{name} must be above 0 and finite, got {value!r}.")


def check_true_or_false(**choices: object) -> None:
    """Raises UserError unless all are booleans: a text or a list would count as true."""
    for name, value in choices.items():
        if not isinstance(value, bool):
            raise UserError(f"{name} must be true or false, got {value!r}.")


@contextmanager
def within_memory(advice: str) -> Iterator[None]:
    """Say in a sentence that there is too little memory.

    Args:
        advice: a sentence on what needs less.

    Raises:
        UserError: instead of torch's errors, of which only that of GPUs has a class of its own.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        of_its_own = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if not of_its_own and re.search("allocate|[Oo]verflow", reason) is None:
            raise
        raise UserError(f"these sizes need more memory than there is ({reason}). {advice}") from error


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A hint with the choices that are nearest to a misspelt name, after a space; "" where none is near."""
    near = difflib.get_close_matches(name, list(dict.fromkeys(choices)))
    return f" Did you mean {' or '.join(near)}?" if near else ""


def check_dropout(dropout: float) -> None:
    """Raise UserError unless it is a probability below 1."""
    if not 0 <= dropout < 1:
        raise UserError(f"dropout must be a probability in [0, 1), got {dropout}.")
