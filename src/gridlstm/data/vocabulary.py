"""Symbols of a text (bytes, characters or words) and their ids."""

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gridlstm.errors import UserError

Level = Literal["byte", "char", "word"]
"""Symbol unit: a byte, a UTF-8 code point, or a word (see ``split_words``)."""

CHUNK = 1 << 24
"""Bytes decoded at a time."""

_SPACE = re.compile(rb"[ \t\r\n]")

UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"

_SHOWN = 5
"""Unknown symbols listed in an error."""


@dataclass(frozen=True)
class Vocabulary:
    """Distinct symbols of a text; the id of a symbol is its index."""

    level: Level
    symbols: tuple[Any, ...]
    """Byte values or code points in ascending order, or words by decreasing frequency."""

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str | bytes, name: str = "the text") -> NDArray[np.int64]:
        """Return the ids of a text; an unknown word becomes ``<unk>`` if the vocabulary has it.

        Args:
            text: text to encode.
            name: name of the text in errors.

        Raises:
            UserError: the vocabulary lacks a symbol, or the text is not UTF-8 at another level than byte.
        """
        # Bytes on a command line that are not UTF-8 arrive as lone surrogates.
        raw = text.encode(errors="surrogateescape") if isinstance(text, str) else text
        if self.level == "word":
            return self._encode_words(raw, name)
        codes = np.concatenate([np.zeros(0, np.int64), *symbol_codes(raw, self.level, name)])
        if len(unknown := codes[~np.isin(codes, self.symbols)]):
            raise self._unknown(unknown.tolist(), name)
        return np.searchsorted(self.symbols, codes)

    def _encode_words(self, raw: bytes, name: str) -> NDArray[np.int64]:
        id_of = {word: id for id, word in enumerate(self.symbols)}
        words = list(split_words(raw, name))
        if UNKNOWN not in id_of and (unknown := [word for word in words if word not in id_of]):
            raise self._unknown(unknown, name)
        return np.array([id_of.get(word, id_of.get(UNKNOWN)) for word in words], dtype=np.int64)

    def _unknown(self, symbols: Sequence[Any], name: str) -> UserError:
        do, them = ("does", "it") if len(set(symbols)) == 1 else ("do", "them")
        return UserError(
            f"{self._named(symbols)} {do} not occur in the text that the model was trained on. Remove {them} from "
            f"{name}."
        )

    def _named(self, symbols: Iterable[Any]) -> str:
        """Format the first few distinct symbols for a message."""
        distinct = list(dict.fromkeys(symbols))
        if self.level == "word":
            shown = list(map(repr, distinct[:_SHOWN]))
        else:
            as_text = self.level == "char"
            shown = [repr(chr(code)) if as_text or code < 128 else f"byte {code}" for code in distinct[:_SHOWN]]
        return ", ".join(shown) + (f" and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else "")

    def places_in(self, other: "Vocabulary") -> NDArray[np.int64]:
        """Return the id of each symbol in another vocabulary. Unknown words get the id of its ``<unk>``, if it has one.

        Raises:
            UserError: the other vocabulary lacks a symbol, or has another level.
        """
        id_of = {symbol: id for id, symbol in enumerate(other.symbols)}
        unknown = id_of.get(UNKNOWN)
        lacking = [] if unknown is not None else [symbol for symbol in self.symbols if symbol not in id_of]
        if self.level != other.level or lacking:
            same = self.level == other.level
            shown = f", {len(lacking)} of them unknown: {self._named(lacking)}" if same else ""
            raise UserError(
                f"the checkpoint was trained on another text: it knows {len(other)} symbols (level {other.level}), but "
                f"this text has {len(self)} (level {self.level}){shown}. Use the text of that run at "
                f"level={other.level}, or one whose symbols it knows."
            )
        return np.array([id_of.get(symbol, unknown) for symbol in self.symbols])

    def decode(self, ids: Any) -> str:
        """Return the text of ids; at level byte, invalid UTF-8 becomes the replacement character."""
        return "".join(self.stream(np.asarray(ids).tolist()))

    def stream(self, ids: Iterable[int], ends: bool = True) -> Iterator[str]:
        """Yield the text of ids as they come; "" for a byte that does not complete a character.

        Args:
            ids: symbol ids.
            ends: True if the text ends with the last id; an incomplete character is then replaced.
        """
        if self.level == "byte":
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            for id in ids:
                yield decoder.decode(bytes([self.symbols[id]]))
            yield decoder.decode(b"", final=ends)
        elif self.level == "char":
            for id in ids:
                yield chr(self.symbols[id])
        else:
            separator = ""
            for id in ids:
                ends_line = self.symbols[id] == END_OF_LINE
                yield "\n" if ends_line else separator + self.symbols[id]
                separator = "" if ends_line else " "


def split_words(raw: bytes, name: str) -> Iterator[str]:
    """Yield the words of a text, split at white space, with ``<eos>`` at the end of every line.

    This is the protocol of the Penn Treebank (Mikolov et al. 2010). Errors call the text ``name``.

    Raises:
        UserError: the text is not UTF-8.
    """
    start = 0
    while start < len(raw):
        space = _SPACE.search(raw, start + CHUNK)  # do not cut a word
        end = space.end() if space else len(raw)
        *lines, rest = _decoded(raw[start:end], start, name).split("\n")
        for line in lines:
            yield from line.split()
            yield END_OF_LINE
        yield from rest.split()
        start = end


def symbol_codes(raw: bytes, level: Level, name: str) -> Iterator[NDArray[Any]]:
    """Yield the symbols as bytes or code points, in chunks; errors call the text ``name``."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(raw), CHUNK):
        chunk = raw[start : start + CHUNK]
        if level == "byte":
            yield np.frombuffer(chunk, dtype=np.uint8)
            continue
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=start + CHUNK >= len(raw))
        except UnicodeDecodeError as error:
            raise _not_utf8(name, start - pending + error.start, error) from error
        yield np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _decoded(raw: bytes, offset: int, name: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(name, offset + error.start, error) from error


def _not_utf8(name: str, offset: int, error: UnicodeDecodeError) -> UserError:
    return UserError(
        f"{name} is not UTF-8 at byte offset {offset:,} ({error.reason}). Use level=byte to model its bytes, or "
        f"convert it to UTF-8."
    )
