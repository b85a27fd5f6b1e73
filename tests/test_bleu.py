"""BLEU and chrF of translations."""

import math

import pytest

from gridlstm.bleu import bleu, tokenizer
from gridlstm.errors import UserError

pytest.importorskip("sacrebleu")

HYPOTHESES = ["the cat sat on the mat today", "a dog barks here"]
REFERENCES = [["the cat sat on a mat today", "a cat sat there"], ["a dog barks here"]]


def test_bleu_equals_a_computation_by_hand() -> None:
    # 6 of the first sentence's 7 1-grams count, because each reference has "the" once. Closest lengths: 7 and 4.
    precisions = [(6 + 4) / 11, (4 + 3) / 9, (2 + 2) / 7, (1 + 1) / 5]
    expected = 100 * math.prod(precisions) ** (1 / 4)
    assert bleu(HYPOTHESES, REFERENCES).bleu == pytest.approx(expected)


def test_short_translations_are_penalized_by_the_closest_reference_of_each() -> None:
    short = ["the cat sat on the mat today", "a dog barks loudly"]
    longer = [[REFERENCES[0][0]], ["a dog barks loudly at two cats", "a dog barks loudly now at cats too"]]
    # The translations have 11 words, their closest references 7 each.
    precisions = [(6 + 4) / 11, (4 + 3) / 9, (2 + 2) / 7, (1 + 1) / 5]
    expected = 100 * math.exp(1 - 14 / 11) * math.prod(precisions) ** (1 / 4)
    assert bleu(short, longer).bleu == pytest.approx(expected)


def test_sentences_without_a_further_reference_do_not_count_as_empty_references() -> None:
    """The length of an empty second reference would be closer to that of a short translation."""
    many = [["a b c d e", "a b c d f"], ["a b c d e f g h"]]
    once = [[references[0]] for references in many]
    assert bleu(["a b c d e", "a b c d"], many).bleu == bleu(["a b c d e", "a b c d"], once).bleu


def test_the_score_of_one_reference_takes_the_first_of_each_sentence() -> None:
    many = [["a b c d e", "a b c d f"], ["a b c d e f"]]
    hypotheses = ["a b c d f", "a b c d e f"]
    scores = bleu(hypotheses, many)
    assert scores.bleu == pytest.approx(100)
    assert scores.bleu_one == bleu(hypotheses, [[one[0]] for one in many]).bleu
    assert scores.bleu_one < 95
    assert "nrefs:1|case:mixed" in scores.signatures["bleu_one"]
    assert "nrefs:var" in scores.signatures["bleu"]


def test_a_single_reference_gives_no_further_score() -> None:
    scores = bleu(HYPOTHESES, [each[:1] for each in REFERENCES])
    assert scores.bleu_one is None
    assert "bleu_one" not in scores.signatures


def test_case_counts_except_in_the_lowercased_score() -> None:
    scores = bleu(["The Cat sat on the mat."], [["the cat sat on the mat."]])
    assert scores.bleu_lowercased == pytest.approx(100)
    assert scores.bleu < 70
    assert 70 < scores.chrf < 100
    assert "case:mixed" in scores.signatures["bleu"]
    assert "case:lc" in scores.signatures["bleu_lowercased"]
    assert all("nrefs:1" in signature for signature in scores.signatures.values())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a cat named 小猫", "13a"),
        ("Über 1.000 Größen", "13a"),
        ("...", "13a"),
        ("这只猫坐在垫子上，很高兴。", "zh"),
        ("他用 DJ 的电脑。", "zh"),
        ("猫はマットの上に座っている。", "char"),
    ],
)
def test_the_tokenizer_suits_the_language_of_the_references(text: str, name: str) -> None:
    assert tokenizer([[text]]) == name
    assert f"tok:{name}|" in bleu([text], [[text]]).signatures["bleu"]


def test_chinese_is_compared_character_by_character() -> None:
    """With 13a, a sentence without spaces is a single word, and BLEU is 0 unless all of it is right."""
    hypothesis, reference = "这只猫坐在床上很高兴", "这只猫坐在地上很高兴"
    apart = [" ".join(text) for text in (hypothesis, reference)]
    expected = bleu([apart[0]], [[apart[1]]]).bleu
    assert bleu([hypothesis], [[reference]]).bleu == pytest.approx(expected)
    assert expected > 40


def test_missing_references_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected at least one hypothesis, and one list of.*got 2 and 1\.$"):
        bleu(HYPOTHESES, REFERENCES[:1])
    with pytest.raises(ValueError, match=r"^a hypothesis has no reference\. Expected at least one"):
        bleu(HYPOTHESES, [["a"], []])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gridlstm.bleu.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed\. Run: pip install 'gridlstm\[translation\]'$"):
        bleu(HYPOTHESES, REFERENCES)
