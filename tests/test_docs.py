"""The site of docs/ builds without warnings; a broken link gives a warning."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import PATIENCE, ROOT

pytest.importorskip("material", reason='the site is built by the extra "docs": pip install -e ".[docs]"')
pytest.importorskip("mkdocstrings", reason='the site is built by the extra "docs": pip install -e ".[docs]"')

BUILD = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    words = [*BUILD, str(site)]
    return subprocess.run(
        words, cwd=root, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    done = build(ROOT, site)
    assert done.returncode == 0, done.stderr
    return site


def test_pages_of_docs_and_of_the_root_are_built(site: Path) -> None:
    written = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")}
    written |= {Path(name) for name in ("CHANGELOG.html", "CONTRIBUTING.html", "SECURITY.html")}
    # A README is the page of its directory.
    written = {page.with_name("index.html") if page.name == "README.html" else page for page in written}
    assert {page for page in written if not (site / page).exists()} == set()


def test_docstrings_become_pages(site: Path) -> None:
    assert 'id="gridlstm.layer.GridLSTM"' in (site / "api/layer.html").read_text()
    assert "=====" not in (site / "api/layer.html").read_text(), "a table in a docstring is not shown as a table"
    assert 'id="gridlstm.data.base.Batch.loss_mask"' in (site / "api/data.html").read_text()


def test_page_loads_nothing_from_other_servers(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert 'src="http' not in text
    assert '<link rel="stylesheet" href="http' not in text


def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    for name in ("docs/index.md", ".ci/site_hooks.py", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    settings = "site_name: small\ntheme: material\nhooks: [.ci/site_hooks.py]\nnav: [index.md]\n"
    (tmp_path / "mkdocs.yml").write_text(settings)
    (tmp_path / "docs/index.md").write_text("# Small\n\nSee [this](nowhere.md) and [that](../nowhere/either.md).\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
    assert "nowhere/either.md" in done.stderr
