"""A text file as an array of symbol ids, decoded once and cached on disk.

A cache entry is one file: a line of JSON (vocabulary, length, dtype, checksum, what to warn of), padded, then the raw
ids.
"""

import bz2
import codecs
import gzip
import hashlib
import json
import logging
import lzma
import os
import re
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from gridlstm.data.files import check_file, only_process, read_unpacked, stamp
from gridlstm.data.vocabulary import UNKNOWN, Level, Vocabulary, split_words, symbol_codes
from gridlstm.errors import UserError
from gridlstm.files import cache_directory, replacing

log = logging.getLogger(__name__)

FORMAT = 4
"""Version of the cache entries; part of their key."""
ALIGNMENT = 64
_PIECE = 2**20
_MAC = re.compile(r"__MACOSX/|(.*/)?\.DS_Store$")
"""What macOS adds to every archive."""

_PACKED = {
    "gzip": rb"\x1f\x8b\x08",
    "xz": rb"\xfd7zXZ\x00",
    "bzip2": rb"BZh[1-9]1AY&SY",
    "zip": rb"PK\x03\x04",
    "zstd": rb"\x28\xb5\x2f\xfd",
    "7z": rb"7z\xbc\xaf\x27\x1c",
}
"""How what was packed begins."""


@dataclass(frozen=True)
class Corpus:
    """A text as ids."""

    ids: NDArray[np.unsignedinteger[Any]]
    """(length,) in the smallest unsigned type; memory-mapped and read-only where the cache can be written."""
    vocabulary: Vocabulary
    doubts: tuple[str, ...] = ()
    """What to warn of: sentences on bytes that may be of no text."""

    @cached_property
    def crc32(self) -> int:
        """Of the ids: tells a text that was changed in place from what it was."""
        return zlib.crc32(np.ascontiguousarray(self.ids).data)


def read_corpus(path: Path, level: Level, cache_dir: Path | None = None, max_words: int | None = None) -> Corpus:
    """Reads a text file: plain, .xz, .gz, .bz2, or a .zip of one member.

    The ids are cached, so that a large file is unpacked once and every later start maps them into memory. Any number
    of processes may ask at once: one decodes, the others wait for it. An entry that is damaged is made anew; where the
    cache cannot be written, a warning says so and the ids stay in memory.

    Args:
        path: of the file.
        level: what a symbol is. A character that the end of the file cuts short is dropped.
        cache_dir: None for ``$XDG_CACHE_HOME/gridlstm``, or ``~/.cache/gridlstm``.
        max_words: at level word, the size of the vocabulary: the most frequent words, among them ``<unk>``, which
            stands for all others. None for all words.

    Raises:
        ValueError: no such level, or ``max_words`` at another level than word.
        UserError: file missing, empty, unreadable, damaged, packed in another way, as a zip of several members or to
            less than a text can be, or at another level than byte not UTF-8.
    """
    check_level(level, max_words)
    # As it is called: a link's target may lack the suffix that says how the text is packed.
    path = Path(os.path.expanduser(path)).absolute()
    stat = check_file(path)
    try:
        entry = _entry(path, stat, level, max_words, cache_dir)
        corpus = _load(entry, level)
        if corpus is None:
            with only_process(entry.with_suffix(".lock"), f"reading {path}"):
                corpus = _load(entry, level) or _build(path, level, max_words, entry)
    except OSError as error:
        log.warning("the cache cannot be used (%s): %s stays in memory, and is read anew each time", error, path)
        corpus = _decode(path, level, max_words)
    for doubt in corpus.doubts:  # every time, not only when the cache is made
        log.warning("%s", doubt)
    return corpus


def check_level(level: Level, max_words: int | None) -> None:
    """Raise ValueError for a level that is none, and for a ``max_words`` that does not go with it."""
    if level not in get_args(Level):
        raise ValueError(f"level must be byte, char or word, got {level!r}.")
    if max_words is not None and level != "word":
        raise ValueError(f"max_words must be left out at level={level}, got {max_words}.")
    if max_words is not None and max_words < 2:
        raise ValueError(f"max_words must be at least 2, got {max_words}.")


def _entry(path: Path, stat: os.stat_result, level: Level, max_words: int | None, cache_dir: Path | None) -> Path:
    key = json.dumps([str(path), stamp(stat), level, max_words, FORMAT])
    return cache_directory(cache_dir) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.ids"


def _load(entry: Path, level: Level) -> Corpus | None:
    """The cached corpus; None when there is none, or none that is whole."""
    if not entry.exists():
        return None
    try:
        with entry.open("rb") as file:
            header = json.loads(file.readline())
            offset = file.tell()
        dtype, length = np.dtype(header["dtype"]), int(header["length"])
        expected = offset + length * dtype.itemsize
        if entry.stat().st_size != expected:
            raise ValueError(f"{entry.stat().st_size} bytes, expected {expected}")
        ids = np.memmap(entry, dtype=dtype, mode="r", offset=offset, shape=(length,))
        corpus = Corpus(ids, Vocabulary(level, tuple(header["symbols"])), tuple(header["doubts"]))
        if corpus.crc32 != header["crc32"]:
            raise ValueError("its ids are not those that were written")
        return corpus
    except (ValueError, KeyError, TypeError) as error:
        log.warning("the cached text %s is damaged (%s): reading the original anew", entry, error)
        return None


def _build(path: Path, level: Level, max_words: int | None, entry: Path) -> Corpus:
    corpus = _decode(path, level, max_words)
    header = {
        "symbols": corpus.vocabulary.symbols,
        "dtype": corpus.ids.dtype.str,
        "length": len(corpus.ids),
        "crc32": corpus.crc32,
        "doubts": corpus.doubts,
    }
    line = json.dumps(header).encode()
    line += b" " * (-(len(line) + 1) % ALIGNMENT) + b"\n"
    try:
        with replacing(entry) as file:
            file.write(line)
            file.write(corpus.ids.data)
    except OSError as error:
        log.warning("the cache %s cannot be written (%s): %s stays in memory", entry.parent, error, path)
        return corpus
    log.info("cached in %s", entry)
    return _load(entry, level) or corpus


def _decode(path: Path, level: Level, max_words: int | None) -> Corpus:
    log.info("reading %s", path)
    raw = _contents(path)
    _check_unpacked(raw, path)
    doubts = []
    if level != "byte":
        raw = raw.removeprefix(codecs.BOM_UTF8)  # a mark of the encoding, no character of the text
        if (cut := _cut_character(raw)) > 0:
            doubts.append(f"{path} ends inside a UTF-8 character: its last {cut} bytes are left out")
            raw = raw[:-cut]
    corpus = _words(raw, path, max_words) if level == "word" else _codes(raw, path, level)
    log.info("%s: %d symbols (level %s), %d distinct", path, len(corpus.ids), level, len(corpus.vocabulary))
    return replace(corpus, doubts=(*doubts, *_doubts(raw, path, level)))


def _words(raw: bytes, path: Path, max_words: int | None) -> Corpus:
    # Twice over the text: a list of all its words would be many times as large.
    counts = Counter(split_words(raw, str(path)))
    if not counts:
        raise _empty(path)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    if max_words is not None and len(ranked) > max_words:
        known = [word for word in ranked if word != UNKNOWN][: max_words - 1]
        ranked = [*known, UNKNOWN]
    id_of = {word: id for id, word in enumerate(ranked)}
    unknown = id_of.get(UNKNOWN, 0)
    ids = np.fromiter(
        (id_of.get(word, unknown) for word in split_words(raw, str(path))),
        dtype=np.min_scalar_type(len(ranked) - 1),
        count=counts.total(),
    )
    return Corpus(ids, Vocabulary("word", tuple(ranked)))


def _codes(raw: bytes, path: Path, level: Level) -> Corpus:
    # Twice over the text: its code points, at four bytes each, are never all in memory.
    used = np.zeros(256 if level == "byte" else 0x110000, dtype=bool)
    length = 0
    for codes in symbol_codes(raw, level, str(path)):
        used[codes] = True
        length += len(codes)
    if length == 0:
        raise _empty(path)
    symbols = np.flatnonzero(used)
    id_of = np.zeros(len(used), dtype=np.min_scalar_type(len(symbols) - 1))
    id_of[symbols] = np.arange(len(symbols))
    ids: NDArray[Any] = np.empty(length, dtype=id_of.dtype)
    place = 0
    for codes in symbol_codes(raw, level, str(path)):
        ids[place : place + len(codes)] = id_of[codes]
        place += len(codes)
    return Corpus(ids, Vocabulary(level, tuple(symbols.tolist())))


def _empty(path: Path) -> UserError:
    return UserError(f"{path} is empty: name a file with text in it, path=….")


def _contents(path: Path) -> bytes:
    suffix = path.suffix.lower()
    opener: Any = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}.get(suffix)
    try:
        if suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                members = [
                    member.filename
                    for member in archive.infolist()
                    if not member.is_dir() and not _MAC.match(member.filename)
                ]
                if len(members) != 1:
                    raise UserError(
                        f"{path} must hold exactly one file, got {len(members)}: {', '.join(members[:10])}. Unpack it "
                        f"and name one of them, path=…."
                    )
                with archive.open(members[0]) as member:
                    return read_unpacked(member, path)
        if opener is None:
            return path.read_bytes()
        with opener(path) as file:
            return read_unpacked(file, path)
    except (
        OSError,
        EOFError,
        lzma.LZMAError,
        zlib.error,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
    ) as error:
        # RuntimeError is zipfile's for an encrypted member.
        raise UserError(
            f"{path} cannot be read: {error}. If it is truncated or damaged, replace it; .xz, .gz, .bz2 and .zip must "
            f"be what the name says."
        ) from error


def _check_unpacked(raw: bytes, path: Path) -> None:
    """Raises UserError where what was read is packed still, and would be trained on as noise."""
    for kind, beginning in _PACKED.items():
        if re.match(beginning, raw):
            raise UserError(
                f"{path} holds data packed as {kind}: unpack it, or if it is .gz, .xz, .bz2 or .zip of one file and "
                f"nothing else, let its name end so."
            )


def _doubts(raw: bytes, path: Path, level: Level) -> list[str]:
    """What is said of bytes of no text, or in another encoding than is usual; they may be meant all the same."""
    if raw[257:262] == b"ustar":
        return [f"{path} is a tar archive: the headers of its files are symbols too, unless you unpack it"]
    if 0 in raw:
        return [f"{path} holds zero bytes, as no text in UTF-8 does: they are symbols as others are"]
    if level != "byte":
        return []  # it has been decoded
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(raw), _PIECE):
            decoder.decode(raw[start : start + _PIECE])
    except UnicodeDecodeError as error:
        return [f"{path} is not UTF-8 ({error.reason}): all its bytes are symbols, as they are"]
    return []


def _cut_character(raw: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that they do not finish."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(raw[-3:])
    return len(decoder.getstate()[0])
