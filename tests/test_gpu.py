"""Compare a GPU with the CPU: sweeps, layer, models, training, and two ranks.

Run by `make test-gpu`. Float64 on the CPU is the reference throughout.
"""

import csv
import gc
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from tests.conftest import run_python
from tests.grids import EXACT, Case, assert_equals_reference, random_inputs, tensors_of
from tests.test_models import MAKE
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gridlstm import GridLSTM, bench
from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import LayerNormLSTM
from gridlstm.engine import fused
from gridlstm.engine.dispatch import SWEEPS, Sweep, SweepName
from gridlstm.engine.fused import PointwiseStep
from gridlstm.engine.graphs import Recorded, Recorder, Results, recordings, using_graphs
from gridlstm.engine.matmul import without_tf32
from gridlstm.engine.packed import Packed
from gridlstm.engine.triton_step import TritonStep
from gridlstm.engine.wavefront import wavefront
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.grid import Grid
from gridlstm.models.torch_rnn import run_rnn
from gridlstm.scan import Block
from gridlstm.training.job import run_job
from gridlstm.verify.__main__ import main as verify
from gridlstm.verify.__main__ import seed_of_today

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
# Products of a GPU sum up to 600 terms in another order, and gradients a few thousand.
TOLERANCE = {torch.float64: EXACT, torch.float32: {"rtol": 1e-3, "atol": 1e-3}}

SCALE = 0.1
"""Standard deviation of the weights of grids with about a hundred units."""
NORM = LayerNormLSTM()

Job = Callable[..., DictConfig]


@pytest.fixture(autouse=True)
def unforced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fused, "_forced", None)
    with without_tf32(), using_graphs(False):
        yield


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of Triton's kernels that ran."""
    ran, launch = list[str](), TritonStep._launch

    def record(step: TritonStep, kernel: object, *arguments: object) -> None:
        ran.append(kernel.__name__)  # type: ignore[attr-defined]
        launch(step, kernel, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TritonStep, "_launch", record)
    return ran


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("step", ["eager", "triton"])
@pytest.mark.parametrize("sweep", ["reference", "wavefront", "recompute", "layer-major", "half-step"])
@pytest.mark.parametrize("masked", [(), ("keep", "drop"), ("mix",)])
def test_sweeps_equal_the_reference(
    sweep: SweepName, step: PointwiseStep, masked: tuple[str, ...], dtype: torch.dtype, launches: list[str]
) -> None:
    block = Block((LSTM(), LSTM("standard")), (100, 100), ((0,), (1,)))
    with fused.using_step(step):
        like = torch.empty(0, dtype=dtype, device="cuda")
        assert_equals_reference(SWEEPS[sweep], Case(block, (7, 4), 5, masked, SCALE), like, TOLERANCE[dtype])
    assert bool(launches) == (step == "triton" and sweep != "reference")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Return the passes of sweeps that were recorded."""
    passes, record = list[object](), Recorder.record

    def listed(recorder: Recorder, run: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        passes.append(run)
        return record(recorder, run)

    monkeypatch.setattr(Recorder, "record", listed)
    recordings.clear()
    yield passes
    recordings.clear()


@pytest.fixture
def recorded(passes: list[object]) -> Iterator[list[object]]:
    """Record sweeps as CUDA graphs; return the passes that were recorded."""
    with using_graphs():
        yield passes


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("step", ["eager", "triton"])
@pytest.mark.parametrize("sweep", ["wavefront", "recompute", "layer-major", "half-step"])
@pytest.mark.parametrize("masked", [(), ("keep", "drop"), ("mix",)])
def test_recorded_sweeps_equal_the_reference(
    sweep: SweepName, step: PointwiseStep, masked: tuple[str, ...], dtype: torch.dtype, recorded: list[object]
) -> None:
    case = Case(Block((LSTM(), LSTM("standard")), (100, 100), ((0,), (1,))), (7, 4), 5, masked, SCALE)
    fast = SWEEPS[sweep]
    assert isinstance(fast, Packed)
    with fused.using_step(step):
        for _ in range(4):
            like = torch.empty(0, dtype=dtype, device="cuda")
            assert_equals_reference(Recorded(fast), case, like, TOLERANCE[dtype])
    assert len(recorded) == 2


def test_recordings_repeat_bit_for_bit_and_take_new_inputs(recorded: list[object]) -> None:
    torch.manual_seed(0)
    layer, x = GridLSTM(30, 50, 4).cuda(), torch.randn(11, 3, 30, device="cuda")
    first, last = None, None
    for step in range(6):
        y, _ = layer(x * (1 + step % 2))
        gradients = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
        if step % 2 == 0 and step > 0:
            first = first or gradients
            assert all(torch.equal(a, b) for a, b in zip(first, gradients, strict=True))
        elif step > 0:
            last = gradients
    assert first is not None
    assert last is not None
    assert not torch.equal(first[0], last[0])
    assert len(recorded) == 2


def test_a_cell_that_reads_back_is_refused_and_others_go_on(recorded: list[object]) -> None:
    class Reading(LSTM):
        def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
            assert z.abs().max().item() < 1e6
            return super().pointwise(z, h, m, *vectors)

    like = torch.empty(0, dtype=torch.float64, device="cuda")
    reading, plain = (Case(Block((cell,), (5,), ((0,),)), (3,), 2) for cell in (Reading(), LSTM()))
    assert_equals_reference(Recorded(wavefront), reading, like)
    with pytest.raises(UserError, match="cannot be recorded as a CUDA graph"):
        assert_equals_reference(Recorded(wavefront), reading, like)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    for _ in range(3):
        assert_equals_reference(Recorded(wavefront), plain, like)


def test_recordings_survive_the_end_of_others(recorded: list[object]) -> None:
    """cuBLAS has a workspace for each stream, which a recording must not share with another."""
    block = Block((LSTM(), LSTM()), (256, 256), ((0, 1),))
    cases = [Case(block, (T, 4), 16, scale=0.05) for T in (6, 5)]
    like, half = torch.empty(0, device="cuda"), {"rtol": 0.1, "atol": 0.1}
    with torch.autocast("cuda", torch.bfloat16):
        for case in [case for case in cases for _ in range(3)]:
            assert_equals_reference(Recorded(wavefront), case, like, half)
        with recordings._lock:
            first = next(iter(recordings._free))
            del recordings._free[first]
        gc.collect()
        torch.cuda.empty_cache()
        filled = [torch.full((1 << 22,), torch.nan, device="cuda") for _ in range(64)]
        for _ in range(3):
            assert_equals_reference(Recorded(wavefront), cases[1], like, half)
    assert len(filled) == 64
    assert len(recorded) == 4


def test_sweeps_under_way_together_and_without_gradients(recorded: list[object]) -> None:
    case = Case(Block((LSTM(), LSTM()), (20, 20), ((0, 1),)), (4, 3), 2, ("keep",), SCALE)
    weights, sides = random_inputs(case, torch.empty(0, dtype=torch.float64, device="cuda"))
    leaves = tensors_of(weights, sides)

    def values(sweep: Sweep) -> list[Tensor]:
        above = sides
        for _ in range(3):
            above = sweep(case.block, weights, above, case.extents, None)
        return [x for side in above for x in side]

    expected = values(SWEEPS["reference"])
    slopes = torch.autograd.grad(sum(x.sum() for x in expected), leaves)  # type: ignore[arg-type]
    for _ in range(4):
        found = values(Recorded(wavefront))
        got = torch.autograd.grad(sum(x.sum() for x in found), leaves)  # type: ignore[arg-type]
        torch.testing.assert_close((found, got), (expected, slopes), **EXACT)
    assert len(recorded) == 2 * 3
    for mode in (torch.no_grad, torch.inference_mode) * 2:
        with mode():
            torch.testing.assert_close(values(Recorded(wavefront)), expected, **EXACT)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            other = values(Recorded(wavefront))
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(other, expected, **EXACT)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "case",
    [
        Case(Block((LSTM(),), (1500,), ((0,),)), (3,), 2, scale=0.02),  # longer than a tile
        Case(Block((LSTM(), LSTM()), (17, 33), ((0, 1),), untied=(1,)), (9, 5), 3, scale=SCALE),
        Case(Block((LSTM(), LSTM(), NORM), (16, 5, 40), ((0, 2), (1,)), (2,)), (4, 5, 3), 2, ("keep",), SCALE),
        Case(Block((LSTM(), LSTM(), LSTM(), LSTM()), (3, 4, 1, 2), ((3,), (1,), (0, 2))), (3, 2, 3, 2), 4, ("mix",)),
    ],
    ids=["long rows", "untied", "3-D", "4-D"],
)
def test_grids_of_any_shape_equal_the_reference(case: Case, dtype: torch.dtype, launches: list[str]) -> None:
    with fused.using_step("triton"):
        like = torch.empty(0, dtype=dtype, device="cuda")
        assert_equals_reference(SWEEPS["wavefront"], case, like, TOLERANCE[dtype])
    assert launches


def test_random_networks_agree_with_the_loop() -> None:
    """The networks have every cell and every precision, and half of them use the Triton step."""
    verify(["--device", "cuda", "--cases", "200", "--seconds", "3600", "--seed", str(seed_of_today())])


def assert_agrees(module: nn.Module, dtype: torch.dtype, *inputs: object) -> None:
    """Compare values and gradients of a module in this type on the GPU with float64 on the CPU."""

    def results(module: nn.Module, like: Tensor) -> list[Tensor]:
        def placed(x: object) -> object:
            if not isinstance(x, Tensor):
                return x
            return x.to(like) if x.is_floating_point() else x.to(like.device)

        module = deepcopy(module).to(like.device, like.dtype)
        outputs = tree_leaves(module(*tree_map(placed, inputs)))
        values = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]  # a state may also count steps
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(like) for y in values]
        trained = [p for p in module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(values, trained, weights, allow_unused=True, materialize_grads=True)
        return [x.detach().cpu().double() for x in (*values, *gradients)]

    found = results(module, torch.empty(0, dtype=dtype, device="cuda"))
    exact = results(module, torch.empty(0, dtype=torch.float64))
    torch.testing.assert_close(found, exact, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("step", ["eager", "triton"])
@pytest.mark.parametrize("options", [{}, {"tied": False}, {"priority": "depth"}], ids=str)
def test_layer_agrees_with_the_cpu(options: dict[str, object], step: PointwiseStep, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = GridLSTM(30, 50, 4, **options), torch.randn(11, 3, 30, dtype=torch.float64)  # type: ignore[arg-type]
    with fused.using_step(step):
        assert_agrees(layer, dtype, x)
        assert_agrees(layer, dtype, x, None, torch.tensor([11, 1, 7]))


@pytest.mark.parametrize("name", MAKE)
def test_recorded_models_agree_with_the_cpu(name: str, recorded: list[object]) -> None:
    torch.manual_seed(0)
    model, symbols = MAKE[name](), torch.randint(5, (3, 9))
    with fused.using_step("triton"):
        for _ in range(3):
            assert_agrees(model, torch.float64, symbols)
    assert bool(recorded) == any(isinstance(part, Grid) for part in model.modules())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", MAKE)
def test_models_agree_with_the_cpu(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    with fused.using_step("triton"):
        assert_agrees(MAKE[name](), dtype, torch.randint(5, (3, 9)))


@pytest.mark.parametrize("layers", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_kernels_of_cudnn_compute_in_float32_under_bfloat16(layers: type[nn.RNNBase]) -> None:
    module, x = layers(5, 7).cuda(), torch.randn(3, 2, 5, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert module(x)[0].dtype == torch.float16, "cuDNN has bfloat16 now: run_rnn can use it"
        assert run_rnn(module, x)[0].dtype == torch.float32


def rows(directory: Path) -> list[dict[str, float]]:
    with (directory / "metrics.csv").open() as file:
        return [{name: float(value or 0) for name, value in row.items()} for row in csv.DictReader(file)]


def assert_same_losses(one: Path, other: Path, tolerance: float) -> None:
    assert len(rows(one)) == len(rows(other)) > 0
    for row, same in zip(rows(one), rows(other), strict=True):
        losses = [name for name in row if "loss" in name]
        assert losses
        for name in losses:
            assert row[name] == pytest.approx(same[name], abs=tolerance), name


@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-9), ("32-true", 1e-4)])
@pytest.mark.parametrize(("step", "graphs"), [("eager", False), ("triton", False), ("eager", True), ("triton", True)])
@pytest.mark.parametrize(
    ("task", "model"), [("memorization", "grid2d"), ("addition", "stacked_lstm"), ("text", "grid2d")]
)
def test_training_steps_agree_with_the_cpu(
    job: Job,
    tmp_path: Path,
    task: str,
    model: str,
    step: str,
    graphs: bool,
    precision: str,
    tolerance: float,
    passes: list[object],
) -> None:
    options = [
        f"trainer.precision={precision}",
        f"callbacks.engine_choices.pointwise={step}",
        f"callbacks.engine_choices.cuda_graphs={str(graphs).lower()}",
    ]
    run_job(job("trainer.precision=64-true", task=task, model=model, directory="cpu"))
    run_job(job("trainer.accelerator=gpu", *options, task=task, model=model, directory="gpu"))
    assert bool(passes) == (graphs and model == "grid2d")
    assert_same_losses(tmp_path / "cpu", tmp_path / "gpu", tolerance)
    score = json.loads((tmp_path / "gpu" / "result.json").read_text())["test"]
    again = evaluate(tmp_path / "gpu" / "checkpoints" / "best.ckpt", "test", ["trainer.accelerator=cpu"])
    assert again["test/loss"] == pytest.approx(score["test/loss"], abs=tolerance)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU, two are needed")
def test_two_ranks_reproduce_the_losses_of_one(tmp_path: Path) -> None:
    """Five rows are divided unevenly over two ranks, so their losses must be weighted by count."""
    small = [
        "logger=csv", "model.hidden_size=6", "model.num_layers=2", "trainer.precision=64-true", "trainer.max_steps=12",
        "trainer.log_every_n_steps=4", "task.val_every=6", "task.data.batch_size=5", "task.data.num_val=11",
        "task.data.num_test=11", "task.length=2", "callbacks.engine_choices.pointwise=triton",
    ]  # fmt: skip
    for name in (["hardware=gpu"], ["hardware=ddp", "trainer.devices=2"]):
        run_python("train.py", *small, *name, f"hydra.run.dir={tmp_path / name[0]}", check=True)
    assert json.loads((tmp_path / "hardware=ddp" / "result.json").read_text())["processes"] == 2
    assert_same_losses(tmp_path / "hardware=gpu", tmp_path / "hardware=ddp", 1e-9)


def test_bench_times_what_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--device", "cuda", "--shape", "3", "8", "4", "2", "--repeats", "1", "--dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert torch.cuda.get_device_name() in printed
    for name in (
        "wavefront, Triton step",
        "wavefront, Triton step, graph",
        "nn.LSTM, equal arithmetic",
        "product, float32, native",
    ):
        assert name in printed
    with (tmp_path / "bench.csv").open() as file:
        assert all(float(row["ms"]) > 0 for row in csv.DictReader(file))
