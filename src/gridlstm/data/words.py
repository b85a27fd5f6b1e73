"""Vocabularies of sentences: words or pieces of words, learned from training sentences and kept in checkpoints."""

import base64
import hashlib
import io
import json
import logging
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from gridlstm.data.files import only_process
from gridlstm.errors import UserError
from gridlstm.files import cache_directory, write_bytes

log = logging.getLogger(__name__)

PAD, BOS, EOS, UNK = range(4)
"""Ids of padding, the beginning of a sentence, its end, and an unknown word, in every vocabulary."""
UNKNOWN = "⁇"
"""Text of an unknown word, as SentencePiece writes it. Every BLEU tokenizer reads it as one word."""

_SPECIAL = 4
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WIDE = re.compile(rf"[{_CJK}\u3000-\u303f\uff00-\uffef]")
_CLOSING = frozenset(".,!?;:%)]}»”'’…。，！？、；：）」』》")
_OPENING = frozenset("([{«“‘¿¡$€£（「『《")
_CLOSES = {'"': '"', "„": "“”"}
"""Quotes that can close each opening quote."""


class SentenceVocabulary(ABC):
    """Symbols of the sentences of one language."""

    PAD = PAD
    BOS = BOS
    EOS = EOS
    UNK = UNK

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of symbols, including the four special ones."""

    @property
    @abstractmethod
    def symbols(self) -> tuple[int | str, ...]:
        """Symbols in the order of their ids; a special symbol is its own id."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of a sentence, without ``BOS`` and ``EOS``; parts that the vocabulary lacks become ``UNK``."""

    @abstractmethod
    def read_whole(self, text: str) -> list[bool]:
        """Return for each word of a sentence whether ``encode`` knows it and keeps it in one piece."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids up to the first ``EOS``; ``PAD`` and ``BOS`` are skipped, ``UNK`` is ⁇."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return everything that ``vocabulary_from`` needs, in types that JSON supports."""


class Level(ABC):
    """Unit in which sentences are read and written, with the options for learning its vocabulary."""

    @property
    @abstractmethod
    def expected_size(self) -> int:
        """Number of symbols assumed before a vocabulary is learned."""

    @abstractmethod
    def learn(self, sentences: Sequence[str], cache_dir: Path | None = None) -> SentenceVocabulary:
        """Return the vocabulary of training sentences: a function of the sentences and the options.

        Args:
            sentences: text of one language.
            cache_dir: directory that keeps results of long computations; None for the default of ``cache_directory``.

        Raises:
            UserError: a vocabulary with these options cannot be learned from the sentences.
        """


def vocabulary_from(state: dict[str, Any]) -> SentenceVocabulary:
    """Return the vocabulary of a ``state`` from a checkpoint.

    Raises:
        UserError: its package is not installed.
    """
    return Words.from_state(state) if "words" in state else Pieces.from_state(state)


def split_sentence(text: str) -> list[str]:
    """Return the words of a sentence: runs of letters and digits, and every other visible character as one word.

    Apostrophes and hyphens inside a word, and points, commas and colons inside a number, belong to it ("don't",
    "T-shirt", "1,000", "7:45"). So do marks that combine with a letter, as in Hindi, vocalised Arabic and decomposed
    text. Every Chinese or Japanese character is a word.
    """
    words: list[str] = _word().findall(text)
    return words


@cache
def _word() -> re.Pattern[str]:
    # re does not count marks as letters. Those beyond this range select variants of symbols.
    marks = "".join(char for char in map(chr, range(0x300, 0x1F000)) if unicodedata.category(char).startswith("M"))
    letters = rf"[^\W{_CJK}]+(?:[{marks}]+[^\W{_CJK}]*)*"
    return re.compile(rf"[{_CJK}][{marks}]*|{letters}(?:['’\-]{letters}|(?<=\d)[.,:](?=\d){letters})*|[^\w\s]")


def join_words(words: Iterable[str]) -> str:
    """Return the sentence of some words, with spaces where English or German has them, and none in Chinese.

    Straight double quotes open and close in turn.
    """
    text, opened, last_opens = "", "", True
    for word in words:
        closes = word in _CLOSES.get(opened, "")
        opens = word in _CLOSES and not closes
        wide = bool(text and _WIDE.fullmatch(text[-1]) and _WIDE.fullmatch(word[0]))
        text += word if last_opens or closes or word in _CLOSING or wide else f" {word}"
        last_opens = opens or (word in _OPENING and not closes)
        opened = word if opens else "" if closes else opened
    return text


class Words(SentenceVocabulary):
    """Vocabulary of whole words.

    Args:
        words: words in the order of their ids, which begin at 4.
        lowercase: True if sentences are lower-cased before they are split.
        segmented: True to split sentences only at white space; False for ``split_sentence``.
    """

    def __init__(self, words: Sequence[str], lowercase: bool = False, segmented: bool = False) -> None:
        self.words = list(words)
        self.lowercase = lowercase
        self.segmented = segmented
        self._id_of = {word: id for id, word in enumerate(self.words, _SPECIAL)}

    def __len__(self) -> int:
        return _SPECIAL + len(self.words)

    @property
    def symbols(self) -> tuple[int | str, ...]:
        return (*range(_SPECIAL), *self.words)

    def encode(self, text: str) -> list[int]:
        return [self._id_of.get(word, UNK) for word in _split(text, self.lowercase, self.segmented)]

    def read_whole(self, text: str) -> list[bool]:
        return [id != UNK for id in self.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        words = [UNKNOWN if id == UNK else self.words[id - _SPECIAL] for id in _content(ids)]
        return " ".join(words) if self.segmented else join_words(words)

    def state(self) -> dict[str, Any]:
        return {"words": self.words, "lowercase": self.lowercase, "segmented": self.segmented}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Words":
        """Return the vocabulary of a ``state``."""
        return cls(**state)


@dataclass(frozen=True)
class WordLevel(Level):
    """Whole words.

    Args:
        min_count: words seen fewer times in training are unknown; 2 as in the paper, which replaces those seen once.
        lowercase: lower-case sentences first.
        segmented: split sentences only at white space, for text that another program has segmented; if false, use
            ``split_sentence``.

    Raises:
        ValueError: ``min_count`` is below 1.
    """

    min_count: int = 2
    lowercase: bool = False
    segmented: bool = False

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {self.min_count}.")

    @property
    def expected_size(self) -> int:
        return 10_000

    def learn(self, sentences: Sequence[str], cache_dir: Path | None = None) -> Words:
        counts: Counter[str] = Counter()
        for sentence in sentences:
            counts.update(_split(sentence, self.lowercase, self.segmented))
        frequent = [word for word, count in counts.items() if count >= self.min_count]
        if not frequent:
            raise UserError(
                f"no word of {len(sentences):,} training sentences is seen {self.min_count} times, expected one or "
                f"more. Lower min_count, or use more text."
            )
        return Words(sorted(frequent, key=lambda word: (-counts[word], word)), self.lowercase, self.segmented)


class Pieces(SentenceVocabulary):
    """Vocabulary of pieces of words, which a SentencePiece model defines.

    Decoding restores the sentence, except repeated spaces.

    Args:
        model: content of the model's file.
        lowercase: True if sentences are lower-cased before they are split.

    Raises:
        UserError: the package sentencepiece is not installed.
    """

    def __init__(self, model: bytes, lowercase: bool = False) -> None:
        self.model = model
        self.lowercase = lowercase
        _sentencepiece()

    @cached_property
    def _processor(self) -> Any:
        return _sentencepiece().SentencePieceProcessor(model_proto=self.model)

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    @property
    def symbols(self) -> tuple[int | str, ...]:
        return (*range(_SPECIAL), *self._processor.id_to_piece(list(range(_SPECIAL, len(self)))))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text.lower() if self.lowercase else text)
        return ids

    def read_whole(self, text: str) -> list[bool]:
        # A word that begins no piece, such as a Chinese character, is encoded behind a piece of its own for the space.
        space = self._processor.piece_to_id("▁")
        read = [self.encode(word) for word in split_sentence(text)]
        return [UNK not in ids and len(ids) - (ids[0] == space) <= 1 for ids in read]

    def decode(self, ids: Iterable[int]) -> str:
        # Other white space, such as the no-break space, is a character of the text.
        return re.sub(r"[ \t\n\v\f\r]+", " ", self._processor.decode(_content(ids))).strip(" ")

    def state(self) -> dict[str, Any]:
        return {"pieces": base64.b64encode(self.model).decode(), "lowercase": self.lowercase}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Pieces":
        """Return the vocabulary of a ``state``.

        Raises:
            UserError: the package sentencepiece is not installed.
        """
        return cls(base64.b64decode(state["pieces"]), state["lowercase"])


@dataclass(frozen=True)
class PieceLevel(Level):
    """Pieces of words that SentencePiece merges from frequent neighbours (byte-pair encoding, Sennrich et al. 2016).

    Characters are not normalized, so that decoded sentences have the characters of the training text.

    Args:
        size: number of symbols, including the four special ones.
        lowercase: lower-case sentences first.

    Raises:
        ValueError: ``size`` leaves no symbol beside the special ones.
    """

    size: int
    lowercase: bool = False

    def __post_init__(self) -> None:
        if self.size <= _SPECIAL:
            raise ValueError(f"size must be at least {_SPECIAL + 1}, got {self.size}.")

    @property
    def expected_size(self) -> int:
        return self.size

    def learn(self, sentences: Sequence[str], cache_dir: Path | None = None) -> Pieces:
        # The key covers everything that the model depends on, so a cached model equals a newly learned one.
        text = [sentence.lower() for sentence in sentences] if self.lowercase else sentences
        options = json.dumps([asdict(self), _sentencepiece().__version__])
        key = hashlib.sha256("\n".join([options, *text]).encode()).hexdigest()[:16]
        try:
            kept = cache_directory(cache_dir) / f"pieces-{key}.model"
            with only_process(kept.with_suffix(".lock"), f"learning {self.size:,} pieces of words"):
                if kept.is_file() and (pieces := self._loaded(kept)) is not None:
                    return pieces
                model = self._train(text)
                write_bytes(kept, model)
                return Pieces(model, self.lowercase)
        except OSError as error:
            raise UserError(
                f"the pieces of words cannot be cached: {error}. Use another directory: cache_dir=…."
            ) from error

    def _loaded(self, kept: Path) -> Pieces | None:
        """Return the pieces of a cached model, or None if it is damaged."""
        pieces = Pieces(kept.read_bytes(), self.lowercase)
        try:
            if len(pieces) != self.size:
                raise RuntimeError(f"{len(pieces)} symbols, expected {self.size}")
        except RuntimeError as error:  # SentencePiece raises it too
            log.warning("the cached pieces of words %s are damaged (%s): learning them again", kept, error)
            return None
        return pieces

    def _train(self, text: Sequence[str]) -> bytes:
        model = io.BytesIO()
        try:
            _sentencepiece().SentencePieceTrainer.train(
                sentence_iterator=iter(text),
                model_writer=model,
                model_type="bpe",
                vocab_size=self.size,
                character_coverage=1.0,
                normalization_rule_name="identity",
                max_sentence_length=2**20,  # bytes; the default would drop longer sentences
                num_threads=1,
                pad_id=PAD,
                bos_id=BOS,
                eos_id=EOS,
                unk_id=UNK,
                unk_surface=f" {UNKNOWN} ",
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(
                f"SentencePiece cannot learn {self.size:,} symbols from {len(text):,} training sentences: "
                f"{_reason(str(error))}"
            ) from error
        return model.getvalue()


def _reason(message: str) -> str:
    """Return why SentencePiece cannot learn, and what to do, from its own message."""
    if found := re.search(r"Vocabulary size too high .*<= (\d+)", message):
        return f"they have only {int(found[1]):,}. Use a size of {found[1]} or less, or more text."
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"their characters alone are {int(found[1]):,}. Use a size of {found[1]} or more."
    return f"{' '.join(message.split())} Change size, or use more text."


def _split(text: str, lowercase: bool, segmented: bool) -> list[str]:
    text = text.lower() if lowercase else text
    return text.split() if segmented else split_sentence(text)


def _content(ids: Iterable[int]) -> list[int]:
    """Return the ids up to the first ``EOS``, without ``PAD`` and ``BOS``."""
    found = []
    for id in map(int, ids):
        if id == EOS:
            break
        if id not in (PAD, BOS):
            found.append(id)
    return found


def _sentencepiece() -> Any:
    """Return the package sentencepiece.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            "pieces of words need the package sentencepiece, which is not installed. Run: "
            "pip install 'gridlstm[translation]'"
        ) from error
    return sentencepiece
