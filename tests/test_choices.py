"""Choices of this machine change speed alone, can be stored, and leave no setting behind."""

import threading
from collections.abc import Iterator
from dataclasses import asdict

import pytest
import torch

from gridlstm.engine import choices, fused, matmul
from gridlstm.engine.choices import Choices
from gridlstm.models.grid2d import Grid2d


@pytest.fixture(autouse=True)
def unforced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(matmul, "_chosen", None)
    monkeypatch.setattr(fused, "_forced", None)
    yield
    fused.library.cache_clear()


def test_probe_is_exact_and_restores_the_setting() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    name = matmul.product()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    x, weight = torch.randn(64, 128), torch.randn(128, 64)
    with matmul.fastest_product(x, matmul.SMALL):
        out = x @ weight
    exact = x.double() @ weight.double()
    assert (out.double() - exact).norm() / exact.norm() < matmul.EXACT
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert matmul.product() == name


def test_inexact_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def bfloat16_where_onednn(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> float:
        fast = torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        out.copy_((x.bfloat16().float() @ weight.bfloat16().float()) if fast else x @ weight)
        return 0.5 if fast else 1.0

    monkeypatch.setattr(matmul, "_seconds", bfloat16_where_onednn)
    assert matmul.product() == "native"


def test_a_stored_product_that_is_inexact_here_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint may come from a processor whose oneDNN is exact."""
    monkeypatch.setattr(matmul, "_relative_error", lambda: 3e-3)
    choices.force(Choices("onednn", fused.pointwise_step()))
    assert matmul.product() == "native"
    assert "results will differ by rounding" in caplog.text


def test_faster_exact_product_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def faster_where_onednn(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> float:
        torch.mm(x, weight, out=out)
        return 0.5 if torch.backends.mkldnn.matmul.fp32_precision == "bf16" else 1.0

    monkeypatch.setattr(matmul, "_seconds", faster_where_onednn)
    assert matmul.product() == "onednn"


def test_small_products_stay_with_pytorch() -> None:
    matmul.force_product("onednn")
    with matmul.fastest_product(torch.zeros(1), matmul.SMALL - 1):
        assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"


def test_setting_is_restored_after_an_error() -> None:
    matmul.force_product("onednn")
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(RuntimeError, match="shapes"), matmul.fastest_product(torch.zeros(1), matmul.SMALL):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_setting_is_restored_when_threads_overlap() -> None:
    """The second enters while the setting is the first one's, and leaves after it."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    first_left, second_entered = threading.Event(), threading.Event()

    def second() -> None:
        with matmul.using("onednn"):
            second_entered.set()
            first_left.wait(timeout=10)

    thread = threading.Thread(target=second)
    with matmul.using("onednn"):
        thread.start()
        assert second_entered.wait(timeout=10)
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16", "the second still multiplies"
    first_left.set()
    thread.join()
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_probe_multiplies_float32_whatever_the_default_type() -> None:
    """In float64 every product looks exact."""
    seen = set()

    def type_of(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> float:
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
    monkeypatch.setattr(fused.shutil, "which", lambda name: None)
    fused.library.cache_clear()
    choices.force(Choices("native", "fused"))
    assert choices.current() == Choices("native", "eager")
    assert "will differ by rounding" in caplog.text
