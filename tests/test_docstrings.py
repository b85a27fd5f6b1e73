"""Docstrings say in plain English what code does: those of functions begin with a verb, those of classes with a noun.

The check reads the text of the package and of its tests. It knows the openings that are wrong, not all that are right.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parents[1]

# They open a clause about a thing ("What the cell returns"), which leaves out who does what.
CLAUSES = "what|whatever|whether|which|whichever|of|where|wherever|how|who|whoever|whom|whose|why|when"
# They open a description of the value, not of the action.
DESCRIPTIONS = (
    "that|the|a|an|one|two|each|every|all|both|those|these|this|some|any|its|itself|their|our|no|none|nothing|only|"
    "as|by|in|on|from|for|with|without|to|at|into|over|under|per|if|unless|while|because|so|such|same|like|one's|"
    "there|here|it|they|not|also|but|and|or|true|false"
)
THIRD_PERSON = (
    "accepts|adds|allows|appends|applies|asks|begins|builds|calls|changes|checks|chooses|closes|collects|combines|"
    "compares|composes|computes|continues|converts|copies|counts|creates|cuts|decides|deletes|describes|draws|drops|"
    "ends|estimates|evaluates|expands|fills|finds|formats|generates|gets|gives|goes|groups|handles|has|holds|"
    "initializes|initializes|is|keeps|lets|lists|loads|logs|looks|makes|measures|merges|moves|names|opens|parses|"
    "plots|prepares|prints|projects|puts|raises|reads|records|refuses|registers|removes|renames|replaces|reports|"
    "resets|restores|resumes|returns|reverses|runs|samples|saves|says|scores|searches|sends|sets|shows|sorts|splits|"
    "starts|stops|stores|sums|sweeps|takes|tells|tests|times|trains|turns|updates|uses|validates|waits|warns|writes|"
    "yields"
)


# They continue the name of a test ("So any number of ranks …") instead of giving its reason in a sentence.
FRAGMENTS = "also|and|as|at|by|else|even|from|or|so|such"

Kind = Literal["function", "test", "other"]


def problem(docstring: str, kind: Kind) -> str | None:
    """Return the opening of a docstring if it is a wrong one."""
    opening = " ".join(docstring.split()[:4])
    first = re.match(r"[A-Za-z][A-Za-z'’-]*", opening)
    word = first[0].lower() if first else ""
    if kind == "function":
        wrong = not first or re.fullmatch(f"{CLAUSES}|{DESCRIPTIONS}|{THIRD_PERSON}", word)
    else:
        wrong = re.fullmatch(f"{CLAUSES}|{FRAGMENTS}" if kind == "test" else CLAUSES, word)
    return opening if wrong else None


def documented(tree: ast.AST) -> Iterator[tuple[int, str, Kind]]:
    """Yield the line, the text and the kind of every docstring; a property is no function."""
    for node in ast.walk(tree):
        body = getattr(node, "body", [])
        strings = [
            (k, statement.lineno, statement.value.value)
            for k, statement in enumerate(body if isinstance(body, list) else [])
            if isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        ]
        for k, line, text in strings:
            kind: Kind = "other"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and k == 0 and not _is_property(node):
                kind = "test" if node.name.startswith("test_") else "function"
            yield line, text, kind


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(name.endswith(("property", ".setter")) for name in decorators)


EXPECTED: dict[Kind, str] = {
    "function": 'an imperative verb, such as "Return …", "Raise …" or "Return True if …"',
    "test": "a sentence that gives the reason of the test, or an equation",
    "other": 'a noun or a verb, such as "Number of layers." or "True if …"',
}
FILES = sorted(path for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_verb_or_a_noun(path: Path) -> None:
    found = []
    for line, text, kind in documented(ast.parse(path.read_text(encoding="utf-8"))):
        if (opening := problem(text, kind)) is not None:
            found.append(f"{path.relative_to(ROOT)}:{line}: begins with {opening!r}; expected {EXPECTED[kind]}")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "opening",
    [
        "Return the state.", "Raise UserError unless x fits.", "Write a figure.", "Load weights.", "Process a batch.",
        "Pass the state on.", "Discuss it.",
    ],
)  # fmt: skip
def test_a_verb_may_begin_a_function(opening: str) -> None:
    assert problem(opening, "function") is None


@pytest.mark.parametrize(
    "opening",
    [
        "What leaves the grid.", "Whether it fits.", "The state.", "(B, T) floats.", "``None`` for none.",
        "Returns the state.", "Of a run, its name.", "One block.", "A hint.",
    ],
)  # fmt: skip
def test_a_noun_or_a_clause_may_not_begin_a_function(opening: str) -> None:
    assert problem(opening, "function") is not None


@pytest.mark.parametrize("opening", ["Where a run lies.", "What leaves the grid.", "Of the best rate."])
def test_a_clause_may_not_begin_a_class_or_attribute(opening: str) -> None:
    assert problem(opening, "other") is not None


@pytest.mark.parametrize("opening", ["So ranks agree.", "As in a container.", "Whatever the depth.", "And no other."])
def test_a_fragment_or_a_clause_may_not_begin_a_test(opening: str) -> None:
    assert problem(opening, "test") is not None


@pytest.mark.parametrize(
    "opening", ["Otherwise h is lost.", "The state is kept.", "In float32, 0.1 rounds.", "|m'| <= 1"]
)
def test_a_sentence_may_begin_a_test(opening: str) -> None:
    assert problem(opening, "test") is None


@pytest.mark.parametrize("opening", ["The state.", "(L, B, d)", "True if it fits.", "Number of layers."])
def test_a_noun_or_a_shape_may_begin_a_class_or_attribute(opening: str) -> None:
    assert problem(opening, "other") is None
