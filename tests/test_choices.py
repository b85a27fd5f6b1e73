"""Engine choices affect only speed, can be stored in checkpoints, and apply only to their own thread."""

import platform
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gridlstm.engine import build, choices, compiled, fused, matmul, mkl
from gridlstm.engine.choices import Choices
from gridlstm.errors import UserError
from gridlstm.models.grid2d import Grid2d
from gridlstm.training.checkpoint import load_content
from gridlstm.training.job import run_job


@pytest.fixture(autouse=True)
def unforced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(matmul, "_chosen", None)
    monkeypatch.setattr(fused, "_forced", None)
    yield
    compiled.library.cache_clear()


needs_onednn = pytest.mark.skipif(
    not matmul.onednn_is_exact(), reason="oneDNN's product is not exact here, or there is no compiler"
)


needs_packed = pytest.mark.skipif(
    not matmul.packed_is_exact(),
    reason="PyTorch's library has no MKL, or its product with a packed weight is not exact",
)
fast_products = [pytest.param("onednn", marks=needs_onednn), pytest.param("packed", marks=needs_packed)]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="seen exact on x86-64 only")
def test_fast_products_are_exact() -> None:
    """Otherwise their tests would be skipped."""
    assert shutil.which("g++") is None or matmul.onednn_is_exact()
    assert not torch.backends.mkl.is_available() or matmul.packed_is_exact()


def in_another_thread(function: Callable[[], Tensor]) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_probed_product_is_exact() -> None:
    name = matmul.product()
    x, weight, out = torch.randn(64, 128), torch.randn(128, 64), torch.empty(64, 64)
    with matmul.fastest_product(x, matmul.SMALL):
        matmul.multiply(x, weight, out, None)
    exact = x.double() @ weight.double()
    assert (out.double() - exact).norm() / exact.norm() < matmul.EXACT
    assert matmul.product() == name


def test_inexact_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def bfloat16_where_onednn(x: Tensor, weight: Tensor, out: Tensor) -> float:
        fast = matmul._in_use.product == "onednn"
        out.copy_((x.bfloat16().float() @ weight.bfloat16().float()) if fast else x @ weight)
        return 0.5 if fast else 1.0

    monkeypatch.setattr(matmul, "_seconds", bfloat16_where_onednn)
    monkeypatch.setattr(matmul, "packed_is_exact", lambda: False)
    assert matmul.product() == "native"


def test_a_product_that_this_cpu_refuses_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """PyTorch refuses oneDNN's product on a CPU that has only AVX2."""
    monkeypatch.setattr(matmul, "_onednn", lambda: lambda *operands: b"mkldnn_matmul needs avx512bw\nmore")
    monkeypatch.setattr(mkl, "library", lambda: None)
    caplog.set_level("INFO", "gridlstm")
    assert matmul.product() == "native"
    assert "oneDNN's does not run on this CPU (mkldnn_matmul needs avx512bw)" in caplog.text
    assert "PyTorch's library has no MKL" in caplog.text
    for name in ("onednn", "packed"):
        choices.force(Choices(name, fused.pointwise_step()))
        assert matmul.product() == "native"


@pytest.mark.parametrize(("name", "error"), [("onednn", 3e-3), ("packed", 3e-3), ("packed", float("nan"))])
def test_a_stored_product_that_is_inexact_here_is_replaced(
    name: matmul.Product, error: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint may come from a processor on which it is exact."""
    monkeypatch.setattr(matmul, "_relative_error", lambda: error)
    monkeypatch.setattr(matmul, "_packed_error", lambda: error)
    choices.force(Choices(name, fused.pointwise_step()))
    assert matmul.product() == "native"
    assert "results will differ by rounding" in caplog.text


@pytest.mark.parametrize("name", fast_products)
def test_faster_exact_product_is_chosen(name: matmul.Product, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "onednn_is_exact", lambda: True)
    monkeypatch.setattr(matmul, "packed_is_exact", lambda: True)
    # Both gain, one of them clearly more.
    seconds = {"native": 1.0, "onednn": 0.8, "packed": 0.8} | {name: 0.7}
    monkeypatch.setattr(matmul, "_seconds", lambda x, weight, out: seconds[matmul._in_use.product])
    assert matmul.product() == name


@pytest.mark.parametrize("name", fast_products)
def test_small_products_and_other_types_stay_with_pytorch(name: matmul.Product) -> None:
    matmul.force_product(name)
    for like, flops in ((torch.zeros(1), matmul.SMALL - 1), (torch.zeros(1, dtype=torch.float64), matmul.SMALL)):
        with matmul.fastest_product(like, flops):
            assert matmul._in_use.product == "native"
    with matmul.fastest_product(torch.zeros(1), matmul.SMALL):
        assert matmul._in_use.product == name


@needs_onednn
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("columns", "is_large"), [(100, False), (1000, True)])
def test_each_product_of_a_sweep_chooses_by_its_own_size(
    columns: int, is_large: bool, add: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer has long products, and its chain short ones."""
    matmul.force_product("onednn")
    seen, run = [], matmul._multiply_by_onednn

    def counted(x: Tensor, y: Tensor, out: Tensor, add: bool) -> Tensor:
        seen.append(x)
        return run(x, y, out, add)

    monkeypatch.setattr(matmul, "_multiply_by_onednn", counted)
    x, weight, bias = torch.randn(30, 100), torch.randn(100, columns), torch.randn(columns)
    out = torch.ones(30, columns)
    with matmul.fastest_product(x, matmul.SMALL):
        matmul.multiply(x, weight, out, None, add)
        torch.testing.assert_close(out, x @ weight + float(add), rtol=1e-5, atol=1e-4)
        matmul.affine(x, weight, bias, out, None)
        torch.testing.assert_close(out, x @ weight + bias, rtol=1e-5, atol=1e-4)
    assert len(seen) == 2 * is_large


@needs_onednn
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("shapes", [((15, 40), (40, 160)), ((3, 15, 40), (3, 40, 160))])
def test_onednn_multiplies_operands_of_any_strides(
    shapes: tuple[tuple[int, ...], ...], add: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "SMALL", 0)
    a, b = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    start = torch.randn(*shapes[0][:-1], shapes[1][-1], dtype=torch.float64)

    def arranged(x: Tensor) -> Iterator[Tensor]:
        yield x.float()
        yield x.mT.float().contiguous().mT
        yield torch.nn.functional.pad(x.float(), (3, 5))[..., 3:-5]

    for x, y, out in product(arranged(a), arranged(b), arranged(start)):
        out.copy_(start)
        with matmul.using("onednn"):
            matmul.multiply(x, y, out, None, add)
        torch.testing.assert_close(out.double(), a @ b + (start if add else 0), rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize(
    ("rows", "inputs", "gates"), [(2100, 40, 160), (2100, 160, 40), (1900, 40, 160), (2100, 300, 320)]
)
@pytest.mark.parametrize(("product_dtype", "error"), [(None, 1e-5), (torch.bfloat16, 1e-2)])
def test_weight_gradients_are_right_either_way_round(
    rows: int, inputs: int, gates: int, product_dtype: torch.dtype | None, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, x = torch.randn(rows, gates).double(), torch.randn(rows, inputs).double()
    exact, transposed, run = z.t() @ x, [], matmul.multiply
    monkeypatch.setattr(matmul, "multiply", lambda x, *rest: transposed.append(len(x) == inputs) or run(x, *rest))
    wide = torch.full((gates, inputs + 7), torch.nan)
    with matmul.using("onednn"):
        padded = torch.nn.functional.pad(z.float(), (3, 5))[:, 3:-5]
        matmul.multiply_transposed(padded, x.float(), wide[:, :inputs], product_dtype)
    torch.testing.assert_close(wide[:, :inputs].double(), exact, rtol=0, atol=error * float(exact.abs().max()))
    assert wide[:, inputs:].isnan().all()
    assert transposed == [(rows, inputs) == (2100, 40)]


@needs_packed
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 15, 300])
@pytest.mark.parametrize(("inner", "columns"), [(40, 160), (7, 1), (1, 5), (13, 33)])
def test_packed_weight_multiplies_operands_of_any_strides(rows: int, inner: int, columns: int, add: bool) -> None:
    a, b, start = (torch.randn(*shape).double() for shape in ((rows, inner), (inner, columns), (rows, columns)))

    def arranged(x: Tensor) -> Iterator[Tensor]:
        yield x.float()
        yield x.t().float().contiguous().t()
        yield torch.nn.functional.pad(x.float(), (3, 5))[:, 3:-5]
        yield torch.stack([x.float()] * 2, -1)[..., 0]

    for x, y, out in product(arranged(a), arranged(b), arranged(start)):
        out.copy_(start if add else torch.full_like(out, torch.nan))
        mkl.PackedWeight(y).multiply(x, out, add)
        torch.testing.assert_close(out.double(), a @ b + (start if add else 0), rtol=1e-5, atol=1e-5)


@needs_packed
def test_packed_weight_gives_the_same_numbers_for_few_and_many_rows() -> None:
    """A diagonal may be computed in pieces."""
    x, packed = torch.randn(640, 200), mkl.PackedWeight(torch.randn(200, 800))
    whole, pieces = torch.empty(2, 640, 800)
    packed.multiply(x, whole)
    for rows in torch.arange(640).split([15, 1, 64, 200, 360]):
        packed.multiply(x[rows[0] : rows[-1] + 1], pieces[rows[0] : rows[-1] + 1])
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_onednn_refusal_raises_instead_of_aborting() -> None:
    x, y = torch.ones(300, 400), torch.ones(400, 50, dtype=torch.float64)
    with matmul.using("onednn"), pytest.raises(RuntimeError, match="mkldnn_matmul"):
        matmul.multiply(x, y, torch.empty(300, 50), None)
    assert matmul._in_use.product == "native"


@needs_onednn
def test_using_onednn_leaves_other_code_and_threads_alone() -> None:
    linear, x = torch.nn.Linear(400, 1600, bias=False), torch.randn(15, 400)
    out = torch.empty(15, 1600)
    expected = linear(x)
    native = matmul.multiply(x, linear.weight.detach().t(), out, None).clone()
    with matmul.using("onednn"):
        assert torch.equal(linear(x), expected)
        assert torch.equal(in_another_thread(lambda: linear(x)), expected)
        assert torch.equal(in_another_thread(lambda: matmul.multiply(x, linear.weight.detach().t(), out, None)), native)


@pytest.mark.parametrize("name", fast_products)
def test_every_thread_computes_the_same_bits(name: matmul.Product) -> None:
    """Small networks use PyTorch's product while large ones in other threads use a faster one."""
    matmul.force_product(name)
    networks = []
    for size in (8, 128):
        torch.manual_seed(0)
        networks.append((Grid2d(5, size, 3, tied=True), torch.randint(5, (96, 6))))

    def gradients(k: int) -> list[Tensor]:
        network, x = networks[k % 2]
        y, _ = network(x)
        return [y, *torch.autograd.grad(y.square().sum(), list(network.parameters()))]

    alone = [gradients(0), gradients(1)]
    with ThreadPoolExecutor(4) as pool:
        for k, found in enumerate(pool.map(gradients, range(16))):
            assert all(map(torch.equal, found, alone[k % 2]))


@pytest.mark.parametrize("name", fast_products)
def test_flop_counter_counts_products_but_not_probes(name: matmul.Product) -> None:
    network, x = Grid2d(5, 128, 3, tied=True), torch.randint(5, (96, 6))

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            network(x)
        return int(counter.get_total_flops())

    assert matmul._chosen is None
    first = flops()
    matmul.force_product(name)
    assert flops() == first >= 2 * 6 * 3 * 96 * 256 * 1024


def test_probe_multiplies_float32_whatever_the_default_type() -> None:
    """In float64, every product would pass as exact."""
    seen, seconds = set(), matmul._seconds

    def type_of(x: Tensor, weight: Tensor | mkl.PackedWeight, out: Tensor) -> float:
        seen.update([x.dtype, (weight if isinstance(weight, Tensor) else weight.packed).dtype, out.dtype])
        return seconds(x, weight, out)

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matmul, "_seconds", type_of)
            matmul.product()
    finally:
        torch.set_default_dtype(default)
    assert seen == {torch.float32}


def test_choices_survive_a_checkpoint_and_agree_to_rounding() -> None:
    torch.manual_seed(0)
    model, x = Grid2d(5, 8, 3), torch.randint(5, (2, 6))
    results = []
    for forced in (Choices("native", "eager"), choices.current()):
        stored = asdict(forced)
        choices.force(Choices(**stored))
        assert choices.current() == forced
        y, _ = model(x)
        results.append([y, *torch.autograd.grad(y.sum(), list(model.parameters()))])
        again, _ = model(x)
        assert torch.equal(again, y)
    for eager, chosen in zip(*results, strict=True):
        torch.testing.assert_close(eager, chosen, rtol=1e-5, atol=1e-5)  # float32 sums of a few hundred terms


def test_choice_that_is_not_available_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    compiled.library.cache_clear()
    choices.force(Choices("native", "fused"))
    assert choices.current() == Choices("native", "eager")
    assert "will differ by rounding" in caplog.text


def test_a_run_uses_the_pointwise_step_of_its_option(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    option = "callbacks.engine_choices.pointwise"
    run_job(job(f"{option}=eager", "trainer.max_steps=2", "stages=[fit]"))
    content = load_content(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert content["callbacks"]["EngineChoices"]["pointwise"] == "eager"
    resumed = ("ckpt_path=last", "trainer.max_steps=4", "stages=[fit]")
    run_job(job(*resumed))
    assert fused.pointwise_step() == "eager", "the checkpoint's"
    if compiled.library() is not None:
        run_job(job(f"{option}=fused", *resumed[:1], "trainer.max_steps=6", "stages=[fit]"))
        assert fused.pointwise_step() == "fused", "the option's"
    with pytest.raises(
        UserError, match=r"callbacks\.engine_choices\.pointwise=triton cannot work here: .*Remove the op"
    ):
        run_job(job(f"{option}=triton", directory="other"))
    with pytest.raises(UserError, match=r"pointwise must be one of auto, fused, eager, triton, got 'cuda'\."):
        run_job(job(f"{option}=cuda", directory="other"))
