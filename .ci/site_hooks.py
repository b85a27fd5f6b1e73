"""Hooks of mkdocs: pages from the repository's root, and links that leave docs/.

A page of docs/ may link to a file outside docs/. The site has no such file, so only the text is left there.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)*)([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    for name in ROOT_PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    source = ROOT / page.file.src_uri if page.file.src_uri in ROOT_PAGES else ROOT / "docs" / page.file.src_uri

    def rewrite(link: re.Match[str]) -> str:
        text, up, path, anchor = link.groups()
        target = (source.parent / up / path).resolve()
        if target.is_relative_to(ROOT / "docs") and source.parent != ROOT:
            return link.group()
        if target.name in ROOT_PAGES and target.parent == ROOT:
            return f"[{text}]({'../' * page.file.src_uri.count('/')}{target.name}{anchor or ''})"
        if target.is_relative_to(ROOT / "docs"):
            return f"[{text}]({target.relative_to(ROOT / 'docs')}{anchor or ''})"
        return text if target.exists() else link.group()

    return LINK.sub(rewrite, markdown)
