"""Translation data: batches of similar lengths, exact resumes and ranks, splits without leaks, and checkpoints."""

import gzip
import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tests.conftest import compose

from gridlstm.data import multi30k
from gridlstm.data.base import PairBatch, Split
from gridlstm.data.hub_pairs import HubPairs
from gridlstm.data.multi30k import Multi30k
from gridlstm.data.pairs import PairSource, Sentences, read_lines, read_parallel, split_off
from gridlstm.data.parallel import Btec, Parallel
from gridlstm.data.tatoeba import Tatoeba
from gridlstm.data.translation import CHUNK, TranslationData, bucketed
from gridlstm.data.words import PieceLevel, WordLevel
from gridlstm.errors import UserError
from gridlstm.options import Role, role
from gridlstm.training.build import check_task, check_types, make_data

BATCH = 5


def sentences(number: int, seed: int, words: str = "abcdefgh") -> Sentences:
    """Return sources of 1 to 12 words, each with its number as the first word, and translations of similar length."""
    draw = random.Random(seed)
    sources, references = [], []
    for n in range(number):
        length = draw.randint(1, 12)
        sources.append(" ".join([f"n{n}", *draw.choices(words, k=length - 1)]))
        references.append([" ".join([f"m{n}", *draw.choices(words.upper(), k=max(0, length + draw.randint(-2, 2)))])])
    return Sentences(sources, references)


class Generated(PairSource):
    """Generated sentences, without a file."""

    name = "generated"

    def __init__(self, **splits: Sentences) -> None:
        self.splits = {"train": sentences(103, 1), "val": sentences(17, 2), "test": sentences(17, 3), **splits}

    def read(self) -> Mapping[Split, Sentences]:
        return self.splits  # type: ignore[return-value]


def data(source: PairSource | None = None, min_count: int = 1, **options: Any) -> TranslationData:
    given = {"batch_size": BATCH, "seed": 3, **options}
    made = TranslationData(
        source or Generated(), source_level=WordLevel(min_count), target_level=WordLevel(min_count), **given
    )
    made.setup("fit")
    return made


def on_rank(made: TranslationData, rank: int, world_size: int) -> TranslationData:
    # The data read only these attributes of a trainer.
    made.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=world_size, training=True, state=SimpleNamespace(fn="fit")
    )
    return made


def batches(made: TranslationData, number: int = 99, loader: str = "train") -> list[PairBatch]:
    return list(islice(getattr(made, f"{loader}_dataloader")(), number))


def pairs(made: TranslationData, batch: PairBatch) -> list[tuple[str, str]]:
    """Return the sentence pairs of a batch as text."""
    source, target = made.source_vocabulary, made.target_vocabulary
    return [(source.decode(one), target.decode(other)) for one, other in zip(batch.source, batch.targets, strict=True)]


# Batches.


def test_sources_end_with_eos_and_targets_are_the_inputs_of_the_next_step() -> None:
    train = Sentences(["a b c", "d", "e f"], [["A"], ["B C D"], ["E"]])
    made = data(Generated(train=train), batch_size=3)
    (batch,) = batches(made, 1)
    row = pairs(made, batch).index(("d", "B C D"))
    source, target = made.source_vocabulary, made.target_vocabulary
    assert batch.source[row].tolist() == [*source.encode("d"), source.EOS, source.PAD, source.PAD]
    assert batch.source_mask[row].tolist() == [True, True, False, False]
    assert batch.inputs[row].tolist() == [target.BOS, *target.encode("B C D")]
    assert batch.targets[row].tolist() == [*target.encode("B C D"), target.EOS]
    assert batch.loss_mask[row].tolist() == [True] * 4
    row = pairs(made, batch).index(("a b c", "A"))
    assert batch.inputs[row].tolist() == [target.BOS, *target.encode("A"), target.PAD, target.PAD]
    assert batch.targets[row].tolist() == [*target.encode("A"), target.EOS, target.PAD, target.PAD]
    assert batch.loss_mask[row].tolist() == [True, True, False, False]
    assert {x.dtype for x in (batch.source, batch.inputs, batch.targets)} == {torch.int64}


def test_every_epoch_has_every_pair_once_in_a_new_order() -> None:
    made = data()
    stream = [*chain(*(pairs(made, batch) for batch in batches(made, 103)))]  # five epochs of 103 pairs
    epochs = [stream[first : first + 103] for first in range(0, len(stream), 103)]
    assert all(sorted(epoch) == sorted(Generated().splits["train"].pairs()) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert made.batches_per_epoch == 21


def test_batches_have_pairs_of_similar_lengths_in_random_order() -> None:
    draw = np.random.default_rng(0)
    lengths = np.sort(draw.integers(1, 60, (4003, 2)), axis=1)
    for epoch in range(3):
        order = bucketed(lengths, 16, 7, epoch)
        assert sorted(order) == list(range(4003))
        begin = -epoch * 4003 % 16
        whole = lengths[order[begin : begin + (4003 - begin) // 16 * 16]].reshape(-1, 16, 2)
        longest = whole.max(axis=1)
        padded = longest.prod(axis=1).sum() * 16 / whole.prod(axis=2).sum()
        assert padded < 1.2, "pairs in random order have 3.0 times as many places as without padding"
        assert all(0.2 < (np.diff(side) > 0).mean() < 0.8 for side in longest.T)
        assert len(whole) > 2 * CHUNK
    assert not np.array_equal(bucketed(lengths, 16, 7, 0), bucketed(lengths, 16, 8, 0))


@pytest.mark.parametrize("batch_size", [1, 3, 103, 250])
def test_any_batch_size_has_every_pair_once(batch_size: int) -> None:
    made = data(batch_size=batch_size)
    found = Counter(chain(*(pairs(made, batch) for batch in batches(made, 103))))
    assert set(found.values()) == {batch_size}
    assert len(found) == 103


@pytest.mark.parametrize("seen", [2, 21, 30])
def test_resumes_in_the_middle_of_an_epoch(seen: int) -> None:
    whole, made = data(), data()
    made.load_state_dict(whole.state_dict() | {"batches_seen": seen})
    for resumed, expected in zip(batches(made, 9), batches(whole, seen + 9)[seen:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(resumed, expected, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_batch_of_training_and_evaluation(world_size: int) -> None:
    source = Generated(val=sentences(18, 2), test=sentences(18, 3))
    ranks = [on_rank(data(source), rank, world_size) for rank in range(world_size)]
    parts = [[pairs(made, batch) for batch in batches(made, 45)] for made in ranks]
    whole = data(source)
    assert [[*chain(*(part[n] for part in parts))] for n in range(45)] == [pairs(whole, b) for b in batches(whole, 45)]
    for loader in ("val", "test"):
        parts = [[pairs(made, batch) for batch in batches(made, loader=loader)] for made in ranks]
        shared = [[*chain(*batch)] for batch in zip(*parts, strict=True)]
        assert shared == [pairs(whole, batch) for batch in batches(whole, loader=loader)]


def test_the_first_evaluation_batches_are_not_those_of_the_shortest_sentences() -> None:
    made = data(Generated(val=sentences(200, 5)))
    widths = [batch.targets.shape[1] for batch in batches(made, loader="val")]
    whole, first = sum(widths) / len(widths), sum(widths[:10]) / 10
    assert abs(first - whole) < 2, "the standard error of a mean of ten is about 1"
    assert widths == [batch.targets.shape[1] for batch in batches(made, loader="val")]


def test_evaluation_has_every_pair_once_in_batches_of_similar_lengths() -> None:
    val = Sentences(["n1 a b", "n2"], [["m1 A", "m1 B B B B", "m1"], ["m2 A"]])
    made = data(Generated(val=val), batch_size=2)
    found = batches(made, loader="val")
    texts = [*chain(*(pairs(made, batch) for batch in found))]
    assert sorted(texts) == sorted(val.pairs())
    assert sorted(batch.targets.shape[1] for batch in found) == [3, 6]
    assert made.sources("val") == val.sources
    assert made.references("val") == val.references


def test_long_and_empty_pairs_are_left_out_only_of_training(caplog: pytest.LogCaptureFixture) -> None:
    odd = Sentences(["", "a", "a b c d e f g h i", "a b", " "], [["A"], [" "], ["A"], ["A B"], [""]])
    with caplog.at_level(logging.INFO):
        made = data(Generated(train=odd, test=odd), max_length=8, batch_size=1)
    assert "3 training pairs with an empty side are left out" in caplog.text
    assert "1 training pairs with over 8 symbols on a side are left out" in caplog.text
    assert pairs(made, batches(made, 1)[0]) == [("a b", "A B")]
    assert sum(len(batch.source) for batch in batches(made, loader="test")) == 5
    assert made.sources("test") == odd.sources
    assert (made.spec.source_length, made.spec.target_length) == (3, 3)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("given", [Sentences([], []), Sentences(["a", ""], [[" "], ["A"]])], ids=["empty", "no text"])
def test_a_split_without_text_is_refused_before_training(split: str, given: Sentences) -> None:
    name = {"train": "training", "val": "validation", "test": "test"}[split]
    with pytest.raises(UserError, match=f"^no {name} pair of generated has text on both sides"):
        data(Generated(**{split: given}))


def test_an_evaluation_sentence_many_times_too_long_is_refused_before_training() -> None:
    longest = Sentences(["a"], [["B " * 120]])
    assert data(Generated(test=longest), max_length=12).dataset("test")
    with pytest.raises(
        UserError, match=r"^a test sentence of generated has 120 symbols\. Expected at most 110, 10 times"
    ):
        data(Generated(test=longest), max_length=11)


def test_a_level_that_cannot_be_learned_is_named() -> None:
    with pytest.raises(UserError, match=r"^target_level: no word of 2 training sentences is seen 2 times"):
        data(Generated(train=Sentences(["a", "a"], [["A"], ["B"]])), min_count=2)


def test_more_processes_than_test_sentences_are_refused_before_training() -> None:
    made = data(Generated(test=Sentences(["a"], [["A", "B"]])))
    made.check_processes(1)
    with pytest.raises(UserError, match=r"^the number of test sentences=1 is global and cannot be divided over 2 proc"):
        made.check_processes(2)


def test_texts_that_are_the_same_where_they_should_differ_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    data()
    assert not caplog.records
    same = Generated().splits["val"]
    data(Generated(train=Sentences.one_each([(text, text) for text in same.sources])))
    assert caplog.messages == ["generated: every training sentence equals its translation"]
    caplog.clear()
    data(Generated(train=Generated().splits["test"]))
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("generated: 17 of 17 test pairs are also training pairs")


def test_words_that_training_does_not_have_are_unknown() -> None:
    made = data(Generated(val=Sentences(["n1 ü"], [["m1 Ü"]])), min_count=2)
    (batch,) = batches(made, loader="val")
    assert batch.source[0, 1] == made.source_vocabulary.UNK
    assert batch.targets[0, 1] == made.target_vocabulary.UNK


def test_the_spec_has_the_vocabulary_sizes_and_mean_lengths() -> None:
    made = data(Generated(train=Sentences(["a b", "c d e"], [["A"], ["A"]])))
    spec = made.spec
    assert (spec.source_size, spec.target_size) == (9, 5)
    assert (spec.source_length, spec.target_length) == (4, 2)


# Checkpoints.


def test_a_checkpoint_evaluates_with_its_own_vocabularies() -> None:
    trained = data()
    state = json.loads(json.dumps(trained.state_dict()))
    other = Generated(train=sentences(30, 9, "uvwxyz"))
    made = TranslationData(other, BATCH, 1, WordLevel(1), WordLevel(1))
    made.load_state_dict(state)
    made.setup("test")
    assert made.changed
    assert made.source_vocabulary.state() == trained.source_vocabulary.state()
    for found, expected in zip(batches(made, loader="test"), batches(trained, loader="test"), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    again = data()
    again.load_state_dict(state)
    assert not again.changed


@pytest.mark.parametrize(
    ("changes", "min_count", "what"),
    [({"train": sentences(103, 4)}, 1, "pairs"), ({}, 2, "vocabularies")],
)
def test_training_resumes_only_on_the_same_pairs_and_vocabularies(
    changes: dict[str, Sentences], min_count: int, what: str
) -> None:
    made = on_rank(data(Generated(**changes), min_count), 0, 1)
    with pytest.raises(UserError, match=f"^the {what} of generated are not those that the checkpoint was trained on"):
        made.load_state_dict(data().state_dict())
    on_rank(data(), 0, 1).load_state_dict(data().state_dict())


def test_training_does_not_resume_on_other_validation_sentences() -> None:
    made = on_rank(data(Generated(val=sentences(17, 8))), 0, 1)
    with pytest.raises(UserError, match=r"^the validation sentences of generated are not those that the run had"):
        made.load_state_dict(data().state_dict())
    older = {key: value for key, value in data().state_dict().items() if key != "val_crc32"}
    made.load_state_dict(older)


def test_other_test_sentences_are_noticed_by_an_evaluation_alone() -> None:
    other = Generated(test=sentences(17, 8))
    on_rank(data(other), 0, 1).load_state_dict(data().state_dict())
    evaluated = data(other)
    evaluated.load_state_dict(data().state_dict())
    assert evaluated.changed


# Parallel files.


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def parallel(folder: Path, **options: Any) -> Parallel:
    given = {"train": [folder / "train.x", folder / "train.y"], "test": [folder / "test.x", folder / "test.y"]}
    return Parallel(**(given | options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [f"x{n % 30} word" for n in range(40)]
    return write(
        tmp_path / "files",
        train_x="\ufeff" + "\n".join(lines) + "\n",
        train_y="\r\n".join(f"y{n} word" for n in range(40)),
        test_x="a\nb\n\n",
        test_y="A\nB\u2028B\n\n",
        more_y="\nBB\n\n",
    )


def test_line_n_of_each_file_belongs_to_line_n_of_the_others(folder: Path) -> None:
    files = [folder / "test.x", folder / "test.y", folder / "more.y"]
    read = parallel(folder, test=files, val=files[:2]).read()
    assert read["test"] == Sentences(["a", "b", ""], [["A"], ["B\u2028B", "BB"], [""]])
    assert read["val"] == Sentences(["a", "b", ""], [["A"], ["B\u2028B"], [""]])
    assert read["train"].pairs()[0] == ("x0 word", "y0 word")
    assert len(read["train"].sources) == 40


def test_a_missing_validation_is_split_off_by_source(folder: Path) -> None:
    read = parallel(folder, num_val=7).read()
    assert len(set(read["val"].sources)) == len(read["val"].sources) == 7
    assert not set(read["val"].sources) & set(read["train"].sources)
    assert len(read["train"].pairs()) + len(read["val"].pairs()) == 40
    with pytest.raises(UserError, match=r"^num_val=30 leaves none of 30 source sentences to train on\. Use a smaller"):
        parallel(folder, num_val=30).read()
    write(folder, train_x="", train_y="")
    with pytest.raises(UserError, match=r"^no training pair of .*train\.x and .*train\.y has text on both sides"):
        data(parallel(folder))


def test_a_split_depends_on_the_sentences_and_not_on_their_order() -> None:
    given = [(f"x{n % 30}", f"y{n}") for n in range(40)]
    left, split = split_off(given, 9, "num_val")
    left_again, split_again = split_off(given[::-1], 9, "num_val")
    assert sorted(left) == sorted(left_again)
    assert sorted(split.pairs()) == sorted(split_again.pairs())


def test_compressed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress("größer\n".encode()))
    assert read_lines(tmp_path / "x.gz") == ["größer"]


def test_packed_files_whose_names_do_not_say_so_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(b"line\n"))
    with pytest.raises(UserError, match=r"/x holds data packed as gzip\. Unpack it, or rename it to end in \.gz"):
        read_lines(tmp_path / "x")


def test_errors_in_parallel_files_are_named(folder: Path) -> None:
    write(folder, latin_x="ok\ngrün\n".encode("latin1"), short_y="A\nB\n")
    source = folder / "test.x"
    with pytest.raises(UserError, match=r"test\.x has 3 lines and .*short\.y has 2, expected the same number: line n"):
        parallel(folder, test=[source, folder / "short.y"]).read()
    with pytest.raises(UserError, match=r"latin\.x is not UTF-8 in line 2 .*Convert it"):
        parallel(folder, test=[folder / "latin.x", folder / "short.y"]).read()
    with pytest.raises(UserError, match=r"^there is no file .*none\.y\. Expected .* test=\[…\]\.$"):
        parallel(folder, test=[source, folder / "none.y"]).check()
    with pytest.raises(ValueError, match=r"^test must list a file of sources and one or more of translations"):
        parallel(folder, test=[source])
    with pytest.raises(ValueError, match=r"^num_val must be at least 1, got 0\.$"):
        parallel(folder, num_val=0)
    with pytest.raises(ValueError, match=r"^num_val=7 has no effect on the files in val\. Remove num_val, or val\.$"):
        parallel(folder, num_val=7, val=[source, folder / "short.y"])
    with pytest.raises(ValueError, match=r"^max_length must be at least 1, got 0\.$"):
        data(max_length=0)
    with pytest.raises(UserError, match=r"^max_length=1 leaves no training pair of .*shortest has 2 symbols"):
        data(parallel(folder, num_val=1), max_length=1)
    write(folder, empty_x="\n\n", empty_y="a\nb\n")
    with pytest.raises(UserError, match=r"^no training pair of .* has text on both sides\. Expected one or more"):
        data(parallel(folder, train=[folder / "empty.x", folder / "empty.y"], val=[source, folder / "test.y"]))


# BTEC.


def btec(folder: Path) -> Path:
    files = {"train_zh": "我们 去\n你好\n", "train_en": "We go .\nHello .\n"}
    for part, number in (("dev", 3), ("test", 2)):
        files[f"{part}_zh"] = "".join(f"{part} {n}\n" for n in range(number))
        for n in range(15):
            files[f"{part}_en_{n}"] = "".join("\n" if n > k + 1 else f"{part} {k} {n}\n" for k in range(number))
    write(folder / "btec", **files)
    return folder


def test_btec_has_up_to_15_references_of_each_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = data(Btec(btec(tmp_path)))
    assert "2 in train.zh instead of 44,016, 3 in dev.zh instead of 1,006, 2 in test.zh instead of 503" in caplog.text
    assert [len(references) for references in made.references("val")] == [2, 3, 4]
    assert made.sources("test") == ["test 0", "test 1"]
    assert made.references("test")[1] == ["test 1 0", "test 1 1", "test 1 2"]


def test_an_empty_reference_is_left_out_where_there_is_another(tmp_path: Path) -> None:
    write(tmp_path, a="1\n2\n3\n", b="\n\nthree\n", c="one\n \n\n")
    files = [next(tmp_path.glob(f"{name}*")) for name in "abc"]
    assert read_parallel(files[0], files[1:]).references == [["one"], [""], ["three"]]


def test_btec_says_that_it_needs_a_licence_and_which_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"btec lacks train\.zh, .* 30 more\. BTEC needs a licence .* task=tatoeba\.$"):
        Btec(tmp_path).check()
    write(btec(tmp_path) / "btec", test_en_15="")
    with pytest.raises(
        UserError, match=r"test\.en\.15 would be ignored\. Expected 15 references, test\.en\.0 to test\.en"
    ):
        Btec(tmp_path).check()
    (tmp_path / "btec" / "dev.en.14").unlink()
    with pytest.raises(UserError, match=r"btec lacks dev\.en\.14\."):
        Btec(tmp_path).check()


# Tatoeba.


def tatoeba(folder: Path, lines: list[str]) -> Path:
    write(folder / "tatoeba_cmn_eng", cmn_txt="\ufeff" + "\n".join(lines) + "\n\n")
    return folder


def test_translations_of_a_sentence_are_its_references(tmp_path: Path) -> None:
    lines = [f"English {n}.\t中文{n // 3}。\tCC-BY {n}" for n in range(30)]
    read = Tatoeba(tatoeba(tmp_path, lines + lines[:2]), num_val=2, num_test=3).read()
    assert [len(read[split].sources) for split in ("val", "test")] == [2, 3]
    assert all(len(references) == 3 for references in read["test"].references)
    assert len(read["train"].pairs()) == 15


def test_errors_in_tatoeba_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cmn\.txt is not in .* or .*tatoeba_cmn_eng\. .*Put it there, or"):
        Tatoeba(tmp_path).check()
    with pytest.raises(UserError, match=r"^line 2 of .*cmn\.txt has no TAB, expected English"):
        Tatoeba(tatoeba(tmp_path, ["Hi.\t嗨。", "Hi."])).read()
    with pytest.raises(ValueError, match=r"^num_test must be at least 1, got 0\.$"):
        Tatoeba(tmp_path, num_test=0)


def test_no_test_sentence_of_tatoeba_is_in_training(real_data: Path) -> None:
    if not (real_data / "tatoeba_cmn_eng").is_dir():
        pytest.skip("tatoeba_cmn_eng is not in GRIDLSTM_DATA")
    read = Tatoeba(real_data).read()
    parts: dict[Split, set[str]] = {split: set(found.sources) for split, found in read.items()}
    assert len(read["val"].sources) == len(read["test"].sources) == 1000
    assert not parts["train"] & parts["test"]
    assert not parts["train"] & parts["val"]
    assert not parts["val"] & parts["test"]
    assert sum(len(found.pairs()) for found in read.values()) == 29_155 - 100  # exact duplicates
    assert len(parts["train"]) + 2000 == 25_543
    assert sum(len(references) > 1 for references in read["test"].references) > 50


# Multi30k.


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write small files of two languages in the folder of a server; make Multi30k download from it."""
    files, folder = {}, tmp_path / "server"
    folder.mkdir()
    for part in ("train", "val", "test_2016_flickr"):
        for language in ("de", "en"):
            content = gzip.compress("".join(f"{part} {language} {n}\n" for n in range(5)).encode(), mtime=0)
            (folder / f"{part}.{language}.gz").write_bytes(content)
            files[f"{part}.{language}.gz"] = (len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(multi30k, "FILES", files)
    monkeypatch.setattr(multi30k, "URL", f"{folder.as_uri()}/")
    return tmp_path


def test_missing_files_of_multi30k_are_downloaded_and_compared(published: Path) -> None:
    source = Multi30k(published / "data")
    with pytest.raises(UserError, match=r"^train\.de\.gz is not in .*Run again to download it"):
        source.read()
    source.check()
    source.prepare()
    assert source.read()["test"].pairs()[4] == ("test_2016_flickr de 4", "test_2016_flickr en 4")
    (published / "data" / "multi30k" / "val.en.gz").write_bytes(b"other")
    with pytest.raises(UserError, match=r"val\.en\.gz is not Multi30k's file of that name: 5 bytes, expected"):
        source.check()


@pytest.mark.parametrize("option", ["scheduler=epoch_decay", "trainer.limit_val_batches=0.5"])
def test_multi30k_is_downloaded_before_its_batches_are_counted(published: Path, option: str) -> None:
    small = ["task.data.batch_size=2", *(f"task.data.{side}_level.size=18" for side in ("source", "target"))]
    cfg = compose("task=translation", "model=attention_lstm", f"data_dir={published / 'data'}", *small, option)
    check_task(cfg)
    assert (published / "data" / "multi30k" / "train.de.gz").is_file()


def test_unknown_languages_and_test_sets_are_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"source": "nl"}, "source must be one of cs, de, en, fr, got 'nl'."),
        ({"target": "de"}, "target must be one of .*got 'de'."),
        ({"target": "cs", "test": "test_2017_flickr"}, "test must be one of test_2016_flickr, test_2018_flickr for"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Multi30k(tmp_path, **{"source": "de", **options})  # type: ignore[arg-type]


def test_the_genuine_multi30k_is_read_in_pieces(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    if not (real_data / "multi30k").is_dir():
        pytest.skip("multi30k is not in GRIDLSTM_DATA")
    made = TranslationData(Multi30k(real_data), 64, 1, PieceLevel(6000), PieceLevel(6000), cache_dir=tmp_path)
    made.prepare_data()
    made.setup("fit")
    assert [len(made.dataset(split)) for split in ("train", "val", "test")] == [29_000, 1_014, 1_000]  # type: ignore[arg-type]
    assert (made.spec.source_size, made.spec.target_size) == (6000, 6000)
    assert (made.spec.source_length, made.spec.target_length) == (16, 15)
    masks = [(batch.source_mask.double(), batch.loss_mask.double()) for batch in batches(made, 453)]
    filled = [
        float((source.sum(1) * target.sum(1)).mean()) / (source[0].numel() * target[0].numel())
        for source, target in masks
    ]
    assert np.mean(filled) > 0.8, "the pairs of a source and a target place that are not padding"
    assert made.sources("test")[0] == "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt."
    assert made.references("test")[0] == ["A man in an orange hat starring at something."]


# The Hugging Face hub.


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that writes a data set as files of JSON lines and returns its name."""
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub_cache")

    def make(nested: bool, names: tuple[str, ...] = ("train", "validation", "test")) -> str:
        folder = tmp_path / f"{nested}-{len(names)}"
        for name in names:
            rows = [{"de": f"{name} {n} groß", "en": f"{name} {n} large"} for n in range(20)]
            lines = [json.dumps({"translation": row} if nested else row) for row in rows]
            write(folder, **{f"{name}_jsonl": "\n".join(lines)})
        return str(folder)

    return make


@pytest.mark.parametrize("nested", [True, False])
def test_a_data_sets_translations_or_columns_are_pairs(hub: Callable[..., str], nested: bool) -> None:
    read = HubPairs(hub(nested), "de", "en").read()
    assert {split: len(found.sources) for split, found in read.items()} == {"train": 20, "val": 20, "test": 20}
    assert read["val"].pairs()[3] == ("validation 3 groß", "validation 3 large")
    with pytest.raises(UserError, match=r"^target=fr is not text in .*Expected one of: de, en\. Name it with target=…"):
        HubPairs(hub(nested), "de", "fr").read()


def test_splits_that_a_data_set_lacks_are_cut_from_train(hub: Callable[..., str]) -> None:
    read = HubPairs(hub(True, ("train",)), "de", "en", num_val=4).read()
    assert {split: len(found.sources) for split, found in read.items()} == {"train": 12, "val": 4, "test": 4}
    assert len({source for found in read.values() for source in found.sources}) == 20
    read = HubPairs(hub(True, ("train", "test")), "de", "en", num_val=4).read()
    assert {split: len(found.sources) for split, found in read.items()} == {"train": 16, "val": 4, "test": 20}
    with pytest.raises(UserError, match=r"^num_val=4 has no effect on .*, which has the splits train, "):
        HubPairs(hub(True), "de", "en", num_val=4).read()


# Configurations.


@pytest.mark.parametrize("task", ["translation", "tatoeba", "btec"])
def test_tasks_compose_to_data_with_options_of_the_right_types(task: str, tmp_path: Path) -> None:
    cfg = compose(f"task={task}", f"data_dir={tmp_path}", "run.task=t", "run.model=m", "run.group=g", "run.dir=r")
    check_types(cfg.task.data, "task.data")
    assert not OmegaConf.missing_keys(cfg.task)
    with pytest.raises(UserError, match=r"data_dir=…|task=tatoeba"):
        make_data(OmegaConf.merge(cfg, {"data_dir": str(write(tmp_path, file="") / "file")}))  # type: ignore[arg-type]


def test_options_that_do_not_affect_training_may_change_in_evaluation() -> None:
    assert role("task.data.source.test") is Role.TEST
    assert role("task.data.max_length") is Role.DATA, "errors of an evaluation advise it"
    assert role("task.data.source_level.size") is Role.TRAINING, "a checkpoint contains its vocabulary"
    assert role("task.data.source.data_dir") is Role.PLACE
