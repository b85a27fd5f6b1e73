"""Text source for any data set of the Hugging Face hub, or of its formats on disk."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gridlstm.data.files import stamp
from gridlstm.data.joined import JoinedSource
from gridlstm.data.streams import PARTS
from gridlstm.errors import UserError

log = logging.getLogger(__name__)

_SAVED = ("state.json", "dataset_dict.json")
"""Files that ``Dataset.save_to_disk`` and ``DatasetDict.save_to_disk`` write to their directories."""
_OF_NOTHING = ("SchemaInferenceError", "StopIteration", "EmptyDataError")
"""Errors for empty JSON and CSV files; for empty text files a ValueError says that the split has no data."""
_PLAIN = (".txt", ".csv", ".tsv", ".json", ".jsonl")
"""Suffixes of uncompressed files."""


class Hub(JoinedSource):
    """Text column of a data set that ``datasets.load_dataset`` can load.

    Its splits train, validation and test are the parts of the text. Every document ends with a line end. It needs the
    extra ``gridlstm[datasets]``.

    Args:
        name: name on the hub, such as "Salesforce/wikitext", or a directory with files in a supported format, or one
            that ``save_to_disk`` wrote.
        config: configuration of the data set, if it has several.
        column: column with the text.
        streaming: read documents one by one, without the data set's own copy on disk.
        max_documents: limit on the documents of each split, not counting those without text; None for all.

    Raises:
        ValueError: ``max_documents`` is below 1.
        UserError: from ``find``, if the package, the data set, the column or a text does not exist.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        column: str = "text",
        streaming: bool = False,
        max_documents: int | None = None,
    ) -> None:
        if max_documents is not None and max_documents < 1:
            raise ValueError(f"max_documents must be at least 1, got {max_documents}.")
        directory = os.path.expanduser(name)
        self._directory = Path(directory).resolve() if os.path.isdir(directory) else None
        # One directory is one data set however it is spelled, and never a format such as json that the package knows.
        self.name = str(self._directory or name)
        self.config = config
        self.column = column
        self.streaming = streaming
        self.max_documents = max_documents

    def _files(self) -> list[Path]:
        """Return the files of a directory; [] for a data set on the hub."""
        return sorted(path for path in self._directory.rglob("*") if path.is_file()) if self._directory else []

    def key(self) -> str:
        stats = [(str(path.resolve()), stamp(path.stat())) for path in self._files()]
        text = json.dumps([self.name, self.config, self.column, self.max_documents, stats])
        return f"hub-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def read_parts(self) -> Mapping[str, Iterator[str]]:
        try:
            import datasets
        except ImportError as error:
            raise UserError("this task needs the package datasets. Run pip install gridlstm[datasets]") from error
        saved = self._directory is not None and any((self._directory / name).is_file() for name in _SAVED)
        if saved and self.config is not None:
            raise UserError(
                f"{self.name} was written by save_to_disk, which keeps no configurations. Remove config={self.config}."
            )
        try:
            if saved:
                found = datasets.load_from_disk(self.name).with_format(None)
            else:
                # The package checks only the dates of the files against its copy of a directory.
                afresh = "force_redownload" if self._directory else None
                found = datasets.load_dataset(self.name, self.config, streaming=self.streaming, download_mode=afresh)
        except Exception as error:  # many types: unknown name, no network, unreadable file
            raise self._unreadable(error) from error
        if isinstance(found, datasets.Dataset):
            found = {"train": found}
        if "train" not in found:
            raise UserError(f"{self.name} cannot be trained on: it has no split train, but {', '.join(found)}.")
        if missing := [name for name in PARTS if name not in found]:
            log.info("%s has no split %s: it is cut from the end of train", self.name, " and no ".join(missing))
        if others := [str(name) for name in found if name not in PARTS]:
            log.warning("of %s, %s is not used: the splits here are %s", self.name, ", ".join(others), ", ".join(PARTS))
        return {name: self._documents(name, found[name]) for name in PARTS if name in found}

    def _documents(self, name: str, split: Any) -> Iterator[str]:
        empty = written = 0
        for document in self._read(split):
            text = document.get(self.column)
            if text is None and self.column in document:
                empty += 1
                continue
            if not isinstance(text, str):
                columns = ", ".join(key for key, value in document.items() if isinstance(value, str))
                raise UserError(
                    f"column={self.column} is not text in {self.name}. Columns of text: {columns or 'none'}."
                )
            written += 1
            yield text if text.endswith("\n") else text + "\n"
            if written == self.max_documents:
                break
        if empty and not written:
            raise UserError(
                f"column={self.column} of {self.name} has no text in the split {name}: all its documents are null. "
                f"Name another column."
            )
        if not written:
            raise UserError(
                f"the split {name} of {self.name} holds no document. Add one, or remove the split (validation and test "
                f"are then cut from train)."
            )
        if empty:
            log.warning("%s documents of %s have no %s (null) and are skipped", f"{empty:,}", self.name, self.column)

    def _read(self, documents: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(documents)
        while True:
            try:
                document = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # many types, because a stream is read here
                raise self._unreadable(error) from error
            yield document

    def _unreadable(self, error: Exception) -> UserError:
        cause = error.__cause__ or error  # the package's own error often says nothing
        reason, _, rest = str(cause).partition("\n")
        plain = [file for file in self._files() if file.suffix in _PLAIN]
        if type(cause).__name__ in _OF_NOTHING or "corresponds to no data" in reason:
            files = ", ".join(str(file) for file in plain if not file.stat().st_size)
            return UserError(
                f"{files or 'one of the splits'} of the data set {self.name} holds no document. Add one, or remove "
                f"the file."
            )
        if isinstance(cause, UnicodeDecodeError):
            file = next((str(file) for file in plain if not _is_utf8(file)), "a file")
            return UserError(
                f"{file} of the data set {self.name} is not UTF-8 ({cause.reason}). Convert it, for example with "
                f"iconv -f latin1 -t utf-8."
            )
        if reason == "Config name is missing.":
            names = rest.partition("[")[2].partition("]")[0].replace("'", "")
            return UserError(f"{self.name} has several configurations. Use config=…, one of {names}.")
        return UserError(
            f"the data set {self.name} cannot be loaded: {reason} Check name={self.name}, its config= and the "
            f"network; a directory of files needs no network."
        )


def _is_utf8(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8") as lines:
            for _ in lines:
                pass
    except UnicodeDecodeError:
        return False
    return True
