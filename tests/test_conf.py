"""Every file in conf/ composes, and the objects that it describes can be instantiated."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose as compose_with_hydra
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.utils import get_class, get_object, instantiate
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from tests.conftest import ROOT, chosen_model, compose
from tests.image_files import give_coloured_images, write_digits
from tests.sentence_files import write_sentences
from torch.utils._pytree import tree_leaves

from gridlstm.config import choices, compose_model
from gridlstm.data.addition import AdditionData
from gridlstm.data.base import ImageBatch, PairBatch, PixelBatch, VideoBatch
from gridlstm.data.enwik8 import Enwik8
from gridlstm.data.hub import Hub
from gridlstm.data.hub_pairs import HubPairs
from gridlstm.data.image_based import ImageBased
from gridlstm.data.image_files import Cifar10, IdxFiles, ImageSource
from gridlstm.data.memorization import MemorizationData
from gridlstm.data.multi30k import Multi30k
from gridlstm.data.pairs import PairSource
from gridlstm.data.parallel import Btec, Parallel
from gridlstm.data.parity import ParityData
from gridlstm.data.penn_treebank import PennTreebank
from gridlstm.data.tatoeba import Tatoeba
from gridlstm.data.text import TextData
from gridlstm.data.text8 import Text8
from gridlstm.data.text_file import File
from gridlstm.data.translation import TranslationData
from gridlstm.errors import UserError
from gridlstm.models.base import ImageModel, PixelModel, VectorModel, VideoModel
from gridlstm.models.translation import TranslationModel
from gridlstm.options import find, leaves
from gridlstm.schedules import Cosine
from gridlstm.train import CONF
from gridlstm.training.build import build, check_types, make_data
from gridlstm.training.callbacks.criterion import Criterion
from gridlstm.training.match import count_flops, count_parameters
from gridlstm.training.task_models import fits
from gridlstm.training.validate import check_one_value

FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
GROUPED = [file for file in FILES if "/" in file]
RUN = ["run.task=t", "run.model=grid2d", "run.group=g", "run.dir=nowhere"]


def choice(file: str) -> list[str]:
    group, _, name = file.rpartition("/")
    if group == "transform":
        return [f"transform@model.time={name}", f"transform@model.depth={name}"]
    needs_text = (
        file in ("task/text", "task/penn_treebank") or "override /task: text" in (CONF / f"{file}.yaml").read_text()
    )
    extra = ["task.path=some.txt"] if needs_text else []
    if file in ("task/hub", "task/hub_pairs"):
        extra = ["task.name=some/name"]
    if file == "task/parallel":
        extra = ["task.pairs=a", "task.test_pairs=b"]
    if file == "scheduler/epoch_decay":  # a run takes these from its data
        extra = ["scheduler.steps_per_epoch=1", "scheduler.first_epoch=1"]
    if group.startswith("experiment"):
        return [f"experiment={file.removeprefix('experiment/')}", *extra]
    return [f"{group}={name}", *extra]


def names(file: str) -> list[str]:
    """Return the options that name a run of the file; an experiment may choose values by the name of its model."""
    return [*RUN, f"run.model={chosen_model(choice(file)[0])}"] if file.startswith("experiment/") else RUN


@pytest.mark.parametrize("file", GROUPED)
def test_composes_to_options_of_the_right_types_with_a_role_each(file: str) -> None:
    config = compose(*choice(file), *names(file))
    assert not OmegaConf.missing_keys(config)
    OmegaConf.to_container(config, resolve=True)
    for group in ("model", "task", "optimizer", "scheduler", "trainer", "callbacks", "logger"):
        if config[group]:
            check_types(config[group], group)
    roles = {key: find(key) for key, _ in leaves(OmegaConf.to_container(config))}
    # Options of the trainer have different roles: each needs an entry of its own in the table.
    assert [key for key, entry in roles.items() if entry in (None, "trainer")] == []


@pytest.mark.parametrize("file", [f for f in GROUPED if f.split("/")[0] == "task"])
def test_no_option_of_a_task_contradicts_its_data(file: str) -> None:
    check_one_value(compose(*choice(file), *RUN))


@pytest.mark.parametrize(("task", "expected"), [("memorization", "maximize"), ("enwik8", "minimize")])
def test_optuna_searches_in_the_direction_of_the_task(task: str, expected: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for more in ([], ["hydra.sweeper.direction=minimize"]):
            options = ["hydra/sweeper=search", f"task={task}", *more]
            found = compose_with_hydra("train", options, return_hydra_config=True).hydra.sweeper.direction
            assert (found if more else instantiate(found)) == (more[0].split("=")[1] if more else expected)


@pytest.mark.parametrize("file", [f for f in GROUPED if f.split("/")[0] in ("model", "transform")])
def test_every_model_is_made(file: str) -> None:
    config = compose(*choice(file), "model.hidden_size=8", "model.num_layers=2", *RUN)
    kind = get_class(config.model._target_)
    if issubclass(kind, TranslationModel):
        symbols, mask = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)
        made = instantiate(config.model, source_size=5, target_size=4, _convert_="all")
        assert made(symbols, mask, symbols).isfinite().all()
        return
    if issubclass(kind, ImageModel | PixelModel | VideoModel):
        size = (2, 3, 2, 8, 8) if issubclass(kind, VideoModel) else (2, 2, 8, 8)
        outputs = instantiate(config.model, channels=2, height=8, width=8, _convert_="all")(torch.ones(size))
        assert all(y.isfinite().all() for y in tree_leaves(outputs))
        return
    model = instantiate(config.model, input_size=5, _convert_="all")
    y = model(torch.ones(2, 5)) if isinstance(model, VectorModel) else model(torch.zeros(2, 3, dtype=torch.int64))[0]
    assert y.isfinite().all()


@pytest.mark.parametrize("file", [f for f in GROUPED if f.split("/")[0] in ("optimizer", "scheduler")])
def test_every_optimizer_and_scheduler_takes_a_step(file: str) -> None:
    config = compose(*choice(file), *RUN)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = instantiate(config.optimizer, _convert_="all")([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    assert (weight != 1).all()
    if config.scheduler:
        scheduler = instantiate(config.scheduler, _convert_="all")(optimizer)
        if isinstance(scheduler, Cosine):
            scheduler.progress = 0.5  # a task would set this
        scheduler.step()
        assert scheduler.get_last_lr()[0] < optimizer.defaults["lr"]


@pytest.mark.parametrize("file", [f for f in GROUPED if f.split("/")[0] in ("callbacks", "logger")])
def test_every_callback_and_logger_is_made(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = compose(*choice(file), *RUN[:-1], f"run.dir={tmp_path}")
    nodes = config[file.split("/")[0]].values()
    made = [instantiate(node, _convert_="all") for node in nodes]
    kind = {"callbacks": Callback, "logger": Logger}[file.split("/")[0]]
    assert all(isinstance(one, kind) for one in made)


@pytest.mark.parametrize("file", [f for f in GROUPED if f.startswith("hardware/")])
def test_hardware_options_change_only_device_placement(file: str) -> None:
    def without_place(config: DictConfig) -> Any:
        plain: Any = OmegaConf.to_container(config, resolve=True)
        for key in ("accelerator", "devices", "strategy", "num_nodes"):
            del plain["trainer"][key]
        return plain

    assert without_place(compose(*choice(file), *RUN)) == without_place(compose("hardware=auto", *RUN))


def test_hardware_and_precision_options_reach_the_trainer(job: Callable[..., DictConfig]) -> None:
    trainer = build(job("hardware=cpu", "trainer.precision=64-true", "trainer.gradient_clip_val=1")).trainer
    assert (trainer.precision, trainer.gradient_clip_val, trainer.num_devices) == ("64-true", 1, 1)


def test_every_target_is_importable() -> None:
    def targets(node: Any) -> list[str]:
        if isinstance(node, dict):
            return [v for k, v in node.items() if k == "_target_"] + [t for v in node.values() for t in targets(v)]
        return []

    for file in FILES:
        for target in targets(OmegaConf.to_container(OmegaConf.load(CONF / f"{file}.yaml"))):
            assert callable(get_object(target)), file


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("memorization", MemorizationData),
        ("addition", AdditionData),
        ("parity", ParityData),
        ("text", File),
        ("enwik8", Enwik8),
        ("text8", Text8),
        ("penn_treebank", PennTreebank),
        ("hub", Hub),
        ("mnist", IdxFiles),
        ("fashion_mnist", IdxFiles),
        ("cifar10", Cifar10),
        ("digit_scene", IdxFiles),
        ("mnist_pixels", IdxFiles),
        ("moving_digits", IdxFiles),
        ("translation", Multi30k),
        ("tatoeba", Tatoeba),
        ("btec", Btec),
        ("parallel", Parallel),
        ("hub_pairs", HubPairs),
    ],
)
def test_every_task_names_its_data(task: str, kind: type) -> None:
    data = compose(*choice(f"task/{task}")).task.data
    assert get_class(data.source._target_ if "source" in data else data._target_) is kind
    made_of = {ImageSource: ImageBased, PairSource: TranslationData}
    expected = next((data for source, data in made_of.items() if issubclass(kind, source)), TextData)
    assert "source" not in data or issubclass(get_class(data._target_), expected)


def sweep(file: str) -> list[Override]:
    """Return the overrides that an experiment sweeps over."""
    node = OmegaConf.select(OmegaConf.load(CONF / f"{file}.yaml"), "hydra.sweeper.params") or {}
    params = OmegaConf.to_container(OmegaConf.create(node), resolve=True)
    return OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])


def ends(file: str) -> list[list[str]]:
    """Return the first and the last point of an experiment's sweep, or one point if they are equal."""
    swept = [(o.get_key_element(), list(o.sweep_string_iterator())) for o in sweep(file) if o.is_sweep_override()]
    fixed = [f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in sweep(file) if not o.is_sweep_override()]
    points = [[*fixed, *(f"{key}={values[end]}" for key, values in swept)] for end in (0, -1)]
    return points if points[0] != points[1] else points[:1]


@pytest.mark.parametrize(
    ("file", "point"), [(file, point) for file in GROUPED if file.startswith("experiment/") for point in ends(file)]
)
def test_every_experiment_is_made_at_both_ends_of_its_sweep(
    file: str, point: list[str], tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["model.hidden_size=8", "task.network.num_layers=2", "logger=csv", "hardware=cpu"]
    swept = [f"run.model={part.removeprefix('model=')}" for part in point if part.startswith("model=")]
    data = [f"task.path={text_file}", f"task.data.cache_dir={tmp_path}"] if len(choice(file)) > 1 else []
    if "enwik8" in (CONF / f"{file}.yaml").read_text():  # make it accept this file as the genuine one
        content = text_file.read_bytes()
        data = [f"task.path={text_file}", f"task.data.cache_dir={tmp_path}", "task.data.stream_length=100"]
        data += [
            f"task.data.source.size={len(content)}",
            f"task.data.source.sha256={hashlib.sha256(content).hexdigest()}",
        ]
        data += ["task.data.splits=[0.9,0.05,0.05]"]
    if re.search(r"override /task: (mnist|digit_scene|moving_digits)", (CONF / f"{file}.yaml").read_text()):
        data = [f"data_dir={write_digits(tmp_path)}", "task.data.num_val=20"]
    if "override /task: cifar10" in (CONF / f"{file}.yaml").read_text():
        give_coloured_images(monkeypatch)
        data = ["task.data.num_val=20"]
    if file.endswith(("/translation", "/tatoeba")):
        data = [f"data_dir={write_sentences(tmp_path, monkeypatch)}"]
        if file == "experiment/compare/translation":
            data += [f"task.data.{side}_level.size=30" for side in ("source", "target")]
        if file == "experiment/compare/tatoeba":
            data += ["task.data.source.num_val=2", "task.data.source.num_test=2"]
    run = build(compose(choice(file)[0], *point, *small, *names(file), *swept, f"run.dir={tmp_path}", *data))
    batch = run.data.on_after_batch_transfer(next(iter(run.data.val_dataloader())), 0)
    if isinstance(batch, ImageBatch | PixelBatch | VideoBatch):
        few = type(batch)(*(part[:2] for part in batch))
        assert run.task.predict(few, None).losses.shape == few.targets.shape
    elif isinstance(batch, PairBatch):
        logits = run.task(batch.source, batch.source_mask, batch.inputs)
        assert logits.shape == (*batch.targets.shape, run.data.spec.target_size)
    else:
        logits, _ = run.task(batch.inputs[:2])
        assert logits.shape == (len(batch.targets[:2]), batch.targets.shape[1], run.data.spec.output_size)
    # Generated data never end: without a criterion or time limit, a sweep would train every network to the last step.
    ended = [c for c in run.trainer.callbacks if isinstance(c, Criterion | Timer)]  # type: ignore[attr-defined]
    assert not point or ended or run.data.batches_per_epoch is not None


@pytest.mark.parametrize(
    ("experiment", "models"),
    [
        ("paper/memorization_small", ["grid2d", "stacked_lstm"]),
        ("paper/addition_small", ["grid2d", "stacked_lstm"]),
        ("paper/parity_small", ["grid1d", "feed_forward", "feed_forward_tanh"]),
        ("beyond/addition_length", ["grid2d", "stacked_lstm"]),
    ],
)
def test_methods_that_are_compared_have_as_many_weights_and_as_much_arithmetic(
    experiment: str, models: list[str]
) -> None:
    """The methods differ only in the read-out: a grid reads out hidden and memory vectors."""
    parameters, flops = [], []
    for model in models:
        cfg = compose(f"experiment={experiment}", f"model={model}", "model.tied=true", *RUN, f"run.model={model}")
        spec = make_data(cfg).spec
        parameters.append(count_parameters(cfg, spec))
        flops.append(count_flops(cfg, spec))
    assert max(parameters) < 1.1 * min(parameters)
    assert max(flops) < 1.04 * min(flops)


def test_a_sample_limit_holds_at_any_batch() -> None:
    steps = [
        compose("experiment=paper/memorization", *RUN, *options).trainer.max_steps
        for options in ([], ["task.data.batch_size=64"], ["trainer.accumulate_grad_batches=4"])
    ]
    assert steps == [333_334, 78_125, 83_334]
    assert compose("experiment=paper/memorization", *RUN, "task.data.batch_size=64").trainer.val_check_interval == 24


def test_every_model_of_text_is_compared() -> None:
    (models,) = (o for o in sweep("experiment/compare/text_models") if o.key_or_group == "model")
    task = compose("task=text").task
    assert sorted(models.sweep_string_iterator()) == [m for m in choices("model") if fits(compose_model(m), task)]


def test_commands_of_the_papers_figure_sweep_over_its_networks_alone() -> None:
    """A typed option replaces the experiment's; what remains of paper/memorization would multiply the jobs."""
    page = (ROOT / "docs" / "results" / "memorization.md").read_text()
    commands = re.findall(r"^python train\.py -m experiment=paper/memorization_figure(.*)$", page, re.MULTILINE)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose_with_hydra("train", ["experiment=paper/memorization_figure"], return_hydra_config=True)
    swept = [f"{key}={value}" for key, value in node.hydra.sweeper.params.items()]
    parsed = [OverridesParser.create().parse_overrides([*swept, *typed.split()]) for typed in commands]
    assert [len(jobs) for each in parsed for jobs in BasicSweeper.split_arguments(each, None)] == [7, 8, 6, 2]


def test_config_files_start_with_a_description() -> None:
    for file in GROUPED:
        if file.startswith(("experiment/", "task/", "model/", "transform/")):
            text = (CONF / f"{file}.yaml").read_text()
            if file.startswith("experiment/") and file != "experiment/adhoc":
                assert text.startswith("# @package _global_\n"), (
                    f"the options of {file} would be composed below experiment"
                )
            text = text.removeprefix("# @package _global_\n")
            assert text.startswith("# "), f"{file} has no description"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.tied=3", "model.tied must be true or false or a list, got 3"),
        ("model.tied=[width]", r"tied must be true, false or a list of time and depth, got 'width'"),
        ("model.num_layers=2.5", "model.num_layers must be a whole number, got 2.5"),
        ("model.priority=7", "model.priority must be text or null, got 7"),
        ("model.time.bias=yes please", "model.time.bias must be true or false, got 'yes please'"),
        ("optimizer.lr=fast", "optimizer.lr must be a number, got 'fast'"),
        ("model.time=lstm", "model.time must be Cell, got 'lstm'"),
        ("trainer.precision=12", "trainer .*Precision 12 is invalid"),
        ("optimizer.lr=-1", r"optimizer \(torch.optim.Adam\): Invalid learning rate"),
        ("+model.color=red", r"model\.color does not exist\. .*Grid2d has input_size, hidden_size"),
        ("model.time.output=sideways", "model.time.output must be one of paper, standard, got 'sideways'"),
        ("model.time.gain=-1", "model.time.gain must be above 0 and finite, got -1"),
    ],
)
def test_a_wrong_value_is_named(job: Callable[..., DictConfig], option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = build(job(option)).task.configure_optimizers()
