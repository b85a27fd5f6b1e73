"""Text source for any data set of the Hugging Face hub, or of its formats on disk."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from gridlstm.data.files import stamp
from gridlstm.data.hub_rows import HubRows
from gridlstm.data.joined import JoinedSource
from gridlstm.errors import UserError

log = logging.getLogger(__name__)


class Hub(JoinedSource):
    """Text column of a data set that ``datasets.load_dataset`` can load.

    Its splits train, validation and test are the parts of the text. Every document ends with a line end. Loading needs
    the extra ``gridlstm[datasets]``.

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
        self._rows = HubRows(name, config, streaming)
        self.name = self._rows.name
        self.config = config
        self.column = column
        self.max_documents = max_documents

    def key(self) -> str:
        stats = [(str(path.resolve()), stamp(path.stat())) for path in self._rows.files()]
        text = json.dumps([self.name, self.config, self.column, self.max_documents, stats])
        return f"hub-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def read_parts(self) -> Mapping[str, Iterator[str]]:
        return {name: self._documents(name, rows) for name, rows in self._rows.read().items()}

    def _documents(self, name: str, rows: Iterator[Any]) -> Iterator[str]:
        empty = written = 0
        for document in rows:
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
