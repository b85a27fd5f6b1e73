"""Engine choices affect only speed, can be stored in checkpoints, and apply only to their own thread."""

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

from gridlstm.engine import build, choices, fused, matmul
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
    fused.library.cache_clear()


needs_onednn = pytest.mark.skipif(
    not matmul.onednn_is_exact(), reason="oneDNN's product is not exact here, or there is no compiler"
)


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
    assert matmul.product() == "native"


def test_a_product_that_this_cpu_refuses_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """PyTorch refuses oneDNN's product on a CPU that has only AVX2."""
    monkeypatch.setattr(matmul, "_onednn", lambda: lambda *operands: b"mkldnn_matmul needs avx512bw\nmore")
    caplog.set_level("INFO", "gridlstm")
    assert matmul.product() == "native"
    assert "oneDNN's does not run on this CPU (mkldnn_matmul needs avx512bw)" in caplog.text
    choices.force(Choices("onednn", fused.pointwise_step()))
    assert matmul.product() == "native"


def test_a_stored_product_that_is_inexact_here_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint may come from a processor on which oneDNN is exact."""
    monkeypatch.setattr(matmul, "_relative_error", lambda: 3e-3)
    choices.force(Choices("onednn", fused.pointwise_step()))
    assert matmul.product() == "native"
    assert "results will differ by rounding" in caplog.text


@needs_onednn
def test_faster_exact_product_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def faster_where_onednn(x: Tensor, weight: Tensor, out: Tensor) -> float:
        torch.mm(x, weight, out=out)
        return 0.5 if matmul._in_use.product == "onednn" else 1.0

    monkeypatch.setattr(matmul, "_seconds", faster_where_onednn)
    assert matmul.product() == "onednn"


@needs_onednn
def test_small_products_stay_with_pytorch() -> None:
    matmul.force_product("onednn")
    with matmul.fastest_product(torch.zeros(1), matmul.SMALL - 1):
        assert matmul._in_use.product == "native"
    with matmul.fastest_product(torch.zeros(1), matmul.SMALL):
        assert matmul._in_use.product == "onednn"


@needs_onednn
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("shapes", [((15, 40), (40, 160)), ((3, 15, 40), (3, 40, 160))])
def test_onednn_multiplies_operands_of_any_strides(shapes: tuple[tuple[int, ...], ...], add: bool) -> None:
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
def test_onednn_refusal_raises_instead_of_aborting() -> None:
    x, y = torch.ones(30, 40), torch.ones(40, 50, dtype=torch.float64)
    with matmul.using("onednn"), pytest.raises(RuntimeError, match="mkldnn_matmul"):
        matmul.multiply(x, y, torch.empty(30, 50), None)
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


@needs_onednn
def test_every_thread_computes_the_same_bits() -> None:
    """Small networks use PyTorch's product while large ones in other threads use oneDNN's."""
    matmul.force_product("onednn")
    networks = []
    for size in (8, 128):
        torch.manual_seed(0)
        networks.append((Grid2d(5, size, 3), torch.randint(5, (24, 6))))

    def gradients(k: int) -> list[Tensor]:
        network, x = networks[k % 2]
        y, _ = network(x)
        return [y, *torch.autograd.grad(y.square().sum(), list(network.parameters()))]

    alone = [gradients(0), gradients(1)]
    with ThreadPoolExecutor(4) as pool:
        for k, found in enumerate(pool.map(gradients, range(16))):
            assert all(map(torch.equal, found, alone[k % 2]))


@needs_onednn
def test_flop_counter_counts_products_but_not_probes() -> None:
    network, x = Grid2d(5, 128, 3), torch.randint(5, (24, 6))

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            network(x)
        return int(counter.get_total_flops())

    assert matmul._chosen is None
    first = flops()
    matmul.force_product("onednn")
    assert flops() == first >= 2 * 6 * 3 * 24 * 256 * 1024


def test_probe_multiplies_float32_whatever_the_default_type() -> None:
    """In float64, every product would pass as exact."""
    seen = set()

    def type_of(x: Tensor, weight: Tensor, out: Tensor) -> float:
        seen.update([x.dtype, weight.dtype, out.dtype])
        torch.mm(x, weight, out=out)
        return 1.0

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
    fused.library.cache_clear()
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
    if fused.library() is not None:
        run_job(job(f"{option}=fused", *resumed[:1], "trainer.max_steps=6", "stages=[fit]"))
        assert fused.pointwise_step() == "fused", "the option's"
    with pytest.raises(
        UserError, match=r"callbacks\.engine_choices\.pointwise=triton cannot work here: .*Remove the op"
    ):
        run_job(job(f"{option}=triton", directory="other"))
    with pytest.raises(UserError, match=r"pointwise must be one of auto, fused, eager, triton, got 'cuda'\."):
        run_job(job(f"{option}=cuda", directory="other"))
