"""Write small files in the formats of Tatoeba, Multi30k and BTEC."""

import gzip
import hashlib
import itertools
from pathlib import Path

import pytest

from gridlstm.data import multi30k

SENTENCES = [
    f"a {a} {b} sees {c}" for a, b, c in itertools.product(("red", "big", "old"), ("cat", "dog"), ("me", "it"))
]


def write_sentences(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write files of all three data sets and make Multi30k expect their checksums; return the directory."""
    (folder / "cmn.txt").write_text("".join(f"{line}\t{line.upper()}\tCC-BY\n" for line in SENTENCES))
    files = {}
    for part, language in itertools.product(("train", "val", "test_2016_flickr"), ("de", "en")):
        content = gzip.compress("\n".join(SENTENCES).encode(), mtime=0)
        (folder / f"{part}.{language}.gz").write_bytes(content)
        files[f"{part}.{language}.gz"] = (len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(multi30k, "FILES", files)
    (folder / "btec").mkdir()
    for name in (
        "train.zh",
        "train.en",
        "dev.zh",
        "test.zh",
        *(f"{part}.en.{n}" for part in ("dev", "test") for n in range(15)),
    ):
        (folder / "btec" / name).write_text("\n".join(SENTENCES) + "\n")
    return folder
