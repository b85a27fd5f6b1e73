"""Turn the simple tables of docstrings, which are drawn with rows of "=", into Markdown for the site."""

import re
from typing import Any

from griffe import Extension, Object

RULE = re.compile(r"=+( +=+)+")


def markdown_table(rules: str, rows: list[str]) -> list[str]:
    starts = [column.start() for column in re.finditer("=+", rules)]
    cells: list[list[str]] = []
    for row in rows:
        parts = [row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        if parts[0]:
            cells.append(parts)
        else:  # a row's second line
            cells[-1] = [f"{first} {second}".strip() for first, second in zip(cells[-1], parts, strict=True)]
    lines = [[part if part.startswith("``") else re.sub(r"([*_|])", r"\\\1", part) for part in row] for row in cells]
    empty = ["| " * len(starts) + "|", "| --- " * len(starts) + "|"]
    return [*empty, *(f"| {' | '.join(line)} |" for line in lines)]


def with_tables(text: str) -> str:
    lines = text.splitlines()
    rules = [number for number, line in enumerate(lines) if RULE.fullmatch(line.strip())]
    for top, bottom in reversed(list(zip(rules[::2], rules[1::2], strict=True))):
        lines[top : bottom + 1] = markdown_table(lines[top], lines[top + 1 : bottom])
    return "\n".join(lines)


class DocstringTables(Extension):
    """Rewrite every docstring as it is read."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = with_tables(obj.docstring.value)
