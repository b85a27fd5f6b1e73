"""The fastest exact float32 matrix product of this CPU.

On some CPUs PyTorch's own float32 product runs at half the rate that oneDNN reaches with the same accuracy.
``torch.backends.mkldnn.matmul.fp32_precision = "bf16"`` routes products to oneDNN. Despite its name that is exact
float32 where the CPU has no bfloat16 matrix unit worth using; where it has one, the result really is bfloat16. So both
are measured, once per process, and oneDNN is taken only where it is exact and clearly faster.
"""

import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from gridlstm.errors import UserError

log = logging.getLogger(__name__)

Product = Literal["native", "onednn"]

# Relative to the norm of the result. float32 gives 1e-7 to 1e-6, bfloat16 3e-3.
EXACT = 1e-5
# A smaller gain may be noise. Ranks and resumed runs do not measure: they use the first rank's, or the stored, choice.
WORTHWHILE = 1.05
# (rows, columns, inner): a step of a chain and a diagonal. oneDNN may win at few rows and merely draw at many.
PROBED = ((15, 1600, 400), (256, 1024, 512))
# Below so much arithmetic oneDNN's overhead of a call decides, some 10 microseconds.
SMALL = 4e6

_chosen: Product | None = None

_lock = threading.Lock()
_users = 0  # of oneDNN at this moment: threads share the global setting
_before = ""  # what it was before the first of them


def product() -> Product:
    """The product in use, measured at the first call unless ``force_product`` came before."""
    global _chosen
    if _chosen is None:
        _chosen = _probe()
    return _chosen


def force_product(name: Product) -> None:
    """Uses this product from now on, without measuring its speed; the native one where oneDNN's is not exact here."""
    global _chosen
    _chosen = name if name == "native" or onednn_is_exact() else "native"


def autocast_type(like: Tensor) -> torch.dtype | None:
    """The type in which autocast multiplies tensors like this one; None where it does not, as in float64."""
    device = like.device.type
    if like.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def check_device(name: str, x: Tensor, weight: Tensor) -> None:
    """Raises UserError unless both are on one device."""
    if x.device != weight.device:
        raise UserError(f"expected {name} on {weight.device} like the weights, got {x.device}: move it by .to(...).")


def check_factor(name: str, x: Tensor, weight: Tensor) -> None:
    """Raises UserError unless both are on one device and of one type, or of two that autocast makes one."""
    check_device(name, x, weight)
    if x.dtype == weight.dtype:
        return
    if not (x.is_floating_point() and autocast_type(x) and autocast_type(weight)):
        raise UserError(
            f"expected {name} of type {weight.dtype} like the weights, got {x.dtype}: convert it by .to(...)."
        )


def multiply(x: Tensor, y: Tensor, out: Tensor, lowered: torch.dtype | None, add: bool = False) -> Tensor:
    """out = x y, or out += x y: matrices or batches of them.

    Args:
        lowered: the type to multiply in, which also rounds the product; None for that of ``out``.
    """
    if lowered is not None:
        product = x.to(lowered) @ y.to(lowered)
        return out.add_(product) if add else out.copy_(product)
    if x.dim() == 3:
        return out.baddbmm_(x, y) if add else torch.bmm(x, y, out=out)
    return out.addmm_(x, y) if add else torch.mm(x, y, out=out)


def affine(x: Tensor, y: Tensor, bias: Tensor | None, out: Tensor, lowered: torch.dtype | None) -> None:
    """out = x y + bias; ``lowered`` as for ``multiply``, the bias is added in the type of ``out``."""
    if bias is not None and lowered is None:
        (torch.addmm if x.dim() == 2 else torch.baddbmm)(bias, x, y, out=out)
        return
    multiply(x, y, out, lowered)
    if bias is not None:
        out += bias


@contextmanager
def fastest_product(like: Tensor, flops: float) -> Iterator[None]:
    """Runs products of tensors like this one with ``product()``; the global setting is restored afterwards.

    Args:
        flops: arithmetic of most of the products.
    """
    probed = like.dtype == torch.float32 and like.device.type == "cpu" and flops >= SMALL
    with using(product() if probed else "native"):
        yield


@contextmanager
def using(name: Product) -> Iterator[None]:
    """Runs products with this one; the global setting is restored when the last thread leaves."""
    global _users, _before
    if name == "native":
        yield
        return
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at import, so without a type
    with _lock:
        if _users == 0:
            _before = setting.fp32_precision
            setting.fp32_precision = "bf16"
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                setting.fp32_precision = _before


def onednn_is_exact() -> bool:
    """Whether oneDNN's product has float32's accuracy here."""
    return torch.backends.mkldnn.is_available() and _relative_error() < EXACT


def _problem(rows: int, columns: int, inner: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Whatever type and device are the default.
    x, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
        for shape in ((rows, inner), (inner, columns))
    )
    return x, weight


def _relative_error() -> float:
    x, weight = _problem(*PROBED[-1])
    exact, out = x.double() @ weight.double(), x.new_empty(len(x), weight.shape[1])
    with using("onednn"):
        _seconds(x, weight, out)
    return ((out.double() - exact).norm() / exact.norm()).item()


def _speedup(rows: int, columns: int, inner: int) -> float:
    """Of oneDNN over PyTorch's own: both in alternation, the best of several."""
    x, weight = _problem(rows, columns, inner)
    out = x.new_empty(rows, columns)
    best: dict[Product, float] = {"native": float("inf"), "onednn": float("inf")}
    for _ in range(10):
        for name in best:
            with using(name):
                best[name] = min(best[name], _seconds(x, weight, out))
    return best["native"] / best["onednn"]


def _probe() -> Product:
    """Some 0.1 seconds in all."""
    if not torch.backends.mkldnn.is_available():
        return "native"
    error, speedup = _relative_error(), math.prod(_speedup(*shape) for shape in PROBED) ** (1 / len(PROBED))
    chosen: Product = "onednn" if error < EXACT and speedup > WORTHWHILE else "native"
    log.info("matrix product: %s (oneDNN: %.2f times native, relative error %.1e)", chosen, speedup, error)
    return chosen


def _seconds(x: Tensor, weight: Tensor, out: Tensor) -> float:
    start = time.perf_counter()
    torch.mm(x, weight, out=out)
    return time.perf_counter() - start
