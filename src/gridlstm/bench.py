"""python -m gridlstm.bench: time the sweeps, a naive loop, ``torch.nn.LSTM`` and this device's matrix products.

All contenders of one shape take turns, so that ratios hold on a busy machine; the best of all turns counts. Every sweep
is checked against the reference before it is timed.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from gridlstm.command import device_at_hand, prepare
from gridlstm.contenders import (
    Contender,
    Shape,
    corners_contender,
    grid_contender,
    lstm_contender,
    product_contender,
)
from gridlstm.engine import choices, matmul
from gridlstm.engine.fused import PointwiseStep
from gridlstm.engine.graphs import Recorded
from gridlstm.engine.half_step import half_step
from gridlstm.engine.layer_major import layer_major
from gridlstm.engine.triton_step import check_triton
from gridlstm.engine.wavefront import recomputing_wavefront, wavefront
from gridlstm.errors import UserError
from gridlstm.files import write_csv, write_png
from gridlstm.scan import scan
from gridlstm.training import provenance

# The paper's memorization and addition networks, its character network with a shorter window and a smaller batch, a 3-D
# grid, and the paper's network for MNIST without projection and read-out.
IMAGES = Shape((14, 14, 1), 100, 32, corners=4)
SHAPES = (
    Shape((42, 43), 100, 15),
    Shape((49, 18), 400, 15),
    Shape((20, 6), 1000, 50),
    Shape((14, 14, 4), 100, 32),
    IMAGES,
)


STEP: dict[str, PointwiseStep] = {"cpu": "fused", "cuda": "triton"}
"""Pointwise step of the curves over T, L and B."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    shape: Shape
    contender: str
    direction: str
    seconds: float
    gflops: float
    share: float
    """Fraction of the best exact float32 product rate at the sweep's own shapes, in the same run."""


Stopwatch = Callable[[Contender, bool], float]
"""Function that returns the seconds of one run of a contender, without or with the backward pass."""


def stopwatch(device: str, threads: int) -> Stopwatch:
    """Return the function that times a run on this device."""
    # For one thread, processor time excludes other processes; for several, only the wall clock is meaningful.
    clock = time.process_time if threads == 1 else time.perf_counter

    def on_cpu(run: Contender, backward: bool) -> float:
        start = clock()
        run(backward)
        return clock() - start

    def on_gpu(run: Contender, backward: bool) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()  # the GPU has finished all earlier work
        start.record()
        run(backward)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return on_gpu if device == "cuda" else on_cpu


def take_turns(contenders: dict[str, Contender], repeats: int, seconds_of: Stopwatch) -> dict[tuple[str, bool], float]:
    """Return the best seconds of every contender, only forward (False) and with the backward pass (True)."""
    best: dict[tuple[str, bool], float] = {}
    for _ in range(repeats):
        for name, run in contenders.items():
            # Twice each: a naive loop fragments memory, which slows down the first run after it, and a GPU's kernels
            # are compiled or loaded by their first run.
            for backward in (False, False, True, True):
                seconds = seconds_of(run, backward)
                best[name, backward] = min(seconds, best.get((name, backward), seconds))
    return best


def measure(shape: Shape, repeats: int, device: str, seconds_of: Stopwatch) -> list[Row]:
    """Time all contenders at one shape."""
    products = {"product, float32, native": product_contender(shape, "native", torch.float32, device)}
    if device == "cpu" and matmul.onednn_is_exact():
        products["product, float32, oneDNN"] = product_contender(shape, "onednn", torch.float32)
    if device == "cpu" and matmul.packed_is_exact():
        products["product, float32, packed"] = product_contender(shape, "packed", torch.float32)
    # Other CPUs emulate bfloat16, twenty times slower than float32.
    bfloat16 = device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if bfloat16:
        products["product, bfloat16"] = product_contender(shape, "native", torch.bfloat16, device)
    if device == "cuda":
        grids = _of_corners_on_gpu(shape) if shape.corners > 1 else _of_one_grid_on_gpu(shape)
    else:
        grids = _of_corners(shape) if shape.corners > 1 else _of_one_grid(shape, bfloat16)
    best = take_turns(products | grids, repeats, seconds_of)
    exact = [name for name in products if "float32" in name]
    rows = []
    for (name, backward), seconds in best.items():
        flops = shape.flops(backward) / (shape.layers if "equal parameters" in name else 1)
        rate = max(shape.flops(backward) / best[product, backward] for product in exact)
        direction = "forward+backward" if backward else "forward"
        rows.append(Row(shape, name, direction, seconds, flops / seconds / 1e9, flops / seconds / rate))
    return rows


def _of_corners(shape: Shape) -> dict[str, Contender]:
    return {
        "naive loop": corners_contender("reference", shape),
        "wavefront": corners_contender("wavefront", shape),
        "recompute": corners_contender("recompute", shape),
    }


def _of_one_grid(shape: Shape, bfloat16: bool) -> dict[str, Contender]:
    grids = {
        "naive loop": grid_contender(scan, shape),
        "wavefront": grid_contender(wavefront, shape),
        "wavefront, priority": grid_contender(wavefront, shape, priority=True),
        "recompute": grid_contender(recomputing_wavefront, shape),
        "untied: naive loop": grid_contender(scan, shape, untied=True),
        "untied: wavefront": grid_contender(wavefront, shape, untied=True),
        "untied: layer-major": grid_contender(layer_major, shape, untied=True),
    }
    if bfloat16:
        grids["wavefront, bfloat16"] = grid_contender(wavefront, shape, product_dtype=torch.bfloat16)
    if len(shape.extents) == 2:
        grids["nn.LSTM, equal arithmetic"] = lstm_contender(shape, 2 * shape.layers)
        grids["nn.LSTM, equal parameters"] = lstm_contender(shape, 2)
    return grids


def _of_corners_on_gpu(shape: Shape) -> dict[str, Contender]:
    return {
        "naive loop": corners_contender("reference", shape, "cuda"),
        "wavefront, eager step": corners_contender("wavefront", shape, "cuda"),
        "wavefront, Triton step": corners_contender("wavefront", shape, "cuda", "triton"),
        "wavefront, Triton step, graphs": corners_contender("wavefront", shape, "cuda", "triton", recorded=True),
    }


def _of_one_grid_on_gpu(shape: Shape) -> dict[str, Contender]:
    eager = partial(grid_contender, shape=shape, device="cuda")
    triton = partial(eager, step="triton")
    grids = {
        "naive loop": eager(scan),
        "wavefront, eager step": eager(wavefront),
        "wavefront, Triton step": triton(wavefront),
        "wavefront, eager step, graph": eager(Recorded(wavefront)),
        "wavefront, Triton step, graph": triton(Recorded(wavefront)),
        "wavefront, bfloat16, eager step": eager(wavefront, product_dtype=torch.bfloat16),
        "wavefront, bfloat16, Triton step": triton(wavefront, product_dtype=torch.bfloat16),
        "wavefront, bfloat16, Triton step, graph": triton(Recorded(wavefront), product_dtype=torch.bfloat16),
        "wavefront, priority, Triton step": triton(wavefront, priority=True),
        "recompute, Triton step": triton(recomputing_wavefront),
        "untied: naive loop": eager(scan, untied=True),
        "untied: wavefront, Triton step": triton(wavefront, untied=True),
        "untied: wavefront, Triton step, graph": triton(Recorded(wavefront), untied=True),
        "untied: layer-major, Triton step": triton(layer_major, untied=True),
    }
    if len(shape.extents) == 2:
        grids["half-step, priority, Triton step"] = triton(half_step, priority=True)
        grids["half-step, priority, Triton step, graph"] = triton(Recorded(half_step), priority=True)
        grids["nn.LSTM, equal arithmetic"] = lstm_contender(shape, 2 * shape.layers, "cuda")
        grids["nn.LSTM, equal arithmetic, float16"] = lstm_contender(shape, 2 * shape.layers, "cuda", torch.float16)
        grids["nn.LSTM, equal parameters"] = lstm_contender(shape, 2, "cuda")
    return grids


def scaling(base: Shape, repeats: int, device: str, seconds_of: Stopwatch) -> dict[str, tuple[list[int], list[float]]]:
    """Return the seconds of a step as T, L and B grow one at a time."""
    curves = {}
    T, L = base.extents
    grown = {
        "T": lambda factor: Shape((T * factor, L), base.d, base.B),
        "L": lambda factor: Shape((T, L * factor), base.d, base.B),
        "B": lambda factor: Shape(base.extents, base.d, base.B * factor),
    }
    for letter, shape_of in grown.items():
        values = [{"T": T, "L": L, "B": base.B}[letter] * factor for factor in (1, 2, 3, 4)]
        contenders = {
            str(value): grid_contender(wavefront, shape_of(k), device=device, step=STEP[device])
            for k, value in enumerate(values, 1)
        }
        best = take_turns(contenders, repeats, seconds_of)
        curves[letter] = values, [best[str(value), True] for value in values]
    return curves


def plot(rows: Sequence[Row], curves: dict[str, tuple[list[int], list[float]]], path: Path) -> None:
    """Plot shares of the product rate, and time against T, L and B with its least-squares line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    shapes = list(dict.fromkeys(row.shape for row in rows))
    figure, axes = plt.subplots(1, len(shapes) + 1, figsize=(5 * (len(shapes) + 1), 4.5), layout="constrained")
    for axis, shape in zip(axes, shapes, strict=False):
        shown = [row for row in rows if row.shape == shape and row.direction != "forward"]
        axis.barh([row.contender for row in shown], [row.share for row in shown])
        axis.invert_yaxis()
        axis.set(title=str(shape), xlabel="share of the float32 product rate, forward+backward")
    for letter, (values, seconds) in curves.items():
        measured, factors = np.array(seconds), np.array(values) / values[0]
        predicted = np.polyval(np.polyfit(factors, measured, 1), factors)
        unexplained = np.square(predicted - measured).sum() / np.square(measured - measured.mean()).sum()
        (line,) = axes[-1].plot(factors, measured * 1e3, "o", label=f"{letter}, R² = {1 - unexplained:.4f}")
        axes[-1].plot(factors, predicted * 1e3, color=line.get_color())
    axes[-1].set(title="time of a step", xlabel="times the smallest T, L or B", ylabel="ms", ylim=(0, None))
    axes[-1].legend()
    write_png(path, figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table and write bench.csv and bench.png."""
    parser = argparse.ArgumentParser(prog="python -m gridlstm.bench", description=__doc__)
    parser.add_argument("--shape", nargs=4, type=int, action="append", metavar=("L", "d", "T", "B"), help="repeatable")
    parser.add_argument("--images", action="store_true", help="the paper's network for MNIST alone")
    parser.add_argument(
        "--device", type=device_at_hand, default="cpu", metavar="cpu|cuda", help="where to compute (cpu)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="turns; every contender runs twice per turn")
    parser.add_argument("--dir", type=Path, default=Path("bench"), help="directory of bench.csv and bench.png")
    options = parser.parse_args(arguments)
    if options.threads < 1 or options.repeats < 1 or any(n < 1 for shape in options.shape or [] for n in shape):
        parser.error("threads, repeats and every part of a shape must be at least 1")
    try:
        options.dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--dir {options.dir}: {error.strerror}")
    if not os.access(options.dir, os.W_OK | os.X_OK):
        parser.error(f"--dir {options.dir}: not writable")
    try:
        with matmul.without_tf32():
            _run(options)
    except UserError as error:
        sys.exit(f"error: {error}")


def _run(options: argparse.Namespace) -> None:
    """Run the benchmark with parsed options.

    Raises:
        UserError: if a contender differs from the reference, or a GPU is asked for without Triton.
    """
    prepare()
    if options.device == "cuda":
        check_triton("--device cuda", torch.device("cuda"))
    torch.set_num_threads(options.threads)
    seconds_of = stopwatch(options.device, options.threads)
    chosen = choices.current()
    machine, source = provenance.device(torch.device(options.device)), provenance.commit()
    print(f"{machine}, torch {torch.__version__}, {chosen}, commit {source}")
    rows: list[Row] = []
    shapes = [Shape((T, L), d, B) for L, d, T, B in options.shape or []] + [IMAGES] * options.images or SHAPES
    for shape in shapes:
        new = measure(shape, options.repeats, options.device, seconds_of)
        rows += new
        width = max(28, *(len(row.contender) + 1 for row in new))
        print(f"\n{shape!s:<{width}}{'forward':>12}{'':>10}{'':>8}{'with backward':>18}")
        for name in dict.fromkeys(row.contender for row in new):
            forward, both = (row for row in new if row.contender == name)
            cells = [f"{row.seconds * 1e3:9.2f} ms{row.gflops:7.0f} GF/s{row.share:7.1%}" for row in (forward, both)]
            print(f"{name:<{width}}{'   '.join(cells)}", flush=True)
        # After each shape, because the whole takes half an hour and may be ended before.
        write_csv(options.dir / "bench.csv", _table(rows, machine, source))
    T, L = (max(1, extent // 4) for extent in rows[0].shape.extents[:2])
    curves = scaling(Shape((T, L), rows[0].shape.d, rows[0].shape.B), options.repeats, options.device, seconds_of)
    plot(rows, curves, options.dir / "bench.png")
    print(f"\nwrote {options.dir / 'bench.csv'} and {options.dir / 'bench.png'}")


def _table(rows: Sequence[Row], machine: str, source: str) -> list[tuple[str, ...]]:
    table: list[tuple[str, ...]] = [
        ("shape", "contender", "direction", "ms", "gflops_per_second", "share", "device", "torch", "commit")
    ]
    for row in rows:
        numbers = (f"{row.seconds * 1e3:.4g}", f"{row.gflops:.3g}", f"{row.share:.3g}")
        where = (machine, torch.__version__, source)
        table.append((str(row.shape), row.contender, row.direction, *numbers, *where))
    return table


if __name__ == "__main__":
    main()
