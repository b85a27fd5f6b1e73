"""Every model that fits a task takes a training step on it; other pairs are refused."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from tests.conftest import PATIENCE, compose, run_python

from gridlstm import list as listing
from gridlstm.config import MATRIX, choices, compose_model
from gridlstm.data.base import Batch, SequenceData
from gridlstm.errors import UserError
from gridlstm.training import match
from gridlstm.training.build import make_data, make_task
from gridlstm.training.match import count_flops
from gridlstm.training.task_models import fits
from gridlstm.training.validate import check

MODELS = choices("model")
TASKS = sorted(
    set(choices("task"))
    - {"enwik8", "text8", "penn_treebank", "hub"}
    - {"mnist", "fashion_mnist", "cifar10", "digit_scene", "mnist_pixels", "moving_digits"}
    - {"translation", "tatoeba", "btec", "parallel", "hub_pairs"}
)
"""Tasks with generated data, and text, which represents all texts. Images and translations have their own tests."""


@pytest.fixture(scope="module")
def nodes() -> dict[str, DictConfig]:
    return {name: compose_model(name) for name in MODELS}


def first_batch(data: SequenceData) -> Batch:
    data.setup("fit")
    batch: Batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    return batch


@pytest.mark.parametrize("task", TASKS)
def test_every_pair_that_fits_takes_a_step(
    task: str, job: Callable[..., DictConfig], nodes: dict[str, DictConfig]
) -> None:
    cfg = job(task=task)
    data = make_data(cfg)
    batch = first_batch(data)
    fitting = [name for name, node in nodes.items() if fits(node, cfg.task)]
    assert fitting
    for name in fitting:
        cfg.model = nodes[name].copy()
        cfg.model.hidden_size, cfg.model.num_layers = 8, 2
        network = make_task(cfg, data.spec)
        before = [parameter.clone() for parameter in network.parameters()]
        logits, _ = network(batch.inputs, None)
        F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
        network.configure_optimizers().step()
        assert logits.shape == (*batch.targets.shape, data.spec.output_size), name
        assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)), name


def test_the_refusal_names_the_models_that_fit(job: Callable[..., DictConfig], nodes: dict[str, DictConfig]) -> None:
    cfg = job(model="grid1d")
    with pytest.raises(UserError) as refused:
        check(cfg)
    fitting = ", ".join(name for name, node in nodes.items() if fits(node, cfg.task))
    assert "grid2d" in fitting
    assert str(refused.value) == (
        f"task=memorization takes a SequenceModel, but model=grid1d is not one. Models that fit: {fitting}."
    )


def test_missing_model_size_error_suggests_options() -> None:
    run = ["run.model=gru", "run.task=t", "run.group=g", "run.dir=d"]
    cfg = compose("experiment=paper/addition_small", "model=gru", *run)
    with pytest.raises(UserError, match=r"no width for model=gru\. Give model\.hidden_size=…, or one of match\.p"):
        check(cfg)
    for advice in ("model.hidden_size=20", "match.parameters_to=grid2d"):
        check(compose("experiment=paper/addition_small", "model=gru", advice, *run))


def test_a_misspelt_class_is_named(job: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match=r"model=grid2d: _target_=gridlstm\.nothing\.X cannot be loaded: .*No module"):
        check(job("model._target_=gridlstm.nothing.X"))
    with pytest.raises(UserError, match=r"optimizer\._target_=torch\.optim\.Adamm cannot be loaded"):
        check(job("optimizer._target_=torch.optim.Adamm"))


def test_a_users_own_model_fits_if_its_base_class_fits(job: Callable[..., DictConfig]) -> None:
    task = job().task
    assert fits(OmegaConf.create({"_target_": "gridlstm.models.base.SequenceModel"}), task)
    assert not fits(OmegaConf.create({"_target_": "gridlstm.models.base.VectorModel"}), task)
    assert fits(
        OmegaConf.create({"_target_": "gridlstm.training.build.make_task"}), task
    )  # a function may return any model


COUNTED_AT = {
    "grid2d": "text",
    "feed_forward": "parity",
    "cnn": "mnist",
    "pixelcnn": "mnist_pixels",
    "convlstm": "moving_digits",
    "encoder_decoder_lstm": "translation",
}
"""A model for each task on which FLOPs are counted."""


def test_flops_are_counted_anew_only_for_models_without_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes half a minute for all models. A model whose parameters have changed has no record."""
    counted = []
    monkeypatch.setattr(match, "count_flops", lambda cfg, spec: counted.append(cfg.model._target_) or 7)
    record = listing._recorded()
    record["grid2d"]["parity"] = record["rnn"]["text"] = "1"
    del record["mlp"]
    monkeypatch.setattr(listing, "_recorded", lambda: record)
    rows = {name: cells for name, *cells in (line.split() for line in listing.matrix().splitlines()[1:])}
    assert [target.rpartition(".")[2] for target in counted] == ["Grid2d", "MLP", "RNN"]
    assert {name: cells[-2:] for name, cells in rows.items() if cells[-2] == "7"} == {
        "grid2d": ["7", "text"],
        "mlp": ["7", "mnist"],
        "rnn": ["7", "text"],
    }


def test_generated_tables_are_up_to_date() -> None:
    """If this fails, run python -m gridlstm.list --write."""
    assert MATRIX.read_text() == listing.matrix()
    assert listing.OPTIONS_PAGE.read_text() == listing.options_page()
    page = listing.PAGE.read_text()
    assert MATRIX.read_text() in page.replace("\n```\n", "\n")
    table = dict(re.findall(r"^(\| `(\w+)` \| .* \|)$", page, re.MULTILINE))
    shown = [name for _, name in re.findall(r"^(\| `(\w+)` \| .* \|)$", page, re.MULTILINE)]
    assert shown == [name for name in MODELS if not re.search(rf"^{name}[ -]+$", MATRIX.read_text(), re.MULTILINE)]
    recorded = {name: cells[-2:] for name, *cells in (line.split() for line in MATRIX.read_text().splitlines()[1:])}
    for name, at in COUNTED_AT.items():
        cfg = compose(f"task={at}", f"model={name}")
        spec = listing._spec(cfg)
        assert spec is not None
        assert recorded[name] == [f"{count_flops(cfg, spec):,}", at]
    some = ["grid2d", "transformer"]  # all models take half a minute
    for row in listing.costs(some):
        assert f"| `{row[0]}` | {row[1]} | {row[2]} | {row[3]} | {row[4]} |" in table


def test_the_papers_count_is_in_the_matrix() -> None:
    rows = [line.split() for line in MATRIX.read_text().splitlines()]
    counts = dict(zip(rows[0], next(row[1:] for row in rows if row[0] == "grid2d"), strict=True))
    assert counts["enwik8"] == "16,820,205"


def test_commands_show_the_matrix() -> None:
    """The help does not import torch."""
    code = (
        "import sys; sys.argv = ['train.py', '--help']; from gridlstm.train import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    for line in MATRIX.read_text().splitlines():
        assert line in done.stdout
    done = run_python("-m", "gridlstm.list", "--wrong")
    assert done.returncode == 2
    assert "--write" in done.stderr
    assert "unrecognized arguments: --wrong" in done.stderr
