"""Checkpoints that hold what was written into them."""

import zipfile
import zlib
from pathlib import Path

from gridlstm.errors import UserError

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with the bytes of a checkpoint; None where it is intact.

    ``torch.save`` writes a zip archive with a checksum of each of its files, which ``torch.load`` does not look at.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            files = archive.infolist()
            # Torch reads so many bytes as its directory says, also of what this calls a directory: of those, none.
            if any(file.file_size != file.compress_size or file.external_attr for file in files):
                return "its table of contents is wrong"
            wrong = archive.testzip()
    except OSError as error:
        return str(error.strerror or error)
    except (EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile):
        return "it is no checkpoint, or not a whole one"
    return None if wrong is None else f"the checksum of {wrong} is not that of its content"


def check_intact(checkpoint: Path) -> None:
    """Raise UserError for a checkpoint that is damaged, and say which one to give instead."""
    if (reason := damage(checkpoint)) is not None:
        before = checkpoint.with_name(PREVIOUS)
        other = f"the one before, {before}" if checkpoint.name == LAST and damage(before) is None else "another"
        raise UserError(f"{checkpoint} cannot be read: {reason}. Give {other}.")
