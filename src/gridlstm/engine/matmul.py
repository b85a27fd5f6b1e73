"""The fastest exact float32 matrix product of this CPU.

On some CPUs PyTorch's own float32 product runs at half the rate that oneDNN reaches with the same accuracy, and on
others MKL is faster with a weight that it has packed once. They are measured, once per process, and used only if they
are exact and clearly faster. oneDNN is called directly (onednn.cpp), because the switch that makes ``torch.mm`` use it
is process-wide and would affect unrelated threads.
"""

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from gridlstm.engine import mkl
from gridlstm.engine.build import HERE, NotBuiltError, load

log = logging.getLogger(__name__)

Product = Literal["native", "onednn", "packed"]
"""Matrix product: PyTorch's own, oneDNN's, or MKL's with a packed weight where many products share one, else native."""

# Largest error relative to the norm of the result. float32 gives 1e-7 to 1e-6, bfloat16 3e-3.
EXACT = 1e-5
# A smaller gain may be noise. Ranks and resumed runs do not measure: they use the first rank's or the stored choice.
WORTHWHILE = 1.05
# (rows, columns, inner): a step of a chain and a diagonal. oneDNN may be faster at few rows but only equal at many.
PROBED = ((15, 1600, 400), (256, 1024, 512))
# A diagonal forwards and backwards: with several threads, MKL may use only one where there are few columns.
PACKED_PROBED = ((256, 1024, 512), (256, 256, 1024))
# Below this arithmetic, the overhead of calling oneDNN dominates, about 10 microseconds.
SMALL = 4e6
# A weight gradient z^T x of at least this many rows and fewer than this many columns of x is computed transposed.
MANY_TERMS, NARROW = 2000, 256

_chosen: Product | None = None
_choosing = threading.Lock()


class _InUse(threading.local):
    """The product that each thread currently uses."""

    product: Product = "native"


_in_use = _InUse()


def product() -> Product:
    """Return the product in use; the first call measures it, unless ``force_product`` was called before."""
    global _chosen
    with _choosing:  # two threads that both measure may choose differently
        if _chosen is None:
            _chosen = _probe()
        return _chosen


def force_product(name: Product) -> None:
    """Use this product from now on without measuring its speed; the native one if it is not exact here."""
    global _chosen
    exact = {"native": lambda: True, "onednn": onednn_is_exact, "packed": packed_is_exact}[name]()
    _chosen = name if exact else "native"


def multiply(x: Tensor, y: Tensor, out: Tensor, product_dtype: torch.dtype | None, add: bool = False) -> Tensor:
    """Compute out = x y, or with ``add`` out += x y, for matrices or batches of matrices.

    Args:
        product_dtype: the type to multiply in, which also rounds the product; None for the type of ``out``.
    """
    if product_dtype is not None:
        product = x.to(product_dtype) @ y.to(product_dtype)
        return out.add_(product) if add else out.copy_(product)
    if _prefers_onednn(x, y):
        return _multiply_by_onednn(x, y, out, add)
    if x.dim() == 3:
        return torch.baddbmm(out, x, y, out=out) if add else torch.bmm(x, y, out=out)
    return torch.addmm(out, x, y, out=out) if add else torch.mm(x, y, out=out)


def multiply_transposed(z: Tensor, x: Tensor, out: Tensor, product_dtype: torch.dtype | None) -> None:
    """Compute out = z^T x, the gradient of a weight, for matrices z (rows, i) and x (rows, j).

    oneDNN computes many sums of narrow x faster as (x^T z)^T: it copies the transposed operand, and x is smaller than
    z. Its results are wide then, so that fewer of its vectors are partly empty.
    """
    narrow = z.shape[0] >= MANY_TERMS and x.shape[1] < min(NARROW, z.shape[1])
    if narrow and _in_use.product == "onednn" and out.dtype == torch.float32:
        out.copy_(multiply(x.t(), z, x.new_empty(x.shape[1], z.shape[1], dtype=out.dtype), product_dtype).t())
    else:
        multiply(z.t(), x, out, product_dtype)


def affine(x: Tensor, y: Tensor, bias: Tensor | None, out: Tensor, product_dtype: torch.dtype | None) -> None:
    """Compute out = x y + bias; ``product_dtype`` as for ``multiply``, the bias is added in the type of ``out``."""
    if bias is None or product_dtype is not None:
        multiply(x, y, out, product_dtype)
        if bias is not None:
            out += bias
    elif _prefers_onednn(x, y):
        _multiply_by_onednn(x, y, out.copy_(bias), add=True)
    else:
        (torch.addmm if x.dim() == 2 else torch.baddbmm)(bias, x, y, out=out)


def _prefers_onednn(x: Tensor, y: Tensor) -> bool:
    return _in_use.product == "onednn" and x.dtype == torch.float32 and 2 * x.numel() * y.shape[-1] >= SMALL


@contextmanager
def fastest_product(like: Tensor, flops: float) -> Iterator[None]:
    """Run ``multiply`` and ``affine`` of tensors like this one with ``product()``, in this thread.

    Args:
        flops: arithmetic of the largest product. If it is small, ``product()`` is not measured.
    """
    probed = like.dtype == torch.float32 and like.device.type == "cpu" and flops >= SMALL
    # Operation counters see only PyTorch's operations, so no other product is used under one.
    seen = torch._C._len_torch_dispatch_stack() > 0
    name = product() if probed and not seen else "native"
    with using("native" if name == "onednn" and not torch.backends.mkldnn.enabled else name):
        yield


def packs_weights() -> bool:
    """Return True if this thread currently packs weights that many products share: see ``mkl.PackedWeight``."""
    return _in_use.product == "packed"


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let a GPU multiply float32 as exactly as a CPU inside the block; cuDNN rounds factors to TF32 by default."""
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    cudnn.allow_tf32 = cublas.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, cublas.allow_tf32 = before


@contextmanager
def using(name: Product) -> Iterator[None]:
    """Run ``multiply`` and ``affine`` with this product, in this thread."""
    before, _in_use.product = _in_use.product, name
    try:
        yield
    finally:
        _in_use.product = before


@lru_cache(maxsize=1)
def _onednn() -> Callable[[int, int, int, float], bytes | None] | None:
    """Load onednn.cpp; return None if it cannot be built."""
    if not torch.backends.mkldnn.is_available():
        return None
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = load("onednn", ("c++", "g++"), (HERE / "onednn.cpp",), ("-O1", "-Wl,--no-undefined", str(torch_cpu)))
    except NotBuiltError as error:
        log.info("matrix product: oneDNN's could not be built (%s), using PyTorch's own instead", error)
        return None
    function: Any = library.onednn_product
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_float]
    function.restype = ctypes.c_char_p
    return function


def _multiply_by_onednn(x: Tensor, y: Tensor, out: Tensor, add: bool) -> Tensor:
    run = _onednn()
    assert run is not None
    x, y = _without_gaps(x), _without_gaps(y)  # named, because the call gets pointers only
    if (error := run(x._cdata, y._cdata, out._cdata, float(add))) is not None:
        raise RuntimeError(error.decode().partition("\n")[0])
    return out


def _without_gaps(x: Tensor) -> Tensor:
    """Return a transposed matrix whose columns have gaps between them as one without gaps.

    PyTorch would copy it for oneDNN into rows, which takes four times as long as copying its columns.
    """
    gaps = x.dim() == 2 and x.stride(0) == 1 and x.stride(1) > x.shape[0]
    return x.t().contiguous().t() if gaps else x


def onednn_is_exact() -> bool:
    """Return True if oneDNN's product is available, runs on this CPU and has the accuracy of float32."""
    if _onednn() is None:
        return False
    try:
        error = _relative_error()
    except RuntimeError as refusal:  # PyTorch refuses it on CPUs without AVX-512 or bfloat16 instructions
        log.info("matrix product: oneDNN's does not run on this CPU (%s), using PyTorch's own instead", refusal)
        return False
    exact = error < EXACT  # False for NaN
    if not exact:
        log.info("matrix product: oneDNN's has a relative error of %.1e here, using PyTorch's own instead", error)
    return exact


def packed_is_exact() -> bool:
    """Return True if MKL's product with a packed weight is available and has the accuracy of float32."""
    if mkl.library() is None:
        log.info("matrix product: PyTorch's library has no MKL, which could pack weights")
        return False
    error = _packed_error()
    exact = error < EXACT  # False for NaN
    if not exact:
        log.info("matrix product: MKL's with a packed weight has a relative error of %.1e here, not using it", error)
    return exact


def _packed_error() -> float:
    """Return the largest relative error of any number of rows, with gaps between those of the result."""
    x, weight = _problem(*PROBED[-1])
    exact, columns = x.double() @ weight.double(), weight.shape[1]
    packed, errors = mkl.PackedWeight(weight), []
    for rows in (1, 15, 64, len(x)):
        out = x.new_full((rows, columns + 3), torch.nan)[:, :columns]
        packed.multiply(x[:rows], out)
        packed.multiply(x[:rows], out, add=True)
        errors.append((out.double() / 2 - exact[:rows]).norm() / exact[:rows].norm())
    return torch.stack(errors).max().item()  # NaN if any is


def _problem(rows: int, columns: int, inner: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Independent of the default type and device.
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


def _speedup(rows: int, columns: int, inner: int, name: Product) -> float:
    """Return the speedup of a product over PyTorch's own, from the best of several alternating runs."""
    x, weight = _problem(rows, columns, inner)
    out, packed = x.new_empty(rows, columns), mkl.PackedWeight(weight) if name == "packed" else None
    best: dict[Product, float] = {"native": float("inf"), name: float("inf")}
    for _ in range(10):
        for each in best:
            with using(each):
                best[each] = min(best[each], _seconds(x, packed if packed and each == name else weight, out))
    return best["native"] / best[name]


@_disable_current_modes()
def cost_of_products(low: torch.dtype) -> float:
    """Return how many times as long as in float32 a product takes in this type on this CPU, the best of several runs.

    Without instructions for the type, PyTorch emulates them; some virtual machines hide the fast ones.
    """
    best = {torch.float32: float("inf"), low: float("inf")}
    factors = {dtype: [x.to(dtype) for x in _problem(384, 384, 384)] for dtype in best}
    for _ in range(5):
        for dtype, (x, y) in factors.items():
            start = time.perf_counter()
            x @ y
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[low] / best[torch.float32]


@_disable_current_modes()  # hides the probe from operation counters
def _probe() -> Product:
    """Measure all products, in about 0.1 seconds, and return the one to use."""
    speedup: dict[Product, float] = {"native": 1.0}
    if onednn_is_exact():
        speedup["onednn"] = geometric_mean(_speedup(*shape, "onednn") for shape in PROBED)
    if packed_is_exact():
        speedup["packed"] = geometric_mean(_speedup(*shape, "packed") for shape in PACKED_PROBED)
    chosen: Product = "native"
    for name, factor in speedup.items():
        if factor > WORTHWHILE * speedup[chosen]:
            chosen = name
    log.info("matrix product: %s (%s)", chosen, ", ".join(f"{name} {x:.2f}" for name, x in speedup.items()))
    return chosen


def _seconds(x: Tensor, weight: "Tensor | mkl.PackedWeight", out: Tensor) -> float:
    start = time.perf_counter()
    if isinstance(weight, Tensor):
        multiply(x, weight, out, None)
    else:
        weight.multiply(x, out)
    return time.perf_counter() - start
