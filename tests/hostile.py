"""Untrusted code for tests: a configuration names it, and it leaves a file if it is run."""

from pathlib import Path
from typing import Any


def note(file: str, **_: Any) -> None:
    """Create the file, which shows that this code has run."""
    Path(file).touch()
