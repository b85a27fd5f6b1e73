"""Files that are whole or not there, whenever somebody else reads them or the writer is killed."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` beside ``path`` and then puts it in its place."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` beside ``path`` and then puts it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
