"""Detect damaged checkpoints."""

import zipfile
import zlib
from pathlib import Path

from gridlstm.errors import UserError

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def damage(checkpoint: Path) -> str | None:
    """Return the damage to the bytes of a checkpoint in words, or None if it is intact.

    ``torch.save`` writes a zip archive with a checksum for every member, which ``torch.load`` does not verify.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            files = archive.infolist()
            # torch reads as many bytes as the table of contents says, even for members that zipfile skips.
            if any(file.file_size != file.compress_size or file.external_attr for file in files):
                return "its table of contents is wrong"
            wrong = archive.testzip()
    except OSError as error:
        return str(error.strerror or error)
    except (EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile):
        return "it is not a checkpoint, or not a complete one"
    return None if wrong is None else f"the checksum of {wrong} does not match its content"


def check_intact(checkpoint: Path) -> None:
    """Raise UserError if a checkpoint is damaged; the message names a replacement."""
    if (reason := damage(checkpoint)) is not None:
        before = checkpoint.with_name(PREVIOUS)
        other = f"the previous one, {before}" if checkpoint.name == LAST and damage(before) is None else "another"
        raise UserError(f"{checkpoint} cannot be read: {reason}. Give {other}.")
