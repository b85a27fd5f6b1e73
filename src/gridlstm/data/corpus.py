"""Read a text file as an array of symbol ids, decoded once and cached on disk.

A cache entry is one file: a line of JSON (vocabulary, length, dtype, checksum, warnings), padding, then the raw ids.
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
"""Files that macOS adds to every archive."""

_PACKED = {
    "gzip": rb"\x1f\x8b\x08",
    "xz": rb"\xfd7zXZ\x00",
    "bzip2": rb"BZh[1-9]1AY&SY",
    "zip": rb"PK\x03\x04",
    "zstd": rb"\x28\xb5\x2f\xfd",
    "7z": rb"7z\xbc\xaf\x27\x1c",
}
"""First bytes of packed files."""


@dataclass(frozen=True)
class Corpus:
    """Text as symbol ids."""

    ids: NDArray[np.unsignedinteger[Any]]
    """(length,) in the smallest unsigned type; memory-mapped and read-only if the cache can be written."""
    vocabulary: Vocabulary
    doubts: tuple[str, ...] = ()
    """Warnings about bytes that may not be text."""

    @cached_property
    def crc32(self) -> int:
        """Checksum of the ids, which reveals a text that was changed in place."""
        return zlib.crc32(np.ascontiguousarray(self.ids).data)


def read_corpus(path: Path, level: Level, cache_dir: Path | None = None, max_words: int | None = None) -> Corpus:
    """Read a text file: plain, .xz, .gz, .bz2, or a .zip of one member.

    The ids are cached, so a large file is unpacked once, and later starts map the ids into memory. Any number of
    processes may call this at once: one decodes, the others wait. A damaged cache entry is written again. If the cache
    cannot be written, a warning is logged and the ids stay in memory.

    Args:
        path: path of the file.
        level: symbol unit. A character cut off at the end of the file is dropped.
        cache_dir: None for ``$XDG_CACHE_HOME/gridlstm``, or ``~/.cache/gridlstm``.
        max_words: size of the vocabulary at level word: the most frequent words, and ``<unk>`` for all others. None for
            all words.

    Raises:
        ValueError: the level does not exist, or ``max_words`` is given at another level than word.
        UserError: the file is missing, empty, unreadable, damaged, a zip of several members, packed in another way or
            more densely than text can be, or not UTF-8 at another level than byte.
    """
    check_level(level, max_words)
    # Keep the name as given: the target of a link may lack the suffix that tells how the text is packed.
    path = Path(os.path.expanduser(path)).absolute()
    stat = check_file(path)
    try:
        entry = _entry(path, stat, level, max_words, cache_dir)
        corpus = _load(entry, level)
        if corpus is None:
            with only_process(entry.with_suffix(".lock"), f"reading {path}"):
                corpus = _load(entry, level) or _build(path, level, max_words, entry)
    except OSError as error:
        log.warning("the cache cannot be used (%s): %s stays in memory and is read again each time", error, path)
        corpus = _decode(path, level, max_words)
    for doubt in corpus.doubts:  # each time, not only when the cache is written
        log.warning("%s", doubt)
    return corpus


def check_level(level: Level, max_words: int | None) -> None:
    """Raise ValueError if the level does not exist, or if ``max_words`` does not suit it."""
    if level not in get_args(Level):
        raise ValueError(f"level must be byte, char or word, got {level!r}.")
    if max_words is not None and level != "word":
        raise ValueError(f"max_words must be null at level={level}, got {max_words}.")
    if max_words is not None and max_words < 2:
        raise ValueError(f"max_words must be at least 2, got {max_words}.")


def _entry(path: Path, stat: os.stat_result, level: Level, max_words: int | None, cache_dir: Path | None) -> Path:
    key = json.dumps([str(path), stamp(stat), level, max_words, FORMAT])
    return cache_directory(cache_dir) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.ids"


def _load(entry: Path, level: Level) -> Corpus | None:
    """Return the cached corpus, or None if it is missing or damaged."""
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
            raise ValueError("the checksum of its ids is wrong")
        return corpus
    except (ValueError, KeyError, TypeError) as error:
        log.warning("the cached text %s is damaged (%s): reading the original again", entry, error)
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
    raw = contents(path)
    check_unpacked(raw, path)
    doubts = []
    if level != "byte":
        raw = raw.removeprefix(codecs.BOM_UTF8)  # marks the encoding, not a character of the text
        if (cut := _cut_character(raw)) > 0:
            doubts.append(f"{path} ends inside a UTF-8 character: its last {cut} bytes are left out")
            raw = raw[:-cut]
    corpus = _words(raw, path, max_words) if level == "word" else _codes(raw, path, level)
    log.info("%s: %d symbols (level %s), %d distinct", path, len(corpus.ids), level, len(corpus.vocabulary))
    return replace(corpus, doubts=(*doubts, *_doubts(raw, path, level)))


def _words(raw: bytes, path: Path, max_words: int | None) -> Corpus:
    # Reads the text twice, because a list of all words would be many times as large.
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
    # Reads the text twice, so that its code points, four bytes each, are never all in memory.
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
    return UserError(f"{path} is empty. Name a file that contains text: path=….")


def contents(path: Path) -> bytes:
    """Return the bytes of a file, unpacked if its name ends in .xz, .gz, .bz2 or .zip.

    Raises:
        UserError: the file cannot be read, or it unpacks to far more bytes than a text would.
    """
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
                        f"and name one of them: path=…."
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
        # zipfile raises RuntimeError for an encrypted member.
        if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
            raise UserError(f"{path} cannot be read: {error.strerror}. Name a file that you may read.") from error
        raise UserError(
            f"{path} cannot be read: {error}. Replace it if it is truncated or damaged; the format of .xz, .gz, .bz2 "
            f"and .zip must match the file name."
        ) from error


def check_unpacked(raw: bytes, path: Path) -> None:
    """Raise UserError if the content is still packed, because training would treat it as noise."""
    for kind, beginning in _PACKED.items():
        if re.match(beginning, raw):
            raise UserError(
                f"{path} holds data packed as {kind}. Unpack it, or rename it to end in .gz, .xz, .bz2 or .zip if it "
                f"is one file packed in that format."
            )


def _doubts(raw: bytes, path: Path, level: Level) -> list[str]:
    """Return warnings about bytes that are not text or have an unusual encoding, which may be intended."""
    if raw[257:262] == b"ustar":
        return [f"{path} is a tar archive: the headers of its files become symbols unless you unpack it"]
    if 0 in raw:
        return [f"{path} holds zero bytes, unlike text in UTF-8: they become symbols like others"]
    if level != "byte":
        return []  # it has been decoded
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(raw), _PIECE):
            decoder.decode(raw[start : start + _PIECE])
    except UnicodeDecodeError as error:
        return [f"{path} is not UTF-8 ({error.reason}): all its bytes become symbols unchanged"]
    return []


def _cut_character(raw: bytes) -> int:
    """Return the number of bytes at the end that form an incomplete UTF-8 character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(raw[-3:])
    return len(decoder.getstate()[0])
