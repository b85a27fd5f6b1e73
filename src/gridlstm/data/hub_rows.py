"""Rows of any data set of the Hugging Face hub, or of its formats on disk."""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gridlstm.data.streams import PARTS
from gridlstm.errors import UserError

log = logging.getLogger(__name__)

_SAVED = ("state.json", "dataset_dict.json")
"""Files that ``Dataset.save_to_disk`` and ``DatasetDict.save_to_disk`` write to their directories."""
_OF_NOTHING = ("SchemaInferenceError", "StopIteration", "EmptyDataError")
"""Errors for empty JSON and CSV files; for empty text files a ValueError says that the split has no data."""
_PLAIN = (".txt", ".csv", ".tsv", ".json", ".jsonl")
"""Suffixes of uncompressed files."""


class HubRows:
    """Rows of a data set that ``datasets.load_dataset`` can load. Loading needs the extra ``gridlstm[datasets]``.

    Args:
        name: name on the hub, or a directory with files in a supported format, or one that ``save_to_disk`` wrote.
        config: configuration of the data set, if it has several.
        streaming: read rows one by one, without the data set's own copy on disk.
    """

    def __init__(self, name: str, config: str | None = None, streaming: bool = False) -> None:
        directory = os.path.expanduser(name)
        self._directory = Path(directory).resolve() if os.path.isdir(directory) else None
        # The resolved path names a directory in one way, however the user spelled it. The package cannot mistake it for
        # the name of a format such as json.
        self.name = str(self._directory or name)
        self.config = config
        self.streaming = streaming

    def files(self) -> list[Path]:
        """Return the files of a directory; [] for a data set on the hub."""
        return sorted(path for path in self._directory.rglob("*") if path.is_file()) if self._directory else []

    def read(self) -> Mapping[str, Iterator[Any]]:
        """Return the rows of the split train, and of validation and test if the data set has them.

        A row maps column names to values.

        Raises:
            UserError: the package is not installed, or the data set does not exist, cannot be read or has no split
                train.
        """
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
            log.info("%s has no split %s: a part of train is used instead", self.name, " and no ".join(missing))
        if others := [str(name) for name in found if name not in PARTS]:
            log.warning("%s: the split %s is not used, only %s", self.name, ", ".join(others), ", ".join(PARTS))
        return {name: self._rows(found[name]) for name in PARTS if name in found}

    def _rows(self, split: Any) -> Iterator[Any]:
        iterator = iter(split)
        while True:
            try:
                row = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # many types, because a stream is read here
                raise self._unreadable(error) from error
            yield row

    def _unreadable(self, error: Exception) -> UserError:
        cause = error.__cause__ or error  # the package's own error often says nothing
        reason, _, rest = str(cause).partition("\n")
        plain = [file for file in self.files() if file.suffix in _PLAIN]
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
