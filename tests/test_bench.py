"""The benchmark writes its table and picture, and refuses to time a sweep whose results are wrong."""

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from gridlstm import bench, contenders
from gridlstm.cell import HiddenMemory
from gridlstm.contenders import Contender
from gridlstm.engine import dispatch
from gridlstm.errors import UserError
from gridlstm.scan import Block, Masks, Weights, scan


def wrong(
    block: Block,
    weights: Sequence[Weights],
    sides: Sequence[HiddenMemory],
    extents: Sequence[int],
    masks: Sequence[Masks] | None = None,
) -> list[HiddenMemory]:
    return [HiddenMemory(h * (1 + 1e-6), m) for h, m in scan(block, weights, sides, extents, masks)]


def test_bench_prints_a_table_and_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    out, names = tmp_path / "out", ["bench.csv", "bench.png"]
    out.mkdir()
    for name in names:
        (out / name).write_text("older")
        (tmp_path / name).hardlink_to(out / name)
    try:
        bench.main(["--shape", "3", "8", "4", "2", "--repeats", "1", "--dir", str(out)])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    with (out / "bench.csv").open() as file:
        rows = list(csv.DictReader(file))
    contenders = {row["contender"] for row in rows}
    assert {"naive loop", "wavefront", "nn.LSTM, equal arithmetic", "product, float32, native"} <= contenders
    assert all(name in printed for name in contenders)
    assert len(rows) == 2 * len(contenders)
    assert all(float(row["gflops_per_second"]) > 0 for row in rows)
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_text() == "older", "a reader of the old file is not disturbed"


def test_unwritable_directory_is_refused_before_timing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        bench.main(["--shape", "1", "1", "1", "1", "--repeats", "1", "--dir", str(tmp_path / "file")])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "file: File exists" in printed.err
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(SystemExit):
        bench.main(["--shape", "1", "1", "1", "1", "--repeats", "1", "--dir", str(tmp_path)])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "not writable" in printed.err


def test_incorrect_sweep_is_refused_before_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="differs from the reference"):
        contenders.grid_contender(wrong, contenders.Shape((2, 2), 3, 1))
    monkeypatch.setattr(bench, "wavefront", wrong)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    with pytest.raises(SystemExit, match=r"error: .*differs from the reference"):  # and no traceback
        bench.main(["--shape", "3", "8", "4", "2", "--repeats", "1", "--dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_flops_count_the_matrix_products() -> None:
    # One block and row: two transforms of (4d x 2d), 2 operations a weight, and backward twice that.
    assert contenders.Shape((1, 1), 10, 1).flops(backward=False) == 2 * 2 * (40 * 20)
    assert contenders.Shape((1, 1), 10, 1).flops(backward=True) == 3 * 2 * 2 * (40 * 20)
    assert contenders.Shape((2, 1, 1), 10, 3).flops(backward=False) == 2 * 3 * 2 * 3 * (40 * 30)
    assert contenders.Shape((2, 1, 1), 10, 3, corners=4).flops(backward=False) == 4 * 2 * 3 * 2 * 3 * (40 * 30)


def test_image_benchmark_times_sweeps_beside_matrix_products(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "IMAGES", contenders.Shape((4, 5, 1), 8, 2, corners=4))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    bench.main(["--images", "--repeats", "1", "--dir", str(tmp_path)])
    printed = capsys.readouterr().out
    for words in ("4 corners of 4x5x1 d8 B2", "naive loop", "wavefront", "recompute", "product, float32, native"):
        assert words in printed
    monkeypatch.setitem(dispatch.SWEEPS, "wavefront", wrong)
    with pytest.raises(UserError, match="sweep=wavefront differs from the reference"):
        contenders.corners_contender("wavefront", bench.IMAGES)


def test_a_missing_gpu_is_refused_before_timing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, message in (("cuda", "torch finds no GPU here"), ("gpu", "must be cpu or cuda, got 'gpu'")):
        with pytest.raises(SystemExit, match="2"):
            bench.main(["--device", device, "--dir", str(tmp_path / "out")])
        printed = capsys.readouterr()
        assert printed.out == ""
        assert message in printed.err
    assert not (tmp_path / "out").exists()


def test_contenders_of_a_gpu_agree_with_the_reference(monkeypatch: pytest.MonkeyPatch, recorded_here: None) -> None:
    """The test computes on the CPU, where the compiled step and a stand-in replace the Triton step and the recorder."""
    lstm_of_torch = contenders.lstm_contender
    for name in ("grid_contender", "corners_contender", "lstm_contender", "product_contender"):
        make = getattr(contenders, name)

        def on_cpu(*arguments: object, make: Callable[..., Contender] = make, **options: object) -> Contender:
            words = ["cpu" if word == "cuda" else word for word in arguments]
            if make is lstm_of_torch:  # PyTorch has no LSTM in float16 for CPUs that can be trained
                words = [word for word in words if word is not torch.float16]
            return make(*words, **{key: "cpu" if value == "cuda" else value for key, value in options.items()})

        monkeypatch.setattr(bench, name, on_cpu)
    shapes = (contenders.Shape((4, 3), 8, 2), contenders.Shape((4, 5, 1), 8, 2, corners=4))
    rows = [row for shape in shapes for row in bench.measure(shape, 1, "cuda", bench.stopwatch("cpu", 1))]
    expected = {"naive loop", "wavefront, eager step", "wavefront, Triton step", "product, float32, native"}
    for shape in shapes:
        names = {row.contender for row in rows if row.shape == shape}
        assert expected <= names
        assert any("graph" in name for name in names)
    assert {"nn.LSTM, equal arithmetic", "half-step, priority, Triton step"} <= {row.contender for row in rows}
    assert "product, float32, oneDNN" not in {row.contender for row in rows}
    assert all(row.seconds > 0 for row in rows)


def test_a_gpu_is_timed_by_its_own_clock_when_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    happened = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            happened.append("record")

        def synchronize(self) -> None:
            happened.append("wait for the event")

        def elapsed_time(self, end: "Event") -> float:
            return 3.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: happened.append("wait for all"))
    seconds = bench.stopwatch("cuda", 1)(lambda backward: happened.append(f"run {backward}"), True)
    assert seconds == 3e-3
    assert happened == ["wait for all", "record", "run True", "record", "wait for the event"]
