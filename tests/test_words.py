"""Vocabularies of sentences: splitting into words, unknown words, and the state in a checkpoint."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridlstm.data.pairs import read_lines
from gridlstm.data.words import (
    UNKNOWN,
    Level,
    PieceLevel,
    Pieces,
    SentenceVocabulary,
    WordLevel,
    Words,
    join_words,
    split_sentence,
    vocabulary_from,
)
from gridlstm.errors import UserError
from gridlstm.translate import LEAST_WHOLE

SENTENCES = [f"The {animal} {verb} {place}." for animal in ("dog", "cat", "cow") for verb in ("sat", "lay")
             for place in ("on the mat", "under the table", "here")]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop!", ["Don't", "stop", "!"]),
        ("A T-shirt for $1,000.50.", ["A", "T-shirt", "for", "$", "1,000.50", "."]),
        ("It's 7:45, Tom.", ["It's", "7:45", ",", "Tom", "."]),
        ("他是一个DJ。", ["他", "是", "一", "个", "DJ", "。"]),
        ("Größe: „free“", ["Größe", ":", "„", "free", "“"]),
        ("हिन्दी में किताब", ["हिन्दी", "में", "किताब"]),
        ("كَتَبَ الوَلَدُ", ["كَتَبَ", "الوَلَدُ"]),
        (unicodedata.normalize("NFD", "Größe é-mail"), [unicodedata.normalize("NFD", x) for x in ("Größe", "é-mail")]),
        (unicodedata.normalize("NFD", "がっこう"), [unicodedata.normalize("NFD", x) for x in "がっこう"]),
        ("\u0301a ❤\ufe0f", ["\u0301", "a", "❤", "\ufe0f"]),
        (" \t ", []),
    ],
)
def test_a_sentence_is_split_into_words_and_punctuation(text: str, words: list[str]) -> None:
    assert split_sentence(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "Don't stop!",
        'He said "yes", and "no".',
        "A T-shirt (red) for $1,000.50.",
        "The ladies' room; it's 7:45.",
        "Er trägt ein „free“ Schild.",
        "He “ran” away…",
        "你好，世界！",
    ],
)
def test_joined_words_are_the_sentence(text: str) -> None:
    assert join_words(split_sentence(text)) == text


@given(st.text())
def test_splitting_keeps_every_visible_character(text: str) -> None:
    assert "".join(split_sentence(text)) == "".join(text.split())


def test_words_seen_once_are_unknown() -> None:
    words = WordLevel(min_count=2).learn(["a b b c", "c c a d"])
    assert words.words == ["c", "a", "b"]
    assert len(words) == 7
    assert words.encode("a d c") == [5, Words.UNK, 4]
    assert words.decode([5, Words.UNK, 4]) == f"a {UNKNOWN} c"
    assert len(WordLevel(min_count=1).learn(["a b b c", "c c a d"])) == 8


def test_segmented_text_keeps_the_words_of_its_segmentation() -> None:
    words = WordLevel(1, segmented=True).learn(["我们 喜欢 don't"])
    assert words.encode("我们 喜欢") == [words.encode("我们")[0], words.encode("喜欢")[0]]
    assert words.decode(words.encode("我们 喜欢")) == "我们 喜欢"


def levels() -> list[Level]:
    pytest.importorskip("sentencepiece")
    return [WordLevel(1), WordLevel(1, lowercase=True), PieceLevel(60), PieceLevel(60, lowercase=True)]


@pytest.mark.parametrize("number", range(4))
def test_a_vocabulary_survives_its_state_and_decodes_what_it_encodes(number: int, tmp_path: Path) -> None:
    level = levels()[number]
    learned = level.learn(SENTENCES, tmp_path)
    kept = vocabulary_from(json.loads(json.dumps(learned.state())))
    assert type(kept) is type(learned)
    assert len(kept) == len(learned)
    for text in (*SENTENCES, "A zebra lay here."):
        assert kept.encode(text) == learned.encode(text)
    expected = [text.lower() for text in SENTENCES] if number % 2 else SENTENCES
    assert [kept.decode(kept.encode(text)) for text in SENTENCES] == expected
    assert all(max(kept.encode(text)) < len(kept) for text in SENTENCES)


@pytest.mark.parametrize("number", [0, 2])
def test_decoding_ends_at_the_end_and_skips_padding(number: int, tmp_path: Path) -> None:
    words: SentenceVocabulary = levels()[number].learn(SENTENCES, tmp_path)
    text = SENTENCES[0]
    ids = [words.BOS, *words.encode(text), words.EOS, *words.encode("cow"), words.PAD]
    assert words.decode(ids) == text
    assert words.decode([words.PAD, words.PAD]) == ""
    assert words.decode([words.UNK]) == UNKNOWN


@pytest.mark.parametrize("space", ["\u00a0", "\u3000"])
def test_pieces_keep_white_space_that_is_a_character_of_the_text(space: str, tmp_path: Path) -> None:
    text = f"100{space}km  on"
    pieces = PieceLevel(60).learn([*SENTENCES, text], tmp_path)
    assert pieces.decode(pieces.encode(text)) == f"100{space}km on"


def test_a_character_absent_from_training_is_unknown_to_pieces(tmp_path: Path) -> None:
    pieces = levels()[2].learn(SENTENCES, tmp_path)
    assert Pieces.UNK in pieces.encode("The 猫 sat")
    assert Pieces.UNK not in pieces.encode("The lamb sat")


def test_words_are_read_whole_if_they_are_known_as_one_symbol(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    text = "The dog sat; the 猫 DOG xyz"
    assert WordLevel(1).learn(SENTENCES).read_whole(text) == [True, True, True, False, True, False, False, False]
    lower = WordLevel(1, lowercase=True).learn(SENTENCES)
    assert lower.read_whole(text) == [True, True, True, False, True, False, True, False]
    assert WordLevel(1, segmented=True).learn(["a.b c"]).read_whole("a.b c d") == [True, True, False]
    pieces = PieceLevel(60).learn(SENTENCES, tmp_path)
    assert pieces.read_whole(text) == [True, True, True, False, True, False, False, False]
    assert pieces.read_whole("") == []


def test_characters_inside_longer_pieces_are_read_whole(tmp_path: Path) -> None:
    """A Chinese character is a word, and a piece of its own only behind the piece of a space."""
    pytest.importorskip("sentencepiece")
    pieces = PieceLevel(20).learn(["我们喜欢猫", "我们喜欢狗", "我们有猫"], tmp_path)
    assert len(pieces.encode("我们喜欢猫")) < 5
    assert pieces.read_whole("我们喜欢猫") == [True] * 5
    assert pieces.read_whole("他喜欢 cat") == [False, True, True, False]


@pytest.mark.parametrize("level", [WordLevel(2), PieceLevel(6000)], ids=["words", "pieces"])
def test_the_share_of_words_read_whole_tells_languages_apart(level: Level, real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    if not (real_data / "multi30k").is_dir():
        pytest.skip("multi30k is not in GRIDLSTM_DATA")
    vocabulary = level.learn(read_lines(real_data / "multi30k" / "train.de.gz"), tmp_path)
    share = {}
    for language in ("de", "en", "fr", "cs"):
        lines = read_lines(real_data / "multi30k" / f"test_2016_flickr.{language}.gz")
        whole = [word for line in lines for word in vocabulary.read_whole(line)]
        share[language] = sum(whole) / len(whole)
    assert share.pop("de") > 0.9 > LEAST_WHOLE > 0.4 > max(share.values())


def test_pieces_are_learned_once_and_depend_only_on_text_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    first = PieceLevel(60).learn(SENTENCES, tmp_path / "a")
    assert PieceLevel(60).learn(SENTENCES, tmp_path / "b").model == first.model
    assert PieceLevel(50).learn(SENTENCES, tmp_path / "a").model != first.model
    assert PieceLevel(60).learn([*SENTENCES, "A new one."], tmp_path / "a").model != first.model
    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", None)
    assert PieceLevel(60).learn(SENTENCES, tmp_path / "a").model == first.model


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_damaged_pieces_in_the_cache_are_learned_again(
    share: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("sentencepiece")
    model = PieceLevel(60).learn(SENTENCES, tmp_path).model
    (kept,) = tmp_path.glob("*.model")
    kept.write_bytes(model[: int(share * len(model))])
    assert PieceLevel(60).learn(SENTENCES, tmp_path).model == model
    assert "are damaged" in caplog.text
    assert kept.read_bytes() == model


def test_impossible_vocabularies_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    with pytest.raises(ValueError, match=r"^min_count must be at least 1, got 0\.$"):
        WordLevel(0)
    with pytest.raises(ValueError, match=r"^size must be at least 5, got 4\.$"):
        PieceLevel(4)
    with pytest.raises(UserError, match=r"^no word of 2 training sentences is seen 9 times.*Lower min_count"):
        WordLevel(9).learn(["a b", "b"])
    with pytest.raises(
        UserError,
        match=r"^SentencePiece cannot learn 5,000 symbols from 2 training sentences: they have only 9\. Use a s",
    ):
        PieceLevel(5000).learn(["a b", "b"], tmp_path)
    with pytest.raises(UserError, match=r"their characters alone are 11\. Use a size of 11 or more\.$"):
        PieceLevel(10).learn(["abc def"] * 9, tmp_path)
    with pytest.raises(UserError, match=r"from 1 training sentences: INTERNAL.* Change size, or use more text\.$"):
        PieceLevel(10).learn([""], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be cached: .*Use another directory: cache_dir=…\.$"):
        PieceLevel(20).learn(SENTENCES, tmp_path / "file")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"not installed\. Run: pip install 'gridlstm\[translation\]'$"):
        PieceLevel(60).learn(SENTENCES, tmp_path)
