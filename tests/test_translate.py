"""Translation of text: the BLEU of a run, and the translate command on its checkpoint."""

import copy
import csv
import gzip
import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tests.conftest import look_at, run_python
from tests.test_translation_models import MAKE, task_of

from gridlstm import translate
from gridlstm.bleu import bleu
from gridlstm.data import multi30k
from gridlstm.data.spec import PairSpec
from gridlstm.data.translation import TranslationData
from gridlstm.data.words import BOS, EOS, UNK, Words, vocabulary_from
from gridlstm.decoding import Networks, beam_search
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.look import alignment
from gridlstm.look.alignment import align
from gridlstm.look.load import load_task
from gridlstm.tasks.ensemble import TranslateTogether
from gridlstm.tasks.translate import Translate
from gridlstm.training.build import build, make_data
from gridlstm.training.callbacks.translations import table
from gridlstm.training.checkpoint import load_config, load_content
from gridlstm.training.init_from import init_from
from gridlstm.training.job import run_job
from gridlstm.training.record import write_config
from gridlstm.training.validate import check
from gridlstm.translate import lines_of, load, open_checkpoints, score, translator_of, write_translations
from gridlstm.translator import LONGEST, Translator

pytest.importorskip("sacrebleu")

COLOURS = ["red", "green", "blue", "black", "white", "grey"]
THINGS = ["cat", "dog", "bird", "horse", "fish", "cow"]
SOURCE_OF = dict(zip(COLOURS + THINGS, "红绿蓝黑白灰猫狗鸟马鱼牛", strict=True))
PAIRS = [(f"A {a} {b} sees a {c} {d}.", f"{SOURCE_OF[a]}{SOURCE_OF[b]}见{SOURCE_OF[c]}{SOURCE_OF[d]}。")
         for a in COLOURS for b in THINGS for c in COLOURS[:2] for d in THINGS[:2]]  # fmt: skip


@pytest.fixture
def translation_job(job: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., DictConfig]:
    """Return a function that composes a job of a small Chinese-English task."""
    (tmp_path / "data").mkdir(exist_ok=True)
    lines = "".join(f"{english}\t{chinese}\tCC-BY 2.0\n" for english, chinese in PAIRS)
    (tmp_path / "data" / "cmn.txt").write_text(lines)

    def make(*options: str, model: str = "attention_lstm", directory: str = "run") -> DictConfig:
        small = ("task.data.source.num_val=8", "task.data.source.num_test=8", "model.dropout=0.0")
        given = (f"data_dir={tmp_path / 'data'}", *small, *options)
        return job(*given, task="tatoeba", model=model, directory=directory)

    return make


def trained(translation_job: Callable[..., DictConfig], tmp_path: Path, *options: str, **named: str) -> Path:
    run_job(translation_job(*options, **named))
    return tmp_path / named.get("directory", "run") / "checkpoints" / "best.ckpt"


def opened(checkpoint: Path) -> tuple[TranslationData, Translate]:
    data, task = load_task(checkpoint, [], [], Translate, "alignment", "translation")
    assert isinstance(data, TranslationData)
    return data, task


def small_translator(**options: Any) -> Translator:
    torch.manual_seed(0)
    return Translator([task_of(MAKE["reencoder"]().double()).eval()], Words(["a"]), Words(["b", "c"]), **options)


def test_a_translator_needs_a_network() -> None:
    with pytest.raises(UserError, match="there is no network to decode with"):
        Translator([], Words(["a"]), Words(["b", "c"])).translate(["a"])


def test_run_logs_bleu_and_writes_its_test_translations(
    translation_job: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        checkpoint = trained(translation_job, tmp_path, "trainer.max_steps=6", "task.val_every=2")
    test = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    assert {"test/bleu", "test/bleu_lowercased", "test/chrf", "test/loss", "test/perplexity"} <= test.keys()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        validated = [row for row in csv.DictReader(file) if row["val/loss"]]
    assert [bool(row["val/bleu"]) for row in validated] == [False, True, False], "every second validation computes BLEU"
    head, *rows = [line.split("\t") for line in (tmp_path / "run" / "translations.tsv").read_text().splitlines()]
    assert head == ["source", "translation", "reference"]
    assert len(rows) == 8
    found = bleu([row[1] for row in rows], [row[2:] for row in rows])
    assert found.bleu == pytest.approx(test["test/bleu"])
    signed = [record.getMessage() for record in caplog.records if "is sacrebleu's" in record.getMessage()]
    assert signed == [f"test/{name} is sacrebleu's {found.signatures[name]}" for name in found.signatures]
    assert [line.split()[0] for line in signed] == ["test/bleu", "test/bleu_lowercased", "test/chrf"]
    opened = open_checkpoints([checkpoint])
    printed = json.loads(score(translator_of(opened, beam=5), opened[0], "test", tmp_path / "t.tsv"))
    assert printed["bleu"] == pytest.approx(test["test/bleu"])
    assert "bleu_one" not in {*printed, *test}, "these sentences have one reference"
    assert (tmp_path / "t.tsv").read_text() == (tmp_path / "run" / "translations.tsv").read_text()


def test_one_of_several_references_has_a_score_of_its_own(
    translation_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    job = translation_job()
    lines = [f"{text}\t{chinese}\n" for english, chinese in PAIRS for text in (english, f"See: {english}")]
    (tmp_path / "data" / "cmn.txt").write_text("".join(lines))
    run_job(job)
    test = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    head, *rows = [line.split("\t") for line in (tmp_path / "run" / "translations.tsv").read_text().splitlines()]
    assert head == ["source", "translation", "reference", "reference 2"]
    translations = [row[1] for row in rows]
    assert test["test/bleu_one"] == pytest.approx(bleu(translations, [row[2:3] for row in rows]).bleu)
    assert test["test/bleu"] == pytest.approx(bleu(translations, [row[2:] for row in rows]).bleu)
    opened = open_checkpoints([tmp_path / "run" / "checkpoints" / "best.ckpt"])
    printed = json.loads(score(translator_of(opened, beam=5), opened[0], "test", None))
    assert printed["bleu_one"] == pytest.approx(test["test/bleu_one"])


@pytest.mark.parametrize(("limit", "expected"), [("1", 4), ("0.5", 4), ("2", 8), ("1.0", 8)])
def test_bleu_stays_within_the_limit_of_batches(
    limit: str, expected: int, translation_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    limits = [f"trainer.limit_{split}_batches={limit}" for split in ("val", "test")]
    run_job(translation_job("task.data.batch_size=4", *limits))
    assert len((tmp_path / "run" / "translations.tsv").read_text().splitlines()) == 1 + expected


def test_every_row_of_a_table_has_the_columns_of_its_header() -> None:
    found = table(["a\rb", "c"], ["x\ty", "z"], [["A\r\nB"], ["C", "D", "E"]])
    assert found.split("\n") == [
        "source\ttranslation\treference\treference 2\treference 3",
        "a b\tx y\tA  B\t\t",
        "c\tz\tC\tD\tE",
        "",
    ]


def test_a_split_is_translated_with_each_checkpoint_read_once(
    translation_job: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = trained(translation_job, tmp_path, "stages=[fit]")
    read: list[Path] = []

    def counted(path: Path) -> dict[str, Any]:
        read.append(path)
        return load_content(path)

    monkeypatch.setattr("gridlstm.training.checkpoint.load_content", counted)
    translate._run({"ckpt": f"{checkpoint},{checkpoint.with_name('last.ckpt')}", "split": "test", "beam": 1}, [])
    assert json.loads(capsys.readouterr().out)["sentences"] == 8
    assert [path.name for path in read] == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("model", ["reencoder", "encoder_decoder_lstm", "translation_transformer"])
def test_every_model_trains_and_is_tested(
    model: str, translation_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    checkpoint = trained(translation_job, tmp_path, model=model)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "completed"
    assert 0 <= result["test"]["test/bleu"] <= 100
    assert load([checkpoint], beam=2).translate(["红猫见绿狗。"])[0][0].score < 0


def test_a_run_takes_parallel_files_of_ones_own(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    for side, sentences in zip(("en", "de"), zip(*PAIRS, strict=True), strict=True):
        (tmp_path / f"all.{side}").write_text("\n".join(sentences))
    names = [f"{option}={tmp_path / 'all'}" for option in ("task.pairs", "task.test_pairs")]
    cfg = job(*names, "task.data.source.num_val=8", task="parallel", model="attention_lstm")
    check(cfg)
    read = instantiate(cfg.task.data.source).read()
    assert len(read["val"].sources) == 8
    assert sorted(read["val"].pairs() + read["train"].pairs()) == sorted((de, en) for en, de in PAIRS)
    assert read["test"].pairs() == [(de, en) for en, de in PAIRS]


def test_resumed_run_equals_an_uninterrupted_one(translation_job: Callable[..., DictConfig], tmp_path: Path) -> None:
    whole = trained(translation_job, tmp_path, model="reencoder", directory="whole")
    run_job(translation_job("trainer.max_steps=2", model="reencoder"))
    run_job(translation_job("ckpt_path=last", model="reencoder"))
    weights = [
        torch.load(path, weights_only=True)["state_dict"]
        for path in (whole.with_name("last.ckpt"), tmp_path / "run" / "checkpoints" / "last.ckpt")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_init_from_keeps_the_weights_of_every_known_symbol(
    translation_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    checkpoint = trained(translation_job, tmp_path, "stages=[fit]")
    (tmp_path / "other").mkdir()
    lines = [f"{english}\t{chinese}\tCC-BY 2.0\n" for english, chinese in PAIRS]
    changed = "".join(lines[::-1]).replace("cat", "mouse").replace("猫", "鼠")
    (tmp_path / "other" / "cmn.txt").write_text(changed)
    run = build(translation_job(f"data_dir={tmp_path / 'other'}", directory="other"))
    fresh = copy.deepcopy(run.task.state_dict())
    init_from(run.task, run.data, checkpoint)
    content, weights = load_content(checkpoint), run.task.state_dict()
    for side, names in (("source", ["model.source.weight"]), ("target", ["model.target.weight", "head.bias"])):
        old = vocabulary_from(content["TranslationData"][f"{side}_vocabulary"]).symbols
        new = getattr(run.data, f"{side}_vocabulary").symbols
        assert {*new} - {*old}, "some symbols are new"
        assert [new.index(symbol) for symbol in old if symbol in new] != sorted(map(new.index, {*old} & {*new}))
        for name in names:
            earlier = content["state_dict"][name]
            for id, symbol in enumerate(new):
                expected = earlier[old.index(symbol)] if symbol in old else fresh[name][id]
                assert torch.equal(weights[name][id], expected)
    assert torch.equal(weights["model.encoder.weight_hh_l0"], content["state_dict"]["model.encoder.weight_hh_l0"])


def test_a_run_without_the_option_label_smoothing_in_its_files_resumes(
    translation_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    run_job(translation_job("trainer.max_steps=2"))
    for name in ("config.yaml", "config_source.yaml"):  # as of earlier versions
        stored = OmegaConf.load(tmp_path / "run" / name)
        del stored.task.objective["label_smoothing"]
        OmegaConf.save(stored, tmp_path / "run" / name)
    with pytest.raises(UserError, match=r"task\.objective\.label_smoothing=0\.1, in the earlier run 0\.0"):
        run_job(translation_job("ckpt_path=last", "task.objective.label_smoothing=0.1"))
    run_job(translation_job("ckpt_path=last"))


def test_command_translates_sentences_files_and_lists_the_best(
    translation_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    checkpoint = trained(translation_job, tmp_path, "stages=[fit]", "callbacks=default")
    sentences = ["红猫见绿狗。", "", "黑马见红猫。"]
    (tmp_path / "in.txt").write_text("\n".join(sentences) + "\n")
    command = ("-m", "gridlstm.translate", f"ckpt={checkpoint}", "beam=3")
    given = run_python(*command, *[each for each in sentences if each], check=True).stdout.splitlines()
    lines = run_python(*command, f"file={tmp_path / 'in.txt'}", check=True).stdout.splitlines()
    assert [lines[0], lines[2]] == given
    assert lines[1] == ""
    best = run_python(*command, "best=2", sentences[0], check=True).stdout.splitlines()
    assert [line.split(" ||| ")[0] for line in best] == ["0", "0"]
    assert best[0].split(" ||| ")[1] == given[0]
    assert float(best[0].split(" ||| ")[2]) >= float(best[1].split(" ||| ")[2])


def test_symbols_that_the_terminal_lacks_become_question_marks(
    translation_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    turned = [f"{chinese}\t{english}\tCC-BY 2.0\n" for english, chinese in PAIRS]
    job = translation_job("stages=[fit]")
    (tmp_path / "data" / "cmn.txt").write_text("".join(turned))
    run_job(job)
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    done = run_python(
        *("-m", "gridlstm.translate", f"ckpt={checkpoint}", "A red cat sees a green dog."),
        check=True,
        environment={"PYTHONIOENCODING": "ascii"},
    )
    assert "?" in done.stdout


def test_ensemble_of_one_network_twice_equals_the_network(
    translation_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    checkpoint = trained(translation_job, tmp_path, "stages=[fit]")
    sentences = [source for _, source in PAIRS[:5]]
    with pytest.raises(UserError, match=r"best\.ckpt is given twice, and would count twice"):
        load([checkpoint] * 2)
    copied = shutil.copy(checkpoint, checkpoint.with_name("copy.ckpt"))
    one, two = (load([checkpoint, copied][:n], beam=4).translate(sentences) for n in (1, 2))
    assert [found[0].text for found in one] == [found[0].text for found in two]
    assert [found[0].score for found in two] == pytest.approx([found[0].score for found in one], abs=1e-5)


def test_evaluation_of_an_ensemble_judges_the_mean_of_probabilities(
    translation_job: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = [
        trained(translation_job, tmp_path, "stages=[fit]", "trainer.precision=64-true", model=model, directory=model)
        for model in ("reencoder", "attention_lstm")
    ]
    opened = open_checkpoints(checkpoints)
    data = make_data(opened[0].config, opened[0].state)
    nats, count = 0.0, 0
    for batch in data.test_dataloader():
        with torch.no_grad():
            given = (batch.source, batch.source_mask, batch.inputs)
            p = torch.stack([one.task.double()(*given).softmax(-1) for one in opened]).mean(0)
        target = p.gather(2, batch.targets[..., None])[..., 0][batch.loss_mask]
        nats, count = nats - float(target.log().sum()), count + len(target)
    with caplog.at_level("INFO"):
        found = evaluate(checkpoints[0], "test", [], others=checkpoints[1:])
    # The opened networks' weights have passed through float32.
    assert found["test/loss"] == pytest.approx(nats / count, rel=1e-7)
    assert found["test/perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-7)
    assert f"for BLEU: python -m gridlstm.translate split=test ckpt={checkpoints[0]},{checkpoints[1]}" in caplog.text


def test_the_command_for_bleu_can_be_copied(
    translation_job: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = trained(translation_job, tmp_path, "stages=[fit]", directory="its run")
    data = (tmp_path / "data").rename(tmp_path / "its data")
    with caplog.at_level("INFO"):
        evaluate(checkpoint, "test", [f"data_dir={data}"], trust=["mine", "yours"])
    options = f'split=test "ckpt={checkpoint}" trust=mine,yours "data_dir={data}"'
    assert f"for BLEU: python -m gridlstm.translate {options}" in caplog.text


def test_an_ensemble_as_one_task_is_searched_like_its_members() -> None:
    torch.manual_seed(0)
    members = [task_of(MAKE[name]().double()).eval() for name in ("reencoder", "translation_transformer")]
    spec = PairSpec(len(Words(["a"])), len(Words(["b", "c"])), 1, 1)
    together, apart = (
        Translator(tasks, Words(["a"]), Words(["b", "c"]), beam=3).translate(["a a", "a", "? a a"])
        for tasks in ([TranslateTogether(members, spec).eval()], members)
    )
    assert [found[0].text for found in together] == [found[0].text for found in apart]
    assert [found[0].score for found in together] == pytest.approx([found[0].score for found in apart], abs=1e-10)


def test_translations_do_not_depend_on_the_batch() -> None:
    sentences = ["a a a", "a", "", "a ? a a a", "a a"]
    expected = [small_translator(beam=3).translate([each])[0] for each in sentences]
    for batch_size in (1, 2, 5):
        found = small_translator(beam=3, batch_size=batch_size).translate(sentences)
        for one, other in zip(expected, found, strict=True):
            assert [t.text for t in one] == [t.text for t in other]
            assert [t.score for t in one] == pytest.approx([t.score for t in other], abs=1e-10)
    assert expected[2] == [("", 0.0)]


def test_fewer_sentences_are_searched_together_with_a_wide_beam(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    step = Networks.step

    def counted(self: Networks, symbols: torch.Tensor) -> torch.Tensor:
        rows.append(len(symbols))
        return step(self, symbols)

    monkeypatch.setattr(Networks, "step", counted)
    sentences = ["a"] * 40
    for beam, together in ((1, 32), (5, 32), (20, 8), (200, 1)):
        rows.clear()
        small_translator(beam=beam).translate(sentences)
        assert rows[0] == together


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize(
    ("options", "lengths"),
    [({}, [1, 1, 2, 2]), ({"shortest": 0}, [0, 0, 0, 0]), ({"shortest": 1.5}, [2, 3, 5, 6])],
)
def test_a_translation_has_at_least_the_least_share_of_the_words_of_its_source(
    options: dict[str, float], lengths: list[int], beam: int
) -> None:
    """The paper discards only candidates shorter than half the source; end symbols are no words."""
    translator = small_translator(beam=beam, **options)
    with torch.no_grad():
        translator.tasks[0].head.bias[EOS] += 20  # ends every translation as soon as it may end
    found = translator.best_texts(["a", "a a", "a a a", "a a a a"])
    assert [len(text.split()) for text in found] == lengths


def test_beam_of_one_equals_greedy_search() -> None:
    translator = small_translator(beam=1)
    (found,) = translator.translate(["a a"])[0]
    ids = translator.source.encode("a a")
    source = torch.tensor([[*ids, EOS]])
    (best,) = beam_search(translator.tasks, source, source > -1, BOS, EOS, beam=1, never=(0, BOS, UNK))[0]
    assert found.text == translator.target.decode(best.symbols)
    assert found.score == pytest.approx(best.score)


def test_long_sentences_are_translated_completely_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gridlstm.translator.LONGEST", 4)
    translator = small_translator(beam=2)
    (whole,) = translator.translate(["a ? a a a a ? a a"])[0]  # parts of 3, 3 and 3 symbols
    parts = [translator.translate([part])[0][0] for part in ("a ? a", "a a a", "? a a")]
    assert whole.text == " ".join(part.text for part in parts)
    assert whole.score == pytest.approx(math.fsum(part.score for part in parts))
    assert LONGEST >= 100


def test_unknown_words_are_accepted_and_never_produced() -> None:
    for found in small_translator(beam=3).translate(["x y z", "a x"]):
        assert found[0].text
        assert "⁇" not in found[0].text


@pytest.mark.parametrize(
    ("sentences", "unknown"),
    [(["a x", "a y"], None), (["a a", "x", "y z"], "3 of 5"), (["", "x"], "1 of 1"), (["", " "], None), ([], None)],
)
def test_an_input_of_unknown_words_is_translated_with_one_warning(
    sentences: list[str], unknown: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    written: list[str] = []
    write_translations(small_translator(beam=1), iter(sentences), written.append, at_once=5)
    assert len(written) == len(sentences)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.partition(" words")[0] for text in warnings] == ([unknown] if unknown else [])
    assert all("Give sentences in the language that it was trained to read, or another ckpt." in w for w in warnings)


def test_unknown_words_are_counted_once_for_a_long_input(caplog: pytest.LogCaptureFixture) -> None:
    write_translations(small_translator(beam=1), iter(["x", "y", "z"]), [].append, at_once=1)
    assert caplog.text.count("words of the input are unknown") == 1


def test_other_checkpoints_are_refused(
    translation_job: Callable[..., DictConfig], job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    run_job(job("stages=[fit]", directory="memory"))
    with pytest.raises(UserError, match=r"is of task=memorization, which does not translate\. Give"):
        load([tmp_path / "memory" / "checkpoints" / "best.ckpt"])
    first = trained(translation_job, tmp_path, "stages=[fit]")
    options = ("stages=[fit]", "task.data.target_level.lowercase=true")
    second = trained(translation_job, tmp_path, *options, directory="other")
    with pytest.raises(UserError, match="have different target symbols"):
        load([first, second])
    with pytest.raises(UserError, match=r"trained on another task or text than .* predicts other symbols"):
        evaluate(first, "test", [], others=[second])
    with pytest.raises(UserError, match=r"device=meta cannot be used: its tensors have no values\. Expected cpu"):
        load([first], device="meta")
    with pytest.raises(UserError, match=r"device=nowhere cannot be used: .*Expected cpu or cuda"):
        load([first], device="nowhere")


@pytest.mark.parametrize("model", ["reencoder", "attention_lstm"])
def test_look_draws_the_influence_of_source_words_on_target_words(
    model: str, translation_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    checkpoint = trained(translation_job, tmp_path, "stages=[fit]", model=model)
    table, picture = look_at({"what": "alignment", "ckpt": str(checkpoint), "sentences": "2"})
    assert picture.read_bytes().startswith(b"\x89PNG")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["sentence"] for row in rows} == {"0", "1"}
    of_one = [row for row in rows if (row["sentence"], row["target place"]) == ("0", "0")]
    assert math.fsum(float(row["influence"]) for row in of_one) == pytest.approx(1, abs=1e-5)
    assert all(bool(row["attention"]) == (model == "attention_lstm") for row in rows)


def test_sentences_too_long_for_a_picture_are_left_out(
    translation_job: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = trained(translation_job, tmp_path, "stages=[fit]")
    data, task = opened(checkpoint)
    sources = data.sources("test")
    sources[0] = "红" * 41
    with caplog.at_level("INFO"):
        table, _ = alignment.look(data, task, 1, tmp_path)
    assert table.read_text().count("\n0,0,") == 1 + len(data.source_vocabulary.encode(sources[1]))
    assert "test sentences of more than 40 symbols are left out of the picture" in caplog.text
    sources[:] = sources[:1]
    with pytest.raises(UserError, match=r"^every test sentence of Tatoeba has more than 40 symbols, too many"):
        alignment.look(data, task, 1, tmp_path)


def test_labels_are_drawn_in_a_font_that_has_them_or_are_places(caplog: pytest.LogCaptureFixture) -> None:
    no_font, not_default = "\U0010fffd", "\u20dd"  # the second is in STIX, which comes with matplotlib
    one = alignment.Aligned([no_font, "a$", not_default], ["b"], torch.ones(1, 3), None)
    with caplog.at_level("INFO"):
        (axes,) = alignment._draw([one]).axes
    shown = axes.get_xticklabels()
    assert [label.get_text() for label in shown] == ["#0", r"a\$", not_default]
    assert len(shown[0].get_fontfamily()) == 2
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("source", "translation")
    assert f"no installed font has {no_font}: symbols with such characters are labelled by their places" in caplog.text


def test_influence_is_the_gradient_of_each_target_symbol(
    translation_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    checkpoint = trained(translation_job, tmp_path, "stages=[fit]", model="reencoder")
    data, task = opened(checkpoint)
    task.double()
    sentence = data.sources("test")[0]
    found = align(task, data, sentence, beam=1)
    ids = torch.tensor([[*data.source_vocabulary.encode(sentence), EOS]])
    (best,) = beam_search([task], ids, ids > -1, BOS, EOS, beam=1, never=(0, BOS, UNK))[0]
    target = [*best.symbols, EOS]

    def log_p(place: int, unit: int, change: float) -> torch.Tensor:
        def moved(module: torch.nn.Module, given: Any, words: torch.Tensor) -> torch.Tensor:
            words = words.clone()
            words[0, place, unit] += change
            return words

        hook = task.model.source.register_forward_hook(moved)
        with torch.no_grad():
            logits = task(ids, ids > -1, torch.tensor([[BOS, *best.symbols]]))[0].log_softmax(-1)
        hook.remove()
        return logits[torch.arange(len(target)), torch.tensor(target)]

    places, units = ids.shape[1], task.model.source.weight.shape[1]
    slopes = torch.stack(
        [
            torch.stack([(log_p(s, e, 1e-6) - log_p(s, e, -1e-6)) / 2e-6 for e in range(units)]).norm(dim=0)
            for s in range(places)
        ],
        dim=1,
    )  # (T, S)
    torch.testing.assert_close(found.influence, slopes / slopes.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_look_refuses_to_align_other_tasks(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    with pytest.raises(UserError, match=r"what=alignment cannot show .*, which is of task=memorization"):
        look_at({"what": "alignment", "ckpt": str(tmp_path / "run" / "checkpoints" / "best.ckpt")})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beam": 2, "best": 3}, r"^best must be at most beam=2, got 3\."),
        ({"beam": 1, "best": 5}, r"^best must be at most beam=1, got 5\."),
        ({"beam": 1, "length_penalty": -1.0}, r"^length_penalty must be 0 or more and finite, got -1"),
        ({"shortest": -0.1}, r"^shortest must be from 0 to 2, got -0\.1\.$"),
        ({"shortest": 2.1}, r"^shortest must be from 0 to 2, got 2\.1\.$"),
        ({"shortest": math.nan}, r"^shortest must be from 0 to 2, got nan\.$"),
        ({"beam": 1, "length_penalty": 0.6}, r"^length_penalty=0\.6 ranks .* but beam=1 finds only one\. Raise beam"),
    ],
)
def test_options_without_effect_or_out_of_range_are_refused_before_translating(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        small_translator(**options)


def test_the_data_directory_is_an_option_of_a_split_only() -> None:
    given, words = translate.PARSER.parse(["ckpt=none.ckpt", "split=test", "data_dir=/there"])
    assert (given["split"], words) == ("test", ["data_dir=/there"])
    with pytest.raises(UserError, match=r"^data_dir=/there has no effect on sentences\. Remove it, or .*split=test"):
        translate._run(*translate.PARSER.parse(["ckpt=none.ckpt", "data_dir=/there"]))


def test_options_without_effect_on_a_split_are_refused_before_a_checkpoint_is_read() -> None:
    with pytest.raises(UserError, match=r"^trainer\.precision=64-true has no effect on a translation\. .*Remove it"):
        translate._run({"ckpt": "none.ckpt", "split": "test"}, ["data_dir=x", "trainer.precision=64-true"])


@pytest.mark.parametrize("option", ["task.test_pairs=c", "task.data.source.test=[c.de,c.en]"])
def test_options_of_the_test_are_refused_for_a_validation(
    option: str, job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    write_config(job("task.pairs=a", "task.test_pairs=b", task="parallel", model="attention_lstm"))
    (checkpoint := tmp_path / "run" / "best.ckpt").touch()
    expected = rf"^{re.escape(option)} has no effect on the validation\. Give split=test, or remove it\.$"
    with pytest.raises(UserError, match=expected):
        evaluate(checkpoint, "val", [option])
    with pytest.raises(UserError, match=expected):
        translate._run({"ckpt": "none.ckpt", "split": "val"}, [option])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "test", "best": 5}, r"^best=5 has no effect on split=test, which scores one .*Remove best, or"),
        ({"out": Path("t.tsv")}, r"^out is the table of a split\. Give split=test too"),
        (
            {"split": "test", "out": Path("tests")},
            r"^out=tests is a directory\. Expected a file\. .*out=tests/test\.tsv",
        ),
        ({"split": "test", "out": Path("Makefile/t.tsv")}, r"^out=Makefile cannot be written: Makefile is a file\."),
    ],
)
def test_options_that_exclude_each_other_are_refused_before_a_checkpoint_is_read(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        translate._run({"ckpt": "none.ckpt", **options}, [])


@pytest.mark.parametrize("text", [b"", b"a\rb\nc\r\n\nd", b"\xef\xbb\xbfa\n", "ü\u2028b\n".encode(), b"\n\n"], ids=repr)
def test_standard_input_has_the_lines_of_a_file(text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.txt").write_bytes(text)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert list(lines_of([], None)) == list(lines_of([], tmp_path / "in.txt"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a\ngrün\n".encode("latin1"),
            r"is not UTF-8 in line 2 .*Convert it, for example with iconv -f latin1 -t utf-8",
        ),
        (
            "ein Hund\n".encode("utf-16"),
            r"is not UTF-8 in line 1 .*Convert it, for example with iconv -f utf-16 -t utf-8",
        ),
    ],
)
def test_text_that_is_not_utf_8_is_refused_in_a_sentence(
    text: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.txt").write_bytes(text)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    with pytest.raises(UserError, match=f"^standard input {words}"):
        list(lines_of([], None))
    with pytest.raises(UserError, match=f"in.txt {words}"):
        list(lines_of([], tmp_path / "in.txt"))
    with pytest.raises(UserError, match=f"^the command line {words}"):
        list(lines_of(text.decode(errors="surrogateescape").splitlines(), None))


def test_a_split_of_other_data_is_scored_with_options_of_the_run(
    translation_job: Callable[..., DictConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint = trained(translation_job, tmp_path, "stages=[fit]")
    command = [f"ckpt={checkpoint}", "split=test", "beam=1", "shortest=0", f"out={tmp_path / 'new' / 't.tsv'}"]
    given, _ = translate.PARSER.parse(command)
    translate._run(dict(given), ["task.data.source.num_test=5"])
    printed = json.loads(capsys.readouterr().out)
    assert (printed["sentences"], printed["beam"], printed["shortest"]) == (5, 1, 0)
    assert "the run had task.data.source.num_test=8: the evaluated part may include training data" in caplog.text
    assert len((tmp_path / "new" / "t.tsv").read_text().splitlines()) == 6
    with pytest.raises(UserError, match=r"^task\.data\.source\.num_tests does not exist\. Did you mean num_test"):
        translate._run(dict(given), ["task.data.source.num_tests=5"])
    with pytest.raises(UserError, match=r"^split=test translates the run's own data\. Remove the sentences, or split"):
        translate._run(dict(given), ["红猫见绿狗。"])


@pytest.fixture
def german_checkpoint(job: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train from German into English on a small Multi30k that has French too, and return the checkpoint."""
    files, folder = {}, tmp_path / "data" / "multi30k"
    folder.mkdir(parents=True)
    words = {"de": "Hund Katze Vogel", "en": "dog cat bird", "fr": "chien chat oiseau"}
    for part, number in (("train", 20), ("val", 4), ("test_2016_flickr", 4), ("test_2017_flickr", 4)):
        for language, names in words.items():
            text = "".join(f"{part} {n} {' '.join(names.split()[: 1 + n % 3])}\n" for n in range(number))
            content = gzip.compress(text.encode(), mtime=0)
            (folder / f"{part}.{language}.gz").write_bytes(content)
            files[f"{part}.{language}.gz"] = (len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(multi30k, "FILES", files)
    small = (f"data_dir={tmp_path / 'data'}", f"task.data.cache_dir={tmp_path}", "model.dropout=0.0", "stages=[fit]")
    sizes = [f"task.data.{side}_level.size=40" for side in ("source", "target")]
    run_job(job(*small, *sizes, task="translation", model="attention_lstm"))
    return tmp_path / "run" / "checkpoints" / "best.ckpt"


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("further", [[], ["task.data.source.test=test_2017_flickr"]])
def test_another_language_than_that_of_the_training_is_refused(
    side: str, further: list[str], german_checkpoint: Path
) -> None:
    overrides = [*further, f"task.data.source.{side}=fr"]
    language = {"source": "de", "target": "en"}[side]
    expected = (
        rf"^task\.data\.source\.{side}=fr is another language than this checkpoint was trained on\. Expected "
        rf"task\.data\.source\.{side}={language}\. Remove it, or give a checkpoint that was trained with it\.$"
    )
    with pytest.raises(UserError, match=expected):
        evaluate(german_checkpoint, "test", overrides)
    with pytest.raises(UserError, match=expected):
        translate._run({"ckpt": str(german_checkpoint), "split": "test", "beam": 1}, overrides)


def test_a_language_is_not_compared_with_that_of_another_data_set(
    job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """The columns of a data set may have any names."""
    write_config(job("task.name=a", task="hub_pairs", model="attention_lstm"))
    (checkpoint := tmp_path / "run" / "best.ckpt").touch()
    with pytest.raises(UserError, match=r"^task\.source_language=german is another language than this checkpoint"):
        load_config(checkpoint, ["task.source_language=german"])
    found = load_config(checkpoint, ["task.source_language=german", "task.name=b"])
    assert (found.task.data.source.name, found.task.data.source.source) == ("b", "german")


def test_the_languages_of_the_training_may_be_named(
    german_checkpoint: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ["task.data.source.source=de", "task.data.source.test=test_2017_flickr"]
    translate._run({"ckpt": str(german_checkpoint), "split": "test", "beam": 1}, overrides)
    assert json.loads(capsys.readouterr().out)["sentences"] == 4
    assert "WARNING" not in caplog.text


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt cannot be read: No such file or directory\. Name a file that you"):
        list(lines_of([], tmp_path / "none.txt"))


def test_standard_input_is_translated_line_by_line() -> None:
    written: list[str] = []
    write_translations(small_translator(beam=2), iter(["a", "", "a a"]), written.append, at_once=2)
    assert len(written) == 3
    assert written[1] == "\n"
    assert io.StringIO("".join(written)).read().count("\n") == 3
