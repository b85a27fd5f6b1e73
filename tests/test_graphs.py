"""Recorded sweeps equal the reference, whichever of them are under way together.

There is no GPU here. A stand-in for the recorder computes again, on the same fixed tensors, what a GPU would replay, so
these tests cover everything but the recording itself; tests/test_gpu.py covers that.
"""

import csv
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from tests.grids import (
    DOUBLE,
    EXACT,
    Case,
    assert_equals_reference,
    random_inputs,
    random_masks,
    tensors_of,
    values_and_gradients,
)
from tests.stand_in import StandIn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gridlstm import GridLSTM
from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import GRU, LayerNormLSTM
from gridlstm.contenders import Shape, corners_contender, grid_contender
from gridlstm.engine import fused, graphs
from gridlstm.engine.fused import PointwiseStep
from gridlstm.engine.graphs import Recorded, check_graphs, using_graphs
from gridlstm.engine.half_step import half_step
from gridlstm.engine.layer_major import layer_major
from gridlstm.engine.packed import Packed
from gridlstm.engine.wavefront import recomputing_wavefront, wavefront
from gridlstm.errors import UserError
from gridlstm.scan import Block, scan
from gridlstm.training.callbacks.engine_choices import EngineChoices
from gridlstm.training.job import run_job
from gridlstm.verify.cases import draw
from gridlstm.verify.compare import differences

PAIR = Block((LSTM(), LSTM("standard", bias=True)), (3, 3), ((0,), (1,)))


@pytest.fixture(autouse=True)
def graphs_wanted(recorded_here: None) -> Iterator[None]:
    with using_graphs():
        yield


@pytest.mark.parametrize(
    ("sweep", "case"),
    [
        (wavefront, Case(Block((LSTM(),), (5,), ((0,),)), (3,), 2)),
        (wavefront, Case(PAIR, (3, 2), 2, ("keep", "drop"))),
        (wavefront, Case(Block((GRU(True), LayerNormLSTM()), (3, 4), ((0, 1),), untied=(1,)), (3, 2), 2, ("mix",))),
        (wavefront, Case(Block((LSTM(), LSTM()), (2, 2), ((0, 1),), same=((1, 0),)), (2, 2), 2, ("select",))),
        (recomputing_wavefront, Case(PAIR, (3, 2), 2, ("keep",))),
        (layer_major, Case(Block((LSTM(), LSTM()), (3, 2), ((0, 1),), untied=(1,)), (3, 4), 2)),
        (half_step, Case(PAIR, (4, 3), 2, ("select last",))),
    ],
    ids=["1-D", "masks", "other cells", "shared", "recompute", "layers", "half-step"],
)
def test_recorded_sweeps_equal_the_reference(sweep: Packed, case: Case) -> None:
    for _ in range(3):  # computed plainly, recorded and replayed, replayed
        assert_equals_reference(Recorded(sweep), case)
    assert StandIn.made == 1


def test_replayed_sweeps_take_new_inputs() -> None:
    case = Case(PAIR, (3, 2), 2, ("keep",))
    for step in range(4):
        weights, sides = random_inputs(case)
        with torch.no_grad():
            for x in tensors_of(weights, sides):
                x.mul_(1 + 0.1 * step)
        expected = values_and_gradients(scan, case, weights, sides)
        found = values_and_gradients(Recorded(wavefront), case, weights, sides)
        torch.testing.assert_close(found, expected, **EXACT)
    assert StandIn.made == 1


def test_results_stay_when_the_recording_is_used_again() -> None:
    case = Case(PAIR, (2, 2), 1)
    weights, sides = random_inputs(case)
    values_and_gradients(Recorded(wavefront), case, weights, sides)
    values, gradients = values_and_gradients(Recorded(wavefront), case, weights, sides)
    kept = [x.clone() for x in (*values, *gradients)]
    larger = [HiddenMemory(*(2 * x.detach() for x in side)) for side in sides]
    values_and_gradients(Recorded(wavefront), case, weights, [HiddenMemory(h + 0, m + 0) for h, m in sides])
    Recorded(wavefront)(case.block, weights, larger, case.extents)
    assert StandIn.made > 0
    assert all(torch.equal(x, y) for x, y in zip(kept, (*values, *gradients), strict=True))


def test_sweeps_under_way_together_have_their_own_recordings() -> None:
    case = Case(PAIR, (3, 2), 2)
    weights, sides = random_inputs(case)
    leaves = tensors_of(weights, sides)

    def loss(sweep: Any) -> Tensor:
        """Chain three grids, as the corners of an image do: the backward passes come after all forward passes."""
        above = sides
        for _ in range(3):
            above = sweep(case.block, weights, above, case.extents, None)
        return sum((x.sum() for side in above for x in side), start=torch.tensor(0.0))

    expected = torch.autograd.grad(loss(scan), leaves)
    for _ in range(3):
        torch.testing.assert_close(torch.autograd.grad(loss(Recorded(wavefront)), leaves), expected, **EXACT)
    # The first of all sweeps was computed plainly.
    assert StandIn.made == 3


def test_a_graph_that_is_dropped_gives_its_recording_back() -> None:
    case = Case(PAIR, (2, 2), 1)
    for _ in range(4):
        out = Recorded(wavefront)(case.block, *random_inputs(case), case.extents)
        assert out[0].h.requires_grad
        del out
        gc.collect()
    assert StandIn.made == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_each_shape_is_recorded_once(mode: Any) -> None:
    case = Case(PAIR, (3, 2), 2, ("keep",))
    weights, sides = random_inputs(case)
    exact = scan(case.block, weights, sides, case.extents)
    for mode_of_step in (mode, mode, torch.no_grad, torch.inference_mode):
        with mode_of_step():
            found = Recorded(wavefront)(case.block, weights, sides, case.extents)
        torch.testing.assert_close(found, exact, **EXACT)
    assert StandIn.made == 1


def test_frozen_weights_get_no_gradient() -> None:
    case = Case(PAIR, (2, 2), 1)
    weights, sides = random_inputs(case)
    weights[0].weight.requires_grad_(False)
    expected = values_and_gradients(scan, case, weights, sides)
    for _ in range(2):
        torch.testing.assert_close(values_and_gradients(Recorded(wavefront), case, weights, sides), expected, **EXACT)
    assert StandIn.made == 1


def test_other_shapes_types_and_steps_are_recorded_anew() -> None:
    def run(extents: tuple[int, int], like: Tensor, B: int = 1) -> None:
        for _ in range(2):
            assert_equals_reference(Recorded(wavefront), Case(PAIR, extents, B), like, {"rtol": 0.1, "atol": 0.1})

    run((2, 2), DOUBLE)
    run((3, 2), DOUBLE)
    run((2, 2), DOUBLE, B=2)
    run((2, 2), DOUBLE.float())
    with fused.using_step("eager"):
        run((2, 2), DOUBLE.float())
    with torch.autocast("cpu", torch.bfloat16):
        run((2, 2), DOUBLE.float())
    run((2, 2), DOUBLE)
    assert StandIn.made == 6


def test_the_least_recently_used_shapes_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_SHAPES", 2)
    cases = [Case(PAIR, (T, 2), 1) for T in (1, 2, 3)]
    for case in [case for case in cases for _ in range(2)]:
        assert_equals_reference(Recorded(wavefront), case)
    assert StandIn.made == 3
    assert_equals_reference(Recorded(wavefront), cases[1])
    assert StandIn.made == 3
    assert_equals_reference(Recorded(wavefront), cases[0])
    assert StandIn.made == 4


def test_a_second_backward_pass_is_refused() -> None:
    case = Case(PAIR, (2, 2), 1)
    weights, sides = random_inputs(case)
    for _ in range(2):
        total = Recorded(wavefront)(case.block, weights, sides, case.extents)[0].h.sum()
        total.backward(retain_graph=True)
    with pytest.raises(UserError, match=r"one backward pass: .*retain_graph=True.* Remove callbacks"):
        total.backward()
    with pytest.raises(UserError, match="no second derivatives"):
        torch.autograd.grad(
            Recorded(wavefront)(case.block, weights, sides, case.extents)[0].h.sum(),
            [weights[0].weight],
            create_graph=True,
        )


def test_the_layer_uses_recordings_and_learns_the_same() -> None:
    def losses(on: bool) -> list[float]:
        torch.manual_seed(0)
        layer = GridLSTM(4, 6, 3, dropout=0.3).double()
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        x, lengths, found = torch.randn(5, 2, 4, dtype=torch.float64), torch.tensor([5, 3]), []
        with using_graphs(on):
            for _ in range(6):
                y, _ = layer(x, None, lengths)
                loss = y.square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found.append(loss.item())
        return found

    assert losses(True) == pytest.approx(losses(False), rel=1e-10)
    assert StandIn.made > 0


OPTION = "callbacks.engine_choices.cuda_graphs"


@pytest.mark.parametrize(("task", "model"), [("memorization", "grid2d"), ("text", "grid2d")])
def test_a_run_with_recordings_learns_the_same(
    task: str, model: str, job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    size = ("trainer.precision=64-true", "trainer.max_steps=8")
    for name in ("false", "true"):
        run_job(job(f"{OPTION}={name}", *size, task=task, model=model, directory=name))
        assert (StandIn.made > 0) == (name == "true")
    plain, recorded = (list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("false", "true"))
    for row, same in zip(plain, recorded, strict=True):
        for key in (key for key in row if "loss" in key and row[key]):
            assert float(same[key]) == pytest.approx(float(row[key]), rel=1e-9), key


def test_a_run_off_a_gpu_refuses_the_option(job: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "RECORDED_ON", {"cuda"})
    with pytest.raises(UserError, match=r"cuda_graphs=true cannot work here: the network is on the cpu\. .*Remove"):
        run_job(job(f"{OPTION}=true"))
    with pytest.raises(UserError, match="cuda_graphs must be true or false, got 'yes please'"):
        run_job(job(f"{OPTION}='yes please'"))


def test_several_processes_are_refused() -> None:
    trainer: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    with pytest.raises(UserError, match=r"not been tried with several processes, got 2\. Remove the option, or use"):
        EngineChoices(cuda_graphs=True).setup(trainer, torch.nn.Module(), "fit")  # type: ignore[arg-type]


def test_gradients_of_accumulated_batches_add_up() -> None:
    case = Case(PAIR, (2, 2), 1)
    weights, sides = random_inputs(case)
    for sweep in (Recorded(wavefront), Recorded(wavefront), Recorded(wavefront)):
        sweep(case.block, weights, sides, case.extents)[0].h.sum().backward()
    (once,) = torch.autograd.grad(scan(case.block, weights, sides, case.extents)[0].h.sum(), [weights[0].weight])
    torch.testing.assert_close(weights[0].weight.grad, 3 * once, **EXACT)


def test_what_cannot_be_recorded_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, run: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(StandIn, "record", fail)
    case = Case(PAIR, (2, 2), 1)
    assert_equals_reference(Recorded(wavefront), case)
    with pytest.raises(UserError, match=r"cannot be recorded as a CUDA graph \(operation .* capturing\)\. .*Remove"):
        assert_equals_reference(Recorded(wavefront), case)


def test_graphs_are_refused_off_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "RECORDED_ON", {"cuda"})
    check_graphs(torch.device("cuda"))
    with pytest.raises(UserError, match=r"cuda_graphs=true cannot work here: the network is on the cpu\. .*Remove"):
        check_graphs(torch.device("cpu"))
    assert not graphs.records(DOUBLE)


def test_random_networks_agree_with_the_loop() -> None:
    cases = [replace(draw(seed), recorded=True, twice=False) for seed in range(20)]
    assert [line for case in cases for line in differences(case)] == []
    assert StandIn.made > 20


@pytest.mark.parametrize("step", ["eager", "fused"])
def test_the_benchmark_times_recorded_sweeps(step: PointwiseStep) -> None:
    runs = [
        grid_contender(Recorded(wavefront), Shape((3, 2), 8, 2), step=step),
        corners_contender("wavefront", Shape((3, 2, 1), 8, 2, corners=2), step=step, recorded=True),
    ]
    made = StandIn.made
    for run in runs:
        run(False)
        run(True)
    assert StandIn.made == made > 0, "they are recorded before they are timed"


def test_a_cell_that_cannot_be_hashed_is_one_sentence() -> None:
    class Changing(LSTM):
        __hash__ = None  # type: ignore[assignment]

    case = Case(Block((Changing(),), (3,), ((0,),)), (2,), 1)
    with pytest.raises(UserError, match=r"must be hashable \(unhashable type: 'Changing'\)\. .* remove callbacks"):
        assert_equals_reference(Recorded(wavefront), case)


def trained_layer() -> tuple[GridLSTM, Tensor]:
    torch.manual_seed(0)
    return GridLSTM(4, 6, 3).double(), torch.randn(5, 2, 4, dtype=torch.float64)


def test_under_checkpointing_sweeps_are_computed_plainly() -> None:
    layer, x = trained_layer()
    expected = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
    for _ in range(3):
        y = checkpoint(lambda x: layer(x)[0], x, use_reentrant=False)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), list(layer.parameters())), expected, **EXACT)
    assert StandIn.made == 0


def test_operation_counters_see_the_operations() -> None:
    layer, x = trained_layer()
    counts = []
    for _ in range(3):
        with FlopCounterMode(display=False) as counter:
            layer(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == counts[2] > 0
    assert StandIn.made == 0


@pytest.mark.parametrize("fails", [1, 2])
def test_without_memory_unused_recordings_give_way(fails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = Case(PAIR, (2, 2), 1), Case(PAIR, (3, 3), 2)
    for case in (small, small, large):
        assert_equals_reference(Recorded(wavefront), case)
    left, warm_up = [fails], StandIn.warm_up

    def full(self: StandIn, run: Callable[[], object]) -> None:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        warm_up(self, run)

    monkeypatch.setattr(StandIn, "warm_up", full)
    if fails == 1:
        made = StandIn.made
        for _ in range(4):
            assert_equals_reference(Recorded(wavefront), large)
        assert StandIn.made == made + 2, "one failed, and the other was kept"
    else:
        with pytest.raises(torch.OutOfMemoryError):
            assert_equals_reference(Recorded(wavefront), large)
    made = StandIn.made
    for _ in range(2):  # its recording was forgotten
        assert_equals_reference(Recorded(wavefront), small)
    assert StandIn.made == made + 1


def test_too_many_shapes_are_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(graphs, "MOST_SHAPES", 1)
    monkeypatch.setattr(graphs, "recordings", graphs.Recordings())
    for case in [Case(PAIR, (T, 2), 1) for T in (1, 2, 3) for _ in range(2)]:
        assert_equals_reference(Recorded(wavefront), case)
    assert caplog.text.count("more than 1 shapes of sweeps") == 1


class NothingFromTheHost(TorchDispatchMode):
    """Fails where a GPU would wait for the host or the host for it: neither can be recorded."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        assert name not in {"aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh", "aten::equal"}, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [(), ("keep", "drop"), ("mix",), ("select last",)], ids=str)
@pytest.mark.parametrize("cell", [LSTM(), LayerNormLSTM(), GRU(True)], ids=lambda cell: type(cell).__name__)
@pytest.mark.parametrize("sweep", [wavefront, recomputing_wavefront, layer_major, half_step])
def test_sweeps_exchange_nothing_with_the_host(sweep: Packed, cell: Any, masked: tuple[str, ...]) -> None:
    untied = (1,) if sweep is layer_major else ()
    stages = ((0,), (1,)) if sweep is half_step else ((0, 1),)
    case = Case(Block((cell, cell), (3, 3), stages, untied), (3, 2), 2, masked)
    weights, sides = random_inputs(case)
    masks = random_masks(case)
    with fused.using_step("eager"):
        sweep(case.block, weights, sides, case.extents, masks)  # caches the row numbers
        with NothingFromTheHost():
            total = sum(x.sum() for side in sweep(case.block, weights, sides, case.extents, masks) for x in side)
            torch.autograd.grad(total, tensors_of(weights, sides), allow_unused=True)  # type: ignore[arg-type]
