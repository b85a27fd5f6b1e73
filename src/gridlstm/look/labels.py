"""Labels of every character of a text, computed from the text."""

import codecs
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gridlstm.data.vocabulary import Vocabulary
from gridlstm.errors import UserError

_OPEN, _CLOSE = "(?:<|&lt;)", "(?:>|&gt;)"  # MediaWiki dumps escape the markup of pages
SPANS = {
    # Excludes punctuation that ends the surrounding sentence or quotation.
    "URL": r"(?:(?:https?|ftp)://|www\.)(?:(?!&quot;|&[lg]t;)[^\s<>\[\]|{}\"])*(?:(?!&quot;|&[lg]t;)[^\s<>\[\]|{}\".,;:!?')])",
    "quotes": r'"[^"\n]*"|&quot;(?:(?!&quot;)[^\n])*&quot;|“[^”\n]*”',
    "comment": rf"{_OPEN}!--.*?--{_CLOSE}|/\*.*?\*/",
    "markup": rf"\[\[[^\[\]]*\]\]|\{{\{{[^{{}}]*\}}\}}|{_OPEN}/?[A-Za-z](?:(?!&[lg]t;)[^<>\n])*{_CLOSE}",
}
"""Regular expressions of spans of text; characters inside a span, including its ends, are labelled 1, others 0."""


def labels(text: str) -> dict[str, NDArray[np.float64]]:
    """Return labels (len(text),) by name: 0 or 1 for spans, digits and upper case; position after the last line end."""
    found = {}
    for name, pattern in SPANS.items():
        inside = np.zeros(len(text))
        for match in re.finditer(pattern, text, re.DOTALL):
            inside[match.start() : match.end()] = 1
        found[name] = inside
    places = np.arange(len(text))
    breaks = np.array([c == "\n" for c in text])
    found["position in line"] = (places - np.maximum.accumulate(np.where(breaks, places, -1))).astype(np.float64)
    found["digit"] = np.array([float(c.isdigit()) for c in text])
    found["upper case"] = np.array([float(c.isupper()) for c in text])
    return found


def characters(vocabulary: Vocabulary, ids: Sequence[int]) -> tuple[str, NDArray[np.int64]]:
    """Return the text of symbols, and for each of its characters the index of its last symbol.

    Invalid UTF-8 becomes the replacement character.

    Raises:
        UserError: if the symbols are neither bytes nor characters.
    """
    codes = [vocabulary.symbols[i] for i in ids]
    if vocabulary.level == "char":
        return "".join(map(chr, codes)), np.arange(len(codes))
    if vocabulary.level != "byte":
        raise UserError(f"what=cells needs a model of bytes or characters, got task.data.level={vocabulary.level}.")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, places = "", list[int]()
    for place, code in enumerate(codes):
        new = decoder.decode(bytes([code]))  # two if the byte breaks a character off; the first belongs one place back
        text += new
        last = place - len(decoder.getstate()[0])  # the byte may begin a character that is not complete yet
        places += range(last - len(new) + 1, last + 1)
    return text, np.array(places, dtype=np.int64)
