"""The C code of the engine: its library and its structures.

It is built with the machine's own compiler. Without one, in another precision or on another device, plain PyTorch
computes the same numbers up to float32 rounding.
"""

import ctypes
import logging
from functools import lru_cache

from gridlstm.engine.build import HERE, NotBuiltError, load

log = logging.getLogger(__name__)

SOURCES = tuple(HERE / f"fused{part}.c" for part in ("", "_chain", "_dropout", "_layer_norm"))
HEADER = HERE / "fused.h"
MOST_STAGES = 8
MOST_SHARING = 8
NORM_PARTS = 5  # of gain and shift: u, f, o, c, m
NORM_SCRATCH = 12  # vectors of a row of fused_layer_norm.c
# No -ffast-math: NaN must stay NaN.
FLAGS = (
    *("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-lm"),
    *(f"-DMOST_STAGES={MOST_STAGES}", f"-DMOST_SHARING={MOST_SHARING}"),
    *(f"-DNORM_PARTS={NORM_PARTS}", f"-DNORM_SCRATCH={NORM_SCRATCH}"),
)


class Dimension(ctypes.Structure):
    """``Dimension`` of the header."""

    _fields_ = (
        ("z", ctypes.c_void_p),
        ("m", ctypes.c_void_p),
        ("h", ctypes.c_void_p * MOST_STAGES),
        ("successor", ctypes.c_void_p),
        ("grad_h", ctypes.c_void_p),
        ("grad_m", ctypes.c_void_p),
        ("later", ctypes.c_void_p),
        ("keep_h", ctypes.c_void_p),
        ("keep_m", ctypes.c_void_p),
        ("hold_h", ctypes.c_void_p),
        ("hold_m", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("grad_bias", ctypes.c_void_p),
        ("bias_sums", ctypes.c_void_p),
        ("low_z", ctypes.c_void_p),
        ("low_h", ctypes.c_void_p * MOST_STAGES),
        ("scratch", ctypes.c_void_p),
        ("reader", ctypes.c_void_p),
        ("copy_of", ctypes.c_void_p),
        ("z_stride", ctypes.c_int64),
        ("h_stride", ctypes.c_int64),
        ("copies", ctypes.c_int64),
        ("B", ctypes.c_int64),
        ("d", ctypes.c_int64),
        ("stages", ctypes.c_int32),
        ("stage", ctypes.c_int32),
        ("standard", ctypes.c_int32),
        ("choose_h", ctypes.c_int32),
        ("choose_m", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class Norm(ctypes.Structure):
    """``Norm`` of fused_layer_norm.c."""

    _fields_ = (
        ("gain", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("copy_of", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("grad_gain", ctypes.c_void_p),
        ("grad_shift", ctypes.c_void_p),
        ("copies", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
    )


class Factors(ctypes.Structure):
    """``Factors`` of fused_dropout.c."""

    _fields_ = (
        ("drop", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("d", ctypes.c_int64),
        ("drop_stride", ctypes.c_int64),
        ("source_stride", ctypes.c_int64),
        ("target_stride", ctypes.c_int64),
        ("threads", ctypes.c_int32),
    )


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the compiled library; None if it cannot be built."""
    try:
        loaded = load("fused", ("cc", "gcc"), SOURCES, FLAGS, headers=(HEADER,))
    except NotBuiltError as error:
        log.warning("pointwise: the fused step could not be built (%s), using plain PyTorch instead", error)
        return None
    rows = [ctypes.c_int64, ctypes.c_int64]
    for function in (loaded.lstm_forward, loaded.lstm_gates, loaded.lstm_backward):
        function.argtypes = [ctypes.POINTER(Dimension), *rows]
        function.restype = None
    for function in (loaded.lstm_chain_forward, loaded.lstm_chain_backward):
        function.argtypes = [ctypes.POINTER(Dimension), ctypes.c_void_p, *rows]
        function.restype = None
    loaded.lstm_panel.restype = ctypes.c_int64
    for function in (loaded.layer_norm_forward, loaded.layer_norm_backward):
        function.argtypes = [ctypes.POINTER(Dimension), ctypes.POINTER(Norm), *rows]
        function.restype = None
    tensors = [ctypes.c_void_p] * 3
    loaded.dropout_forward.argtypes = [ctypes.POINTER(Factors), *tensors]
    loaded.dropout_backward.argtypes = [ctypes.POINTER(Factors), *tensors, ctypes.c_int32]
    for function in (loaded.dropout_forward, loaded.dropout_backward):
        function.restype = None
    log.info("pointwise: fused (%s)", loaded._name)
    return loaded
