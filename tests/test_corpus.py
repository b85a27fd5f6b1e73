"""Reading text files, the cache of decoded ids, and the entropy of a text."""

import bz2
import gzip
import itertools
import lzma
import math
import os
import resource
import subprocess
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import PATIENCE, python

from gridlstm.data import entropy as entropy_module
from gridlstm.data import vocabulary as vocabulary_module
from gridlstm.data.corpus import Corpus, read_corpus
from gridlstm.data.entropy import ngram_entropy
from gridlstm.data.files import UNPACKED_ANYWAY
from gridlstm.data.text import TextData
from gridlstm.data.text_file import File
from gridlstm.errors import UserError

TEXT = ("Die Größe des Gitters ändert sich nicht.\n在網格中,每一維都有自己的記憶。\r\n🙂 end\n" * 40).encode()


def shared(name: str) -> Path:
    """Return the path of a file below GRIDLSTM_DATA; skip the test if it is missing."""
    path = Path(os.environ.get("GRIDLSTM_DATA", "/nonexistent")) / name
    if not path.is_file():
        pytest.skip(f"needs {name} under the directory that GRIDLSTM_DATA names")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def reads(caplog: pytest.LogCaptureFixture) -> int:
    """Count how often a text was decoded instead of being read from the cache."""
    return sum(message.startswith("reading ") for message in caplog.messages)


def test_byte_level_ids_are_positions_among_the_distinct_bytes(tmp_path: Path, cache: Path) -> None:
    found = read_corpus(write(tmp_path / "a.txt", b"banana\xff\n"), "byte", cache)
    assert found.vocabulary.symbols == (10, 97, 98, 110, 255)
    assert found.ids.tolist() == [2, 1, 3, 1, 3, 1, 4, 0]
    assert found.ids.dtype == np.uint8
    assert isinstance(found.ids, np.memmap)


def test_char_level_counts_code_points_and_keeps_line_ends(tmp_path: Path, cache: Path) -> None:
    found = read_corpus(write(tmp_path / "a.txt", TEXT), "char", cache)
    text = TEXT.decode()
    assert found.vocabulary.symbols == tuple(sorted({ord(c) for c in text}))
    assert [found.vocabulary.symbols[i] for i in found.ids] == [ord(c) for c in text]
    assert found.vocabulary.decode(found.ids) == text


def test_byte_order_mark_is_skipped_except_at_byte_level(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("ab ba", encoding="utf-8-sig")
    assert read_corpus(path, "char", cache).vocabulary.symbols == (32, 97, 98)
    assert read_corpus(path, "word", cache).vocabulary.symbols == ("ab", "ba")
    assert len(read_corpus(path, "byte", cache).ids) == 8


@pytest.mark.parametrize(
    ("symbols", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32)]
)
def test_ids_take_the_smallest_type_that_holds_them(tmp_path: Path, cache: Path, symbols: int, dtype: type) -> None:
    text = "".join(chr(0x10000 + i) for i in range(symbols))
    found = read_corpus(write(tmp_path / "a.txt", text.encode()), "char", cache)
    assert found.ids.dtype == dtype
    assert np.array_equal(found.ids, np.arange(symbols))


def test_all_formats_give_the_same_corpus(tmp_path: Path, cache: Path) -> None:
    files = [
        write(tmp_path / "a.txt", TEXT),
        write(tmp_path / "a.xz", lzma.compress(TEXT)),
        write(tmp_path / "a.gz", gzip.compress(TEXT)),
        write(tmp_path / "a.BZ2", bz2.compress(TEXT)),
        write_zip(tmp_path / "a.zip", {"folder/": b"", "folder/a.txt": TEXT}),
    ]
    found = [read_corpus(file, "char", cache) for file in files]
    assert found[0].vocabulary.decode(found[0].ids) == TEXT.decode()
    for other in found[1:]:
        assert other.vocabulary == found[0].vocabulary
        assert np.array_equal(other.ids, found[0].ids)


def test_link_is_unpacked_by_its_own_suffix(tmp_path: Path, cache: Path) -> None:
    """Content-addressed stores keep files without a suffix and link to them."""
    blob = write(tmp_path / "3fa9", gzip.compress(TEXT))
    (tmp_path / "a.gz").symlink_to(blob)
    found = read_corpus(tmp_path / "a.gz", "char", cache)
    assert found.vocabulary.decode(found.ids) == TEXT.decode()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in (str(tmp_path / "loop"), "~nobody-of-this-name/a.txt"):
        with pytest.raises(UserError, match=r"Name a text file \(plain"):
            read_corpus(Path(name), "char", cache)


@given(text=st.text(min_size=1), chunk=st.integers(1, 9))
@settings(deadline=None, max_examples=100)
def test_any_text_is_decoded_exactly_at_any_chunk_size(
    text: str, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("drawn")
    path = write(directory / "a.txt", text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary_module, "CHUNK", chunk)  # small, so that chunks cut characters
        for level in ("char", "byte"):
            found = read_corpus(path, level, directory / "cache")
            assert found.vocabulary.decode(found.ids) == text
            assert np.array_equal(found.vocabulary.encode(text), found.ids)
            assert np.array_equal(found.vocabulary.encode(text.encode()), found.ids)


def test_encoding_an_unknown_symbol_names_it(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.txt", "abcé".encode())
    chars, octets = read_corpus(path, "char", cache).vocabulary, read_corpus(path, "byte", cache).vocabulary
    assert chars.encode("").tolist() == []
    with pytest.raises(UserError, match="'ü' does not occur"):
        chars.encode("abü")
    with pytest.raises(UserError, match="'d' does not occur"):
        octets.encode("abcd")
    with pytest.raises(UserError, match="not UTF-8 at byte offset 1"):
        chars.encode(b"a\xff")
    with pytest.raises(UserError, match="not UTF-8 at byte offset 2"):  # only at the end of a file
        chars.encode("abé".encode()[:-1])


@pytest.mark.parametrize("character", ["é", "記", "🙂"])
def test_a_character_cut_by_the_end_of_the_file_is_dropped(
    character: str, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = character.encode()
    for kept in range(1, len(whole)):
        caplog.clear()
        path = write(tmp_path / f"{kept}.txt", "ö記🙂".encode() + whole[:kept])
        found = read_corpus(path, "char", cache)
        assert found.vocabulary.decode(found.ids) == "ö記🙂"
        assert f"its last {kept} bytes are left out" in caplog.text


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"abc\xffdef", 3),
        ("記".encode() + b"\x80abc", 3),
        ("a記".encode()[:-1] + b"b", 1),  # an incomplete character inside the file
        (b"abc\xff", 3),  # at the end, but no character begins with it
        (b"a" * 5000 + b"\xed\xa0\x80" + b"b" * 5000, 5000),  # a surrogate
        (b"ab\x80", 2),
    ],
)
@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
def test_invalid_utf8_error_names_the_byte_offset_and_level_byte(
    content: bytes, offset: int, chunk: int, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_module, "CHUNK", chunk)
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(UserError, match=rf"not UTF-8 at byte offset {offset:,} .*level=byte"):
        read_corpus(path, "char", cache)
    assert len(read_corpus(path, "byte", cache).ids) == len(content)


def unreadable_files(directory: Path) -> dict[str, tuple[Path, str]]:
    """Return files that must be refused, each with a pattern of the message."""
    two = write_zip(directory / "two.zip", {"a.txt": b"1", "b.txt": b"2"})
    whole_zip = write_zip(directory / "whole.zip", {"a.txt": TEXT})
    with zipfile.ZipFile(directory / "stored.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.txt", b"unchanged")
    flipped = (directory / "stored.zip").read_bytes().replace(b"unchanged", b"unchamged")
    noise = os.urandom(200)
    packed = {
        "gzip": gzip.compress(TEXT),
        "xz": lzma.compress(TEXT),
        "bzip2": bz2.compress(TEXT),
        "zip": whole_zip.read_bytes(),
        "zstd": b"\x28\xb5\x2f\xfd" + noise,
        "7z": b"7z\xbc\xaf\x27\x1c" + noise,
    }
    return {
        "missing": (directory / "none.txt", "cannot be read: there is no such file.*path="),
        "directory": (directory, "cannot be read: it is a directory"),
        "empty": (write(directory / "empty.txt", b""), "is empty"),
        "empty xz": (write(directory / "empty.xz", lzma.compress(b"")), "is empty"),
        "two members": (two, r"exactly one file, got 2: a\.txt, b\.txt"),
        "no member": (write_zip(directory / "none.zip", {}), "exactly one file, got 0"),
        "cut xz": (write(directory / "cut.xz", lzma.compress(TEXT)[:-30]), "cannot be read.*truncated"),
        "cut gz": (write(directory / "cut.gz", gzip.compress(TEXT)[:-30]), "cannot be read.*truncated"),
        "cut bz2": (write(directory / "cut.bz2", bz2.compress(TEXT)[:-30]), "cannot be read.*truncated"),
        "cut zip": (write(directory / "cut.zip", whole_zip.read_bytes()[:-30]), "cannot be read.*truncated"),
        "noise xz": (write(directory / "noise.xz", noise), "cannot be read"),
        "noise gz": (write(directory / "noise.gz", noise), "cannot be read"),
        "noise bz2": (write(directory / "noise.bz2", noise), "cannot be read"),
        "noise zip": (write(directory / "noise.zip", noise), "cannot be read"),
        "flipped gz": (write(directory / "flip.gz", gzip.compress(TEXT)[:-8] + bytes(8)), "cannot be read"),
        "flipped zip": (write(directory / "flip.zip", flipped), "cannot be read"),
        **{
            f"{kind} called .txt": (write(directory / f"{kind}.txt", content), f"data packed as {kind}. Unpack it")
            for kind, content in packed.items()
        },
    }


@pytest.mark.parametrize("suffix", ["gz", "zip"])
def test_an_archive_of_zeros_is_not_unpacked_whole(suffix: str, tmp_path: Path, cache: Path) -> None:
    path, zeros = tmp_path / f"zeros.{suffix}", bytes(3 * UNPACKED_ANYWAY)
    if suffix == "zip":
        write_zip(path, {"a.txt": zeros})
    else:
        path.write_bytes(gzip.compress(zeros))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="over 100 times its size, which text does not"):
            read_corpus(path, "byte", cache)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * UNPACKED_ANYWAY
    finally:
        tracemalloc.stop()


def test_a_short_text_may_repeat_itself(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.xz", lzma.compress(b"all work and no play " * 10**5))
    assert path.stat().st_size < 21 * 10**5 / 1000
    assert len(read_corpus(path, "byte", cache).ids) == 21 * 10**5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" * 9, "holds zero bytes, unlike text in UTF-8"),
        ("Gr\xf6\xdfe und Ma\xdf".encode("latin-1"), "is not UTF-8 ("),
        (TEXT[:-1] + "é".encode()[:1], None),  # cut inside a character
        (b"BZh9 and PK are letters, and ustar a word", None),
        (tarfile.TarInfo("a.txt").tobuf() + TEXT, "is a tar archive: the headers of its files become symbols"),
    ],
)
def test_non_text_bytes_are_read_with_a_warning(
    content: bytes, words: str | None, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Level byte accepts any content."""
    path = tmp_path / "some.txt"
    path.write_bytes(content)
    for times in (1, 2):  # first decoded, then read from the cache
        assert len(read_corpus(path, "byte", cache).ids) == len(content)
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == times * (words is not None)
        assert words is None or words in warnings[-1]
    assert reads(caplog) == 1


def test_unreadable_files_are_refused_with_a_reason(tmp_path: Path, cache: Path) -> None:
    for name, (path, message) in unreadable_files(tmp_path).items():
        with pytest.raises(UserError, match=message) as caught:
            read_corpus(path, "byte", cache)
        assert str(path) in str(caught.value), name
    assert list(cache.glob("*.ids*")) == []


def test_an_unknown_level_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"^level must be byte, char or word, got 'line'"):
        read_corpus(write(tmp_path / "a.txt", b"abc"), "line", cache)  # type: ignore[arg-type]


def test_a_text_is_decoded_once(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.xz", lzma.compress(TEXT))
    first = read_corpus(path, "char", cache)
    assert reads(caplog) == 1
    again = read_corpus(path, "char", cache)
    assert reads(caplog) == 1
    assert again.vocabulary == first.vocabulary
    assert np.array_equal(again.ids, first.ids)
    assert vars(again)["crc32"] == zlib.crc32(again.ids), "the checksum was computed when the entry was read"
    read_corpus(path, "byte", cache)
    assert reads(caplog) == 2  # another level has its own cache entry
    assert list(cache.glob("*.part")) == []


def test_changed_file_is_read_again(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.txt", b"abc")
    os.utime(path, ns=(0, 1))
    read_corpus(path, "byte", cache)
    path.write_bytes(b"xyz")
    os.utime(path, ns=(0, 2))  # same size, one nanosecond later
    found = read_corpus(path, "byte", cache)
    assert found.vocabulary.decode(found.ids) == "xyz"
    assert reads(caplog) == 2


def test_changed_file_with_same_size_and_date_is_reread(tmp_path: Path, cache: Path) -> None:
    """A copy that preserves dates creates such a file, and so does a program that sets dates."""
    path, other = write(tmp_path / "a.txt", b"abc"), write(tmp_path / "b.txt", b"xyz")

    def text() -> str:
        os.utime(path, ns=(0, 1))
        found = read_corpus(path, "byte", cache)
        return found.vocabulary.decode(found.ids)

    assert text() == "abc"
    other.replace(path)
    assert text() == "xyz"
    time.sleep(0.05)  # the clock of a file system is coarse
    path.write_bytes(b"uvw")
    assert text() == "uvw"


def truncate(entry: Path) -> None:
    os.truncate(entry, entry.stat().st_size - 1)


def append(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes() + b"x")


def overwrite(entry: Path) -> None:
    entry.write_bytes(b"\x00\xff" * 100)


def empty(entry: Path) -> None:
    entry.write_bytes(b"")


def change_an_id(entry: Path) -> None:
    content = entry.read_bytes()
    entry.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def other_json(entry: Path) -> None:
    entry.write_bytes(b"[1, 2]\n")


@pytest.mark.parametrize("damage", [truncate, append, overwrite, empty, change_an_id, other_json])
def test_a_damaged_cache_entry_is_rebuilt(
    damage: Callable[[Path], None], tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.txt", TEXT)
    first = read_corpus(path, "char", cache)
    expected = first.ids.tolist()
    del first
    (entry,) = cache.glob("*.ids")
    whole = entry.read_bytes()
    damage(entry)
    assert read_corpus(path, "char", cache).ids.tolist() == expected
    assert "is damaged" in caplog.text
    assert reads(caplog) == 2
    assert entry.read_bytes() == whole


def test_leftover_part_file_is_ignored_and_removed(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.txt", TEXT)
    expected = read_corpus(path, "byte", cache).ids.tolist()
    (entry,) = cache.glob("*.ids")
    entry.rename(entry.with_name(entry.name + ".part"))
    assert read_corpus(path, "byte", cache).ids.tolist() == expected
    assert list(cache.glob("*.part")) == []


def check_in_memory(found: Corpus) -> None:
    assert not isinstance(found.ids, np.memmap)
    assert found.vocabulary.decode(found.ids) == TEXT.decode()


def test_an_unusable_cache_warns_and_works_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.txt", TEXT)
    check_in_memory(read_corpus(path, "char", path / "cache"))  # a directory inside a regular file
    assert "the cache cannot be used" in caplog.text
    assert reads(caplog) == 1


def test_a_full_disk_warns_and_works_in_memory(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.txt", TEXT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the kernel refuses longer files, like a full disk
    try:
        found = read_corpus(path, "char", cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check_in_memory(found)
    assert "cannot be written" in caplog.text
    assert reads(caplog) == 1
    assert list(cache.glob("*.ids*")) == []


def test_cache_directory_follows_xdg_cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", TEXT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    read_corpus(path, "byte")
    assert len(list((tmp_path / "xdg" / "gridlstm").glob("*.ids"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    read_corpus(path, "byte")
    assert len(list((tmp_path / "home" / ".cache" / "gridlstm").glob("*.ids"))) == 1


def test_concurrent_processes_decode_a_text_once(tmp_path: Path, cache: Path) -> None:
    text = TEXT * 4000  # decoding takes long enough for the processes to overlap
    path = write(tmp_path / "a.txt", text)
    program = (
        "import logging, pathlib, sys; logging.basicConfig(level='INFO', format='%(message)s')\n"
        "from gridlstm.data.corpus import read_corpus\n"
        "found = read_corpus(pathlib.Path(sys.argv[1]), 'char', pathlib.Path(sys.argv[2]))\n"
        "print(len(found.ids), int(found.ids.sum(dtype='int64')))"
    )
    command = [python(), "-c", program, str(path), str(cache)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert sum(errors.count(f"reading {path}\n") for _, errors in outputs) == 1
    assert len({printed for printed, _ in outputs}) == 1
    assert outputs[0][0].split()[0] == str(len(text.decode()))


def test_tinyshakespeare_is_the_same_in_bytes_and_characters(cache: Path) -> None:
    path = shared("tinyshakespeare/input.txt")
    octets, chars = read_corpus(path, "byte", cache), read_corpus(path, "char", cache)
    assert len(octets.ids) == 1_115_394
    assert len(octets.vocabulary) == 65
    assert octets.vocabulary.symbols == chars.vocabulary.symbols
    assert np.array_equal(octets.ids, chars.ids)


def test_chinese_text_in_characters(cache: Path) -> None:
    path = shared("tatoeba_cmn_eng/cmn.txt")
    found = read_corpus(path, "char", cache)
    text = path.read_text(encoding="utf-8-sig")
    assert found.vocabulary.decode(found.ids) == text
    assert len(found.vocabulary) == len(set(text))
    assert found.ids.dtype == np.uint16


def test_entropy_of_known_texts() -> None:
    alternating = ngram_entropy(np.array([0, 1] * 50, dtype=np.uint8), 2)
    assert alternating.unigram == 1.0
    assert alternating.bigram == 0.0
    # A cyclic de Bruijn sequence has every pair of four symbols once, so a symbol does not predict the next one.
    de_bruijn = ngram_entropy(np.array([0, 0, 1, 0, 2, 0, 3, 1, 1, 2, 1, 3, 2, 2, 3, 3, 0]), 4)
    assert de_bruijn.bigram == 2.0


def test_unreliable_entropy_estimates_are_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Random bytes have 8 bits of entropy, but counts of a small sample give a lower estimate."""
    caplog.set_level("INFO")
    random, text = tmp_path / "random", tmp_path / "text"
    random.write_bytes(np.random.default_rng(1).integers(0, 256, 6000, dtype=np.uint8).tobytes())
    text.write_text("all of this is text, " * 900)
    for path, words in ((random, None), (text, "entropy of the validation text: 3.327")):
        caplog.clear()
        data = TextData(File(path), 2, 1, window=10, stream_length=20, cache_dir=tmp_path / "cache")
        data.setup("fit")
        assert (words in caplog.text) if words else ("entropy of" not in caplog.text)


@given(ids=st.lists(st.integers(0, 6), min_size=2), chunk=st.integers(1, 9))
@settings(deadline=None, max_examples=100)
def test_entropy_equals_its_definition(ids: list[int], chunk: int) -> None:
    symbols, pairs, contexts = Counter(ids), Counter(itertools.pairwise(ids)), Counter(ids[:-1])
    unigram = -sum(n / len(ids) * math.log2(n / len(ids)) for n in symbols.values())
    bigram = -sum(n / (len(ids) - 1) * math.log2(n / contexts[pair[0]]) for pair, n in pairs.items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy_module, "CHUNK", chunk)
        found = ngram_entropy(np.array(ids, dtype=np.uint8), 7)
    # Both sides sum fewer than a hundred float64 terms below 3, in different orders.
    assert found == pytest.approx((unigram, bigram, len(symbols), len(pairs)), abs=1e-12)


def test_words_are_separated_by_white_space_and_lines_end_with_eos(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.txt", "the  cat saw\tthe dog\n\nthe größte \x0b end".encode())
    found = read_corpus(path, "word", cache)
    assert found.vocabulary.symbols == ("the", "<eos>", "cat", "dog", "end", "größte", "saw")  # frequent ones first
    assert found.vocabulary.decode(found.ids) == "the cat saw the dog\n\nthe größte end"
    assert found.vocabulary.encode("the dog\n").tolist() == [0, 3, 1]
    with pytest.raises(UserError, match="'mouse' does not occur"):
        found.vocabulary.encode("the mouse")
    assert read_corpus(path, "word", cache).vocabulary == found.vocabulary, "from the cache"


def test_all_but_the_most_frequent_words_are_unknown(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.txt", b"a b a c <unk> a d c\n")
    found = read_corpus(path, "word", cache, max_words=3)
    assert found.vocabulary.symbols == ("a", "c", "<unk>")
    assert found.ids.tolist() == [0, 2, 0, 1, 2, 0, 2, 1, 2]
    assert found.vocabulary.encode("a mouse").tolist() == [0, 2]
    assert len(read_corpus(path, "word", cache, max_words=6).vocabulary) == 6, "the text has six words"
    for level, limit, message in (
        ("word", 1, "must be at least 2, got 1"),
        ("char", 5, "must be null at level=char, got 5"),
    ):
        with pytest.raises(ValueError, match=f"^max_words {message}"):
            read_corpus(path, level, cache, max_words=limit)  # type: ignore[arg-type]


def test_words_do_not_depend_on_the_chunks(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_corpus(write(tmp_path / "a.txt", TEXT), "word", cache)
    monkeypatch.setattr(vocabulary_module, "CHUNK", 7)
    parts = read_corpus(write(tmp_path / "b.txt", TEXT), "word", cache)
    assert parts.vocabulary == whole.vocabulary
    assert np.array_equal(parts.ids, whole.ids)
    lengths, decoded = [], vocabulary_module._decoded

    def spy(raw: bytes, *rest: Any) -> str:
        lengths.append(len(raw))
        return decoded(raw, *rest)

    monkeypatch.setattr(vocabulary_module, "_decoded", spy)
    words = list(vocabulary_module.split_words(b"one two  three\tfour\r\nfive six seven eight", ""))
    assert words == ["one", "two", "three", "four", "<eos>", "five", "six", "seven", "eight"]
    assert max(lengths) <= 7 + len("three "), "the text must not be decoded by whole lines: it may be one line"
    with pytest.raises(UserError, match="not UTF-8 at byte offset 9 "):
        read_corpus(write(tmp_path / "c.txt", b"line one\n\xff"), "word", cache)
