"""Sentence pairs of any data set of the Hugging Face hub, or of its formats on disk."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from gridlstm.data.base import Split
from gridlstm.data.hub_rows import HubRows
from gridlstm.data.pairs import NUM_VAL, Pair, PairSource, Sentences, split_off
from gridlstm.data.streams import PARTS
from gridlstm.errors import UserError

_COLUMN = "translation"
"""Column in which translation data sets store each sentence under its language."""


class HubPairs(PairSource):
    """Sentence pairs of a data set that ``datasets.load_dataset`` can load.

    The two sides are languages of its column ``translation``, as in {"translation": {"de": …, "en": …}}, or two columns
    of text. Its splits train, validation and test are used. A missing validation or test split is taken from train:
    ``num_val`` distinct sources, which a hash of the source chooses. Loading needs the extra ``gridlstm[datasets]``.

    Args:
        name: name on the hub, such as "wmt/wmt16", or a directory: see ``HubRows``.
        source, target: languages, or columns.
        config: configuration of the data set, if it has several.
        num_val: see above.

    Raises:
        ValueError: ``num_val`` is below 1.
        UserError: from ``read``, if the package, the data set or a column does not exist, or ``num_val`` is given for a
            data set that has all three splits.
    """

    def __init__(self, name: str, source: str, target: str, config: str | None = None, num_val: int = NUM_VAL) -> None:
        if num_val < 1:
            raise ValueError(f"num_val must be at least 1, got {num_val}.")
        self._rows = HubRows(name, config)
        self.name = self._rows.name
        self.sides = {"source": source, "target": target}
        self.num_val = num_val

    def read(self) -> Mapping[Split, Sentences]:
        names: dict[str, Split] = dict(zip(PARTS, get_args(Split), strict=True))
        rows_of = self._rows.read()
        if self.num_val != NUM_VAL and all(part in rows_of for part in PARTS):
            raise UserError(
                f"num_val={self.num_val} has no effect on {self.name}, which has the splits {', '.join(PARTS)}. Remove "
                f"num_val."
            )
        pairs = {names[part]: list(self._pairs(rows)) for part, rows in rows_of.items()}
        read = {split: Sentences.one_each(found) for split, found in pairs.items()}
        left = pairs["train"]
        for split in names.values():
            if split not in read:
                left, read[split] = split_off(left, self.num_val, "num_val")
        return {**read, "train": Sentences.one_each(left)}

    def _pairs(self, rows: Iterator[Any]) -> Iterator[Pair]:
        for row in rows:
            columns = row[_COLUMN] if isinstance(row.get(_COLUMN), dict) else row
            source, target = (self._side(columns, option) for option in self.sides)
            yield source, target

    def _side(self, columns: Mapping[str, Any], option: str) -> str:
        text = columns.get(self.sides[option])
        if text is None and self.sides[option] in columns:
            return ""  # null: this row has no sentence
        if not isinstance(text, str):
            known = ", ".join(name for name, value in columns.items() if isinstance(value, str))
            raise UserError(
                f"{option}={self.sides[option]} is not text in {self.name}. Expected one of: {known or 'none'}. Name "
                f"it with {option}=…."
            )
        return text
