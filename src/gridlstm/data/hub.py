"""Any text data set of the Hugging Face hub, or of its formats on disk, by name."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gridlstm.data.parts import PARTS, PartedTextData
from gridlstm.data.streams import SHARES
from gridlstm.data.vocabulary import Level
from gridlstm.errors import UserError

log = logging.getLogger(__name__)


class HubTextData(PartedTextData):
    """One column of text of a data set that ``datasets.load_dataset`` knows; see ``TextData``.

    Its splits train, validation and test are the splits here. Of those of the last two that it lacks, the share of
    ``splits`` is cut from the end of train. Every document ends with a line end. Needs the extra
    ``gridlstm[datasets]``.

    Args:
        name: on the hub, such as "Salesforce/wikitext", or a directory of files in a format that it reads.
        config: of the data set, where it has several.
        column: of the text.
        streaming: read documents one by one instead of keeping the data set's own copy too.
        max_documents: take so many of each split at most; None for all.
        level, batch_size, seed, window, stream_length, splits, val_symbols, cache_dir, max_words: see ``TextData``.

    Raises:
        UserError: from ``setup``: the package, the data set, the column or a text is not there.
    """

    def __init__(
        self,
        name: str,
        level: Level,
        batch_size: int,
        seed: int,
        config: str | None = None,
        column: str = "text",
        streaming: bool = False,
        max_documents: int | None = None,
        window: int = 50,
        stream_length: int | None = None,
        splits: Sequence[float] = SHARES,
        val_symbols: int | None = None,
        cache_dir: str | Path | None = None,
        max_words: int | None = None,
    ) -> None:
        super().__init__(
            None, level, batch_size, seed, window, stream_length, splits, val_symbols, cache_dir, max_words
        )
        if max_documents is not None and max_documents < 1:
            raise UserError(f"task.data.max_documents must be null or at least 1, got {max_documents}.")
        self.data_set = name
        self.config = config
        self.column = column
        self.streaming = streaming
        self.max_documents = max_documents

    def key(self) -> str:
        directory = Path(self.data_set)
        files = sorted(path for path in directory.rglob("*") if path.is_file()) if directory.is_dir() else []
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        text = json.dumps([self.data_set, self.config, self.column, self.max_documents, stats])
        return f"hub-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def read_parts(self) -> Mapping[str, Iterator[str]]:
        try:
            import datasets
        except ImportError as error:
            raise UserError("this task needs the package datasets: pip install gridlstm[datasets]") from error
        try:
            found = datasets.load_dataset(self.data_set, self.config, streaming=self.streaming)
        except Exception as error:  # of many kinds: no such name, no network, a file that cannot be read
            raise self._unreadable(error) from error
        if "train" not in found:
            raise UserError(f"{self.data_set} has no split train, but {', '.join(found)}: it cannot be trained on.")
        if missing := [name for name in PARTS if name not in found]:
            log.info("%s has no split %s: cut from the end of train", self.data_set, " and no ".join(missing))
        if others := [str(name) for name in found if name not in PARTS]:
            log.warning(
                "of %s, %s is left out: its splits here are %s", self.data_set, ", ".join(others), ", ".join(PARTS)
            )
        return {name: self._documents(found[name]) for name in PARTS if name in found}

    def _documents(self, split: Any) -> Iterator[str]:
        empty = written = 0
        for document in self._read(islice(split, self.max_documents)):
            text = document.get(self.column)
            if text is None and self.column in document:
                empty += 1
                continue
            if not isinstance(text, str):
                columns = ", ".join(name for name, value in document.items() if isinstance(value, str))
                raise UserError(
                    f"task.data.column={self.column} is no text of {self.data_set}; columns of text: "
                    f"{columns or 'none'}."
                )
            written += 1
            yield text if text.endswith("\n") else text + "\n"
        if empty and not written:
            raise UserError(
                f"task.data.column={self.column} of {self.data_set} has no text, all its documents are null: name "
                f"another column."
            )
        if empty:
            log.warning(
                "%s documents of %s have no %s (null) and are left out", f"{empty:,}", self.data_set, self.column
            )

    def _read(self, documents: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(documents)
        while True:
            try:
                document = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # of many kinds, for a stream is read here
                raise self._unreadable(error) from error
            yield document

    def _unreadable(self, error: Exception) -> UserError:
        cause = error.__cause__ or error  # the package's own often says but that there was one
        return UserError(
            f"the data set {self.data_set} cannot be loaded: {str(cause).partition(chr(10))[0]} Check task.data.name "
            f"and task.data.config, and the network; a directory of files works without one."
        )
