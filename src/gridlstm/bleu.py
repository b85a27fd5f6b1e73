"""Scores of translations against any number of references, computed by sacrebleu (Post 2018)."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain
from typing import Any, Literal, NamedTuple

from gridlstm.errors import UserError

_HAN = "[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_KANA = "[\u3040-\u30ff\uff66-\uff9f]"


class Scores(NamedTuple):
    """Scores of a corpus, from 0 to 100. A signature says how sacrebleu computed a score; publish it with the score."""

    bleu: float
    """Cased BLEU: text as it is, tokenized by ``tokenizer``."""
    bleu_one: float | None
    """``bleu`` with the first reference of each sentence alone; None if no sentence has several.

    Papers choose one of several references at random. The first is the same for every network and run.
    """
    bleu_lowercased: float
    """BLEU of lower-cased text, tokenized by ``tokenizer``.

    Papers on Multi30k lower-case text and tokenize it with the Moses scripts. Moses and 13a differ in details such as
    apostrophes, so this score is close to the papers' scores, but not equal.
    """
    chrf: float
    """chrF2: F-score of character n-grams, cased, without white space."""
    signatures: dict[str, str]
    """sacrebleu's signature of each score, by field."""


def check_installed() -> None:
    """Raise UserError if the package sacrebleu is not installed."""
    if find_spec("sacrebleu") is None:
        raise UserError(
            "BLEU needs the package sacrebleu, which is not installed. Run: pip install 'gridlstm[translation]'"
        )


def tokenizer(references: Sequence[Sequence[str]]) -> Literal["13a", "zh", "char"]:
    """Return sacrebleu's tokenizer that suits the language of some references.

    "13a" (mteval-v13a) separates words by white space and punctuation. Chinese and Japanese have no white space: "zh"
    makes every Chinese character a word, and "char" every character of Japanese, which "zh" would not. More than half
    of all letters decide.
    """
    text = "".join(chain.from_iterable(references))
    letters, han, kana = (len(re.findall(kind, text)) for kind in (r"\w", _HAN, _KANA))
    if han + kana <= letters / 2:
        return "13a"
    return "char" if kana > han / 10 else "zh"


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Return the scores of translations.

    BLEU is computed for the corpus (Papineni et al. 2002): n-gram matches up to length 4 are summed over all sentences,
    and the brevity penalty takes the closest reference length of each.

    Args:
        hypotheses: translations, as detokenized text.
        references: one or more correct translations of each; their number may differ between sentences.

    Raises:
        ValueError: there is no sentence, the lengths differ, or a sentence has no reference.
        UserError: the package sacrebleu is not installed.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"expected at least one hypothesis, and one list of references for each, got {len(hypotheses)} and "
            f"{len(references)}."
        )
    if not all(references):
        raise ValueError("a hypothesis has no reference. Expected at least one reference for each.")
    check_installed()
    from sacrebleu.metrics import BLEU, CHRF

    # sacrebleu takes the first reference of all sentences, then the second, and so on; None if a sentence has no other.
    most = max(map(len, references))
    streams = [[one[n] if n < len(one) else None for one in references] for n in range(most)]
    words = tokenizer(references)
    scored: dict[str, tuple[Any, Any]] = {  # Any, because sacrebleu's annotations lack None
        "bleu": (BLEU(tokenize=words), streams),
        "bleu_one": (BLEU(tokenize=words), streams[:1]),
        "bleu_lowercased": (BLEU(lowercase=True, tokenize=words), streams),
        "chrf": (CHRF(), streams),
    }
    if most == 1:
        del scored["bleu_one"]
    found = {
        name: float(metric.corpus_score(list(hypotheses), given).score) for name, (metric, given) in scored.items()
    }
    signatures = {name: str(metric.get_signature()) for name, (metric, _) in scored.items()}
    return Scores(bleu_one=found.pop("bleu_one", None), **found, signatures=signatures)
