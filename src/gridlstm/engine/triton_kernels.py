# mypy: disable-error-code="no-untyped-def"
"""Equations 1 to 3 and their derivatives for one diagonal of a grid, as Triton kernels: the counterpart of fused.c.

z holds the pre-activations (u, f, o, c). The forward pass replaces them by the gates, and the backward pass replaces
the gates by the gradients of the pre-activations. With LOW, z is in bfloat16: the forward pass leaves it as it is, and
the backward pass computes the gates again. Everything else stays in the type of the memory. One program computes a tile
of ROWS x UNITS. Only Triton's builtins
are called: functions of its library that are themselves kernels run in the interpreter only if the variable
TRITON_INTERPRET was set before Triton was first imported, and PyTorch imports it early.

Arguments as in fused.h, with these differences: rows from ``first`` to before ``end`` count blocks times B; ``z``
begins at row ``z_first``; the stages' ``h`` are ``stage_stride`` apart; masks have the type of the state or are
booleans. ``bias`` (copies, 4 d) is added to z, with the copy ``copy_of`` each block; None adds nothing. ``low_h`` gets
h' too, as the next product's operand.
"""

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    # The quotient of exponentials loses the relative accuracy of small x. Lambert's continued fraction, cut after seven
    # levels, is off by 2e-16 at 1/2.
    s = x * x
    small = x * (135135 + s * (17325 + s * (378 + s))) / (135135 + s * (62370 + s * (3150 + s * 28)))
    e = tl.exp(-2 * tl.abs(x))
    large = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.5, small, tl.where(x < 0, -large, large))


@triton.jit
def _output(o, m, STANDARD: tl.constexpr):
    return o * _tanh(m) if STANDARD else _tanh(o * m)


# A boolean mask selects one value. The other value has no effect, even if it is NaN.
@triton.jit
def _held(keep, old):
    return tl.where(keep, old, 0.0) if keep.dtype == tl.int1 else keep * old


@triton.jit
def _taken(keep, new):
    return tl.where(keep, 0.0, new) if keep.dtype == tl.int1 else (1 - keep) * new


@triton.jit
def _hold_back(keep, old, new):
    return tl.where(keep, old, new) if keep.dtype == tl.int1 else keep * old + (1 - keep) * new


@triton.jit
def _tile(first, end, d, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Return this program's rows (ROWS, 1), units (1, UNITS), and which of them exist."""
    row = first + tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)[None, :]
    return row, unit, (row < end) & (unit < d)


@triton.jit
def _following(successor, row, end, B):
    """Return the rows that read the results of these rows."""
    return tl.load(successor + row // B, row < end, 0) * B + row % B


@triton.jit
def _load_gates(z, d, inside, TYPE: tl.constexpr):
    u = tl.load(z, inside, 0.0).to(TYPE)
    f = tl.load(z + d, inside, 0.0).to(TYPE)
    o = tl.load(z + 2 * d, inside, 0.0).to(TYPE)
    c = tl.load(z + 3 * d, inside, 0.0).to(TYPE)
    return u, f, o, c


@triton.jit
def _store_gates(z, d, inside, u, f, o, c):
    tl.store(z, u, inside)
    tl.store(z + d, f, inside)
    tl.store(z + 2 * d, o, inside)
    tl.store(z + 3 * d, c, inside)


@triton.jit
def _gates_of(z, bias, d, inside, TYPE: tl.constexpr):
    u, f, o, c = _load_gates(z, d, inside, TYPE)
    if bias is not None:
        bias_u, bias_f, bias_o, bias_c = _load_gates(bias, d, inside, TYPE)
        u, f, o, c = u + bias_u, f + bias_f, o + bias_o, c + bias_c
    return _sigmoid(u), _sigmoid(f), _sigmoid(o), _tanh(c)


@triton.jit
def _bias_of(bias, copy_of, row, unit, end, B, d):
    """Return where each row's bias begins; None without biases."""
    return bias if bias is None else bias + tl.load(copy_of + row // B, row < end, 0) * 4 * d + unit


# Numbers that differ between diagonals and batches are not specialised: each value would be compiled again.
@triton.jit(do_not_specialize=["first", "end", "z_first", "B"])
def lstm_forward(
    z, m, h, successor, keep_h, keep_m, bias, copy_of, low_h, first, end, z_first, B, d, z_stride, h_stride,
    stage_stride, LOW: tl.constexpr, STAGES: tl.constexpr, STAGE: tl.constexpr, STANDARD: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    row, unit, inside = _tile(first, end, d, ROWS, UNITS)
    after = _following(successor, row, end, B)
    gates = z + (row - z_first) * z_stride + unit
    u, f, o, c = _gates_of(gates, _bias_of(bias, copy_of, row, unit, end, B, d), d, inside, m.dtype.element_ty)
    old_m = tl.load(m + row * d + unit, inside, 0.0)
    new_m = f * old_m + u * c
    new_h = _output(o, new_m, STANDARD)
    if keep_h is not None:
        old_h = tl.load(h + row * h_stride + unit, inside, 0.0)
        new_h = _hold_back(tl.load(keep_h + row * d + unit, inside, 0), old_h, new_h)
    if keep_m is not None:
        new_m = _hold_back(tl.load(keep_m + row * d + unit, inside, 0), old_m, new_m)
    if not LOW:
        _store_gates(gates, d, inside, u, f, o, c)
    tl.store(m + after * d + unit, new_m, inside)
    here, there = row * h_stride + unit, after * h_stride + unit
    for stage in tl.static_range(STAGES):
        # Stages up to this dimension's read the incoming h of the next block. Later stages read this block's new h.
        at = there if stage <= STAGE else here
        tl.store(h + at, new_h, inside)
        if low_h is not None:
            tl.store(low_h + at, new_h, inside)
        # Added stage by stage, because a product of 32 bits would overflow.
        here += stage_stride
        there += stage_stride


@triton.jit(do_not_specialize=["first", "end"])
def lstm_gates(z, first, end, d, z_stride, ROWS: tl.constexpr, UNITS: tl.constexpr):
    row, unit, inside = _tile(first, end, d, ROWS, UNITS)
    gates = z + row * z_stride + unit
    u, f, o, c = _gates_of(gates, None, d, inside, z.dtype.element_ty)
    _store_gates(gates, d, inside, u, f, o, c)


@triton.jit(do_not_specialize=["first", "end", "B"])
def lstm_backward(
    z, m, h, successor, keep_h, keep_m, bias, copy_of, grad_h, grad_m, past_h, first, end, B, d, z_stride, h_stride,
    LOW: tl.constexpr, LATER: tl.constexpr, STANDARD: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Replace the gates by gradients, and write the gradient of m and, with ``keep_h``, a part of the gradient of h.

    ``past_h`` (r, B, d) receives that part, which bypasses the step. With LATER, gradients of h' from later stages are
    in the own rows of ``grad_h``.
    """
    row, unit, inside = _tile(first, end, d, ROWS, UNITS)
    after = _following(successor, row, end, B)
    gates = z + row * z_stride + unit
    if LOW:
        u, f, o, c = _gates_of(gates, _bias_of(bias, copy_of, row, unit, end, B, d), d, inside, m.dtype.element_ty)
    else:
        u, f, o, c = _load_gates(gates, d, inside, m.dtype.element_ty)
    old_m = tl.load(m + row * d + unit, inside, 0.0)
    dh = tl.load(grad_h + after * h_stride + unit, inside, 0.0)
    dm = tl.load(grad_m + after * d + unit, inside, 0.0)
    if LATER:
        dh += tl.load(grad_h + row * h_stride + unit, inside, 0.0)
    if keep_h is None and keep_m is None:
        new_m = tl.load(m + after * d + unit, inside, 0.0)
        new_h = tl.load(h + after * h_stride + unit, inside, 0.0)
    else:  # the slots hold mixtures, so the step's own results are computed again
        new_m = f * old_m + u * c
        new_h = _output(o, new_m, STANDARD)
    if keep_h is not None:
        keep = tl.load(keep_h + row * d + unit, inside, 0)
        tl.store(past_h + (row - first) * d + unit, _held(keep, dh), inside)
        dh = _taken(keep, dh)
    if keep_m is not None:
        keep = tl.load(keep_m + row * d + unit, inside, 0)
        past_m = _held(keep, dm)
        dm = _taken(keep, dm)
    if STANDARD:
        squashed = _tanh(new_m)
        do = dh * squashed
        dm += dh * o * (1 - squashed * squashed)
    else:
        product = dh * (1 - new_h * new_h)
        do = product * new_m
        dm += product * o
    _store_gates(
        gates, d, inside, dm * c * u * (1 - u), dm * old_m * f * (1 - f), do * o * (1 - o), dm * u * (1 - c * c)
    )
    old_dm = dm * f
    if keep_m is not None:
        old_dm += past_m
    tl.store(grad_m + row * d + unit, old_dm, inside)
