"""Texts that come in splits: a user's copy of the Penn Treebank, and data sets of the Hugging Face hub by name."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from tests.conftest import compose

from gridlstm.data.hub import Hub
from gridlstm.data.joined import JoinedSource
from gridlstm.data.penn_treebank import FILES, PennTreebank
from gridlstm.data.source import TextSource
from gridlstm.data.streams import SHARES
from gridlstm.data.text import TextData
from gridlstm.data.vocabulary import Level
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.train import CONF
from gridlstm.training.build import make_data
from gridlstm.training.job import run_job

LINES = {"train": "the größte <unk> rose N points", "valid": "it fell", "test": "no one said so"}


@pytest.fixture
def treebank(tmp_path: Path) -> Path:
    """Write a small treebank like the original, with a space at both ends of each line."""
    directory = tmp_path / "ptb"
    directory.mkdir()
    for file, line in zip(FILES, LINES.values(), strict=True):
        (directory / file).write_text(f" {line} \n" * 20)
    return directory


def data_of(source: TextSource, cache_dir: Path, level: Level = "char", **changes: Any) -> TextData:
    return TextData(source, 2, 1, level, window=5, stream_length=10, cache_dir=cache_dir, **changes)


def splits(data: TextData) -> list[str]:
    data.setup("fit")
    decode = data.corpus.vocabulary.decode
    return [decode(data.corpus.ids[part.start : part.stop]) for part in data.parts]


@pytest.mark.parametrize("level", ["byte", "char", "word"])
def test_the_treebanks_files_are_the_splits(treebank: Path, tmp_path: Path, level: Any) -> None:
    def make() -> TextData:
        return data_of(PennTreebank(treebank), tmp_path / "cache", level)

    assert splits(make()) == [f"{line}\n" * 20 for line in LINES.values()]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.txt")}
    assert len(before) == 1
    assert splits(make()) == [f"{line}\n" * 20 for line in LINES.values()]
    assert {path: path.stat().st_mtime_ns for path in before} == before, "the parts must be joined only once"
    next(iter(before)).unlink()  # a user may delete it to free disk space
    assert splits(make()) == [f"{line}\n" * 20 for line in LINES.values()]
    (treebank / FILES[1]).write_text(" another text \n" * 9)
    (treebank / FILES[0]).write_text("with a byte order mark\n" * 9, encoding="utf-8-sig")
    assert splits(make())[:2] == ["with a byte order mark\n" * 9, "another text\n" * 9]


def test_incomplete_treebank_is_refused(treebank: Path, tmp_path: Path) -> None:
    (treebank / FILES[2]).unlink()
    with pytest.raises(UserError, match=r"ptb\.test\.txt: no such file.*licensed and cannot be downloaded"):
        splits(data_of(PennTreebank(treebank), tmp_path))
    (treebank / FILES[2]).write_text("")
    with pytest.raises(UserError, match="Each needs at least 2"):
        splits(data_of(PennTreebank(treebank), tmp_path, "word"))
    (treebank / FILES[2]).write_bytes(b"caf\xe9")
    (treebank / FILES[0]).write_text("changed, so joined anew\n")
    with pytest.raises(UserError, match=r"ptb\.test\.txt is not UTF-8"):
        splits(data_of(PennTreebank(treebank), tmp_path))
    assert not list(tmp_path.glob("*.part"))


def test_a_small_copy_of_the_treebank_is_enough(treebank: Path, tmp_path: Path) -> None:
    data = make_data(compose("task=penn_treebank", f"task.path={treebank}", f"task.data.cache_dir={tmp_path}"))
    assert isinstance(data, TextData)
    assert data.stream_length == 50, "one window, because 50 rows of 620 characters leave no room for more"


def test_errors_name_the_treebank(treebank: Path, tmp_path: Path) -> None:
    """An error must not name the joined file in the cache instead."""
    data = data_of(PennTreebank(treebank), tmp_path)
    with pytest.raises(UserError, match=f"^{treebank} has .* symbols, but had 3 when"):
        data.check_goes_on(data.state_dict() | {"symbols": 3})
    with pytest.raises(UserError, match=r"x cannot be read: .*File name too long"):
        data_of(PennTreebank(tmp_path / ("x" * 300)), tmp_path).check()


def test_changed_parts_with_same_size_and_date_are_rejoined(treebank: Path, data_set: Any, tmp_path: Path) -> None:
    """The datasets package keeps its own copy and compares only dates."""
    directory = data_set()

    def from_treebank() -> str:
        return splits(data_of(PennTreebank(treebank), tmp_path / "cache"))[0]

    for file, read in (
        (treebank / FILES[0], from_treebank),
        (directory / "train.jsonl", lambda: splits(make(directory, tmp_path))[0]),
    ):
        os.utime(file, ns=(0, 1))
        before = read()
        changed = tmp_path / "changed"
        changed.write_bytes(file.read_bytes().replace(b"r", b"R"))
        os.utime(changed, ns=(0, 1))
        changed.replace(file)
        assert read() == before.replace("r", "R") != before


def test_parts_with_another_boundary_do_not_resume(treebank: Path, tmp_path: Path) -> None:
    """The joined text is the same."""
    before = data_of(PennTreebank(treebank), tmp_path / "cache")
    state = before.state_dict()
    validation = (treebank / FILES[1]).read_text()
    (treebank / FILES[1]).write_text(validation.removeprefix(" it fell \n"))
    (treebank / FILES[0]).write_text((treebank / FILES[0]).read_text() + " it fell \n")
    after = data_of(PennTreebank(treebank), tmp_path / "cache")
    assert "".join(splits(after)) == "".join(splits(before))
    with pytest.raises(UserError, match=f"^training, validation and test of {treebank} are divided elsewhere than"):
        after.check_goes_on(state)
    del state["parts"]  # as in older checkpoints
    after.check_goes_on(state)


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that writes a data set as files of JSON lines and returns their directory."""
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub_cache")

    def write(names: tuple[str, ...] = ("train", "validation", "test")) -> Path:
        directory = tmp_path / "-".join(names)
        directory.mkdir()
        for name in names:
            documents = [{"title": f"{name} {n}", "text": f"{name} says {n} times größer", "n": n} for n in range(30)]
            (directory / f"{name}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
        return directory

    return write


def make(directory: Path, tmp_path: Path, splits: Sequence[float] = SHARES, **changes: Any) -> TextData:
    return data_of(Hub(str(directory), **changes), tmp_path / "cache", splits=splits)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_sets_splits_are_the_splits(data_set: Any, tmp_path: Path, streaming: bool) -> None:
    directory = data_set()
    expected = [
        "".join(f"{name} says {n} times größer\n" for n in range(30)) for name in ("train", "validation", "test")
    ]
    assert splits(make(directory, tmp_path, streaming=streaming)) == expected
    titles = splits(make(directory, tmp_path, streaming=streaming, column="title", max_documents=2))
    assert titles == [f"{name} 0\n{name} 1\n" for name in ("train", "validation", "test")]


def test_a_data_set_without_splits_is_divided(data_set: Any, tmp_path: Path) -> None:
    train, val, test = splits(make(data_set(("train",)), tmp_path, splits=(0.5, 0.25, 0.25)))
    assert train + val + test == "".join(f"train says {n} times größer\n" for n in range(30))
    assert len(val) == pytest.approx(len(train) / 2, abs=1)


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_missing_split_is_cut_from_train(data_set: Any, tmp_path: Path, missing: str) -> None:
    """The other split stays complete. Most data sets have a test split but no validation split."""
    names = [name for name in ("train", "validation", "test") if name != missing]
    whole = {name: "".join(f"{name} says {n} times größer\n" for n in range(30)) for name in names}
    length = len(whole["train"])
    directory = data_set(tuple(names))
    for given, cut, kept in (
        ((0.7, 0.2, 0.1), round((0.2 if missing == "validation" else 0.1) * length), None),
        ((300, 40, 20), 40 if missing == "validation" else 20, 300),
    ):
        data = make(directory, tmp_path, splits=given)
        found = dict(zip(("train", "validation", "test"), splits(data), strict=True))
        (own,) = [name for name in names if name != "train"]
        assert found[own] == whole[own]
        assert len(found[missing]) == pytest.approx(cut, abs=1)
        if kept is None:
            assert found["train"] + found[missing] == whole["train"]
        else:
            assert (found["train"], found[missing]) == (whole["train"][:kept], whole["train"][kept : kept + cut])


def test_only_cut_splits_need_a_share(data_set: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = data_set(("train", "test"))
    train, validation, test = splits(make(directory, tmp_path, splits=(0.9, 0.1, 0.0)))
    assert len(validation) == pytest.approx(len(train + validation) / 10, abs=1)
    assert test.startswith("test says 0 times")
    with pytest.raises(UserError, match=r"leaves 0 of .* symbols for validation"):
        splits(make(directory, tmp_path, splits=(0.9, 0.0, 0.1)))
    assert "has no effect" not in caplog.text
    splits(make(data_set(), tmp_path))
    assert "has no effect" not in caplog.text
    splits(make(tmp_path / "train-validation-test", tmp_path, splits=(0.8, 0.1, 0.1)))
    assert "splits=[0.8, 0.1, 0.1] has no effect on validation and test:" in caplog.text
    splits(make(directory, tmp_path, splits=(0.8, 0.1, 0.1)))
    assert "splits=[0.8, 0.1, 0.1] has no effect on test:" in caplog.text


def test_a_split_with_another_name_is_ignored(data_set: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = data_set(("train", "test"))
    documents = {
        name: [json.dumps({"text": f"{name} {n}"}) for n in range(30)] for name in ("train", "test", "unsupervised")
    }
    for name, lines in documents.items():
        (directory / f"{name}.jsonl").write_text("\n".join(lines))
    yaml = "".join(f"  - split: {name}\n    path: {name}.jsonl\n" for name in documents)
    (directory / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{yaml}---\n")
    assert "unsupervised" not in "".join(splits(make(directory, tmp_path)))
    assert "unsupervised is not used" in caplog.text


def test_documents_without_text_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "set").mkdir()
    rows = [{"text": f"document {n}" if n % 3 else None} for n in range(90)]
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = "".join(f"document {n}\n" for n in range(90) if n % 3)
    assert "".join(splits(make(tmp_path / "set", tmp_path))) == expected
    assert any(record.message.startswith("30 documents of") for record in caplog.records)
    first = "".join(f"document {n}\n" for n in (1, 2, 4, 5))
    assert "".join(splits(make(tmp_path / "set", tmp_path, max_documents=4))) == first, (
        "documents without text must not count"
    )


def test_data_set_from_save_to_disk_is_read(data_set: Any, tmp_path: Path) -> None:
    import datasets

    directory = data_set()
    found = datasets.load_dataset(str(directory))
    found.save_to_disk(tmp_path / "all")
    found["train"].with_format("pandas").save_to_disk(tmp_path / "one")
    expected = splits(make(directory, tmp_path))
    assert splits(make(tmp_path / "all", tmp_path)) == expected
    assert "".join(splits(make(tmp_path / "one", tmp_path))) == expected[0]
    with pytest.raises(UserError, match=r"all was written by save_to_disk, .* Remove config=a"):
        splits(make(tmp_path / "all", tmp_path, config="a"))


def test_directory_is_one_data_set_under_any_spelling(
    data_set: Any,
    tmp_path: Path,
    job: Callable[..., DictConfig],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The datasets package would take the name json for the format."""
    directory = data_set().rename(tmp_path / "json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(name: str, *options: str) -> None:
        config = job(f"task.data.cache_dir={tmp_path / 'cache'}", *options, task="hub")
        config.task.name = name
        run_job(config)

    monkeypatch.chdir(tmp_path)
    run("json", "stages=[fit]")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with caplog.at_level("INFO"):
        evaluate(tmp_path / "run" / "checkpoints" / "best.ckpt", "test", [])
        run("~/json", "ckpt_path=last", "trainer.max_steps=6")
        run("../json", "ckpt_path=last", "trainer.max_steps=8")
    assert len(list((tmp_path / "cache").glob("*.parts.json"))) == 1
    assert caplog.text.count(f"{directory} is read from the joined file in the cache") == 3


@pytest.mark.usefixtures("data_set")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.txt": b"a line\n" * 30, "validation.txt": b""}, r"validation.* of .*set holds no document\. Add"),
        ({"train.jsonl": b"", "test.jsonl": b'{"text": "a line"}\n'}, r"train\.jsonl of .*set holds no document\. Add"),
        ({"train.txt": b"text\n" * 30 + b"gr\xf6\xdfer\n"}, r"train\.txt of .*set is not UTF-8 \(.*\)\. Convert it"),
    ],
)
def test_empty_or_non_utf8_file_is_named(
    files: dict[str, bytes], message: str, streaming: bool, tmp_path: Path
) -> None:
    directory = tmp_path / "set"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        splits(make(directory, tmp_path, streaming=streaming))


def test_configurations_are_named(data_set: Any, tmp_path: Path) -> None:
    directory = data_set()
    configs = [f"- config_name: {name}\n  data_files: {file}.jsonl\n" for name, file in (("a", "train"), ("b", "test"))]
    (directory / "README.md").write_text("".join(["---\nconfigs:\n", *configs, "---\n"]))
    with pytest.raises(UserError, match=r"has several configurations\. Use config=…, one of a, b\."):
        splits(make(directory, tmp_path))
    assert splits(make(directory, tmp_path, config="b"))[0].startswith("test says 0 times")


def test_data_set_errors_name_the_problem(data_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = data_set()
    for changes, message in (
        ({"column": "body"}, r"column=body is not text in .*\. Columns of text: title, text"),
        ({"column": "n"}, "column=n is not text"),
        ({"config": "nonsense"}, "cannot be loaded"),
    ):
        with pytest.raises(UserError, match=message):
            splits(make(directory, tmp_path, **changes))
    with pytest.raises(ValueError, match=r"^max_documents must be at least 1, got 0"):
        Hub("some/name", max_documents=0)
    with pytest.raises(UserError, match="has no split train, but test"):
        splits(make(data_set(("test",)), tmp_path))
    with pytest.raises(UserError, match=r"cannot be loaded.*name="):
        splits(make(tmp_path / "nothing", tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install gridlstm\[datasets\]"):
        splits(make(directory, tmp_path, max_documents=1))


def test_custom_source_from_the_docs_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user copies the source from docs/extending.md and chooses it in a YAML file."""
    page = (CONF.parent / "docs" / "extending.md").read_text().partition("Add to `my_models.py`")[2]
    for name, language in (("my_models.py", "python"), ("my_conf/task/folder.yaml", "yaml")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(page.partition(f"```{language}\n")[2].partition("```")[0])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").write_text("the last of them, " * 9)
    (tmp_path / "a.txt").write_text("the first of them, " * 9)
    monkeypatch.syspath_prepend(tmp_path)
    searched = f"hydra.searchpath=[{tmp_path / 'my_conf'}]"
    sizes = ["task.data.window=2", "task.data.stream_length=4", "task.data.splits=[0.8,0.1,0.1]"]
    cfg = compose(searched, "task=folder", f"task.path={tmp_path}", f"task.data.cache_dir={tmp_path / 'cache'}", *sizes)
    assert "".join(splits(make_data(cfg))) == "the first of them, " * 9 + "the last of them, " * 9  # type: ignore[arg-type]


class Pieces(JoinedSource):
    """Pieces of text, which may begin and end within words."""

    name = "pieces"

    def __init__(self, **parts: list[str]) -> None:
        self.parts = parts

    def key(self) -> str:
        return "pieces"

    def read_parts(self) -> dict[str, list[str]]:
        return self.parts


def test_words_that_continue_in_the_next_piece_are_counted_once(tmp_path: Path) -> None:
    parts = {"train": ["a b", "c d", "", " e\n", "f", "", "g"], "validation": ["h i", "\n"], "test": [" j", " k"]}
    found = Pieces(**parts).find(tmp_path)
    assert found.file.read_text().split() == ["a", "bc", "d", "e", "fgh", "i", "j", "k"]
    assert found.parts is not None
    assert found.parts["word"] == {"train": 6, "validation": 2, "test": 2}, "line ends are words too"


@pytest.mark.parametrize(("suffix", "left"), [(".txt", 5), (".parts.json", 0)])
def test_an_incomplete_file_in_the_cache_is_joined_anew(tmp_path: Path, suffix: str, left: int) -> None:
    source = Pieces(train=["a train"], test=["a test"])
    whole = source.find(tmp_path).file.with_suffix(suffix)
    content = whole.read_text()
    os.truncate(whole, left)
    source.find(tmp_path)
    assert whole.read_text() == content


def test_a_run_on_a_data_set(data_set: Any, tmp_path: Path, job: Callable[..., DictConfig]) -> None:
    names = [f"task.name={data_set()}", f"task.data.cache_dir={tmp_path / 'cache'}", "task.data.level=word"]
    run_job(job(*names, task="hub"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    vocabulary = torch.load(checkpoint, weights_only=True)["TextData"]["vocabulary"]
    assert {"times", "größer", "<eos>"} < set(vocabulary)
    assert evaluate(checkpoint, "test", []) == json.loads((tmp_path / "run" / "result.json").read_text())["test"]
