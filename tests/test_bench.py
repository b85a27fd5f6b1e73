"""The benchmark runs, writes what it says, and times nothing that is wrong."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from gridlstm import bench, contenders
from gridlstm.cell import HiddenMemory
from gridlstm.errors import UserError
from gridlstm.scan import Block, Masks, Weights, scan


def test_bench_prints_a_table_and_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        bench.main(["--shape", "3", "8", "4", "2", "--repeats", "1", "--dir", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    with (tmp_path / "bench.csv").open() as file:
        rows = list(csv.DictReader(file))
    contenders = {row["contender"] for row in rows}
    assert {"naive loop", "wavefront", "nn.LSTM, equal arithmetic", "product, float32, native"} <= contenders
    assert all(name in printed for name in contenders)
    assert len(rows) == 2 * len(contenders)
    assert all(float(row["gflops_per_second"]) > 0 for row in rows)
    assert (tmp_path / "bench.png").stat().st_size > 0


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        bench.main(["--shape", "1", "1", "1", "1", "--repeats", "1", "--dir", str(tmp_path / "file")])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "file: File exists" in printed.err


def test_a_sweep_that_is_wrong_is_not_timed() -> None:
    def wrong(
        block: Block,
        weights: Sequence[Weights],
        sides: Sequence[HiddenMemory],
        extents: Sequence[int],
        masks: Sequence[Masks] | None = None,
    ) -> list[HiddenMemory]:
        return [HiddenMemory(h * (1 + 1e-6), m) for h, m in scan(block, weights, sides, extents, masks)]

    with pytest.raises(UserError, match="differs from the reference"):
        contenders.grid_contender(wrong, contenders.Shape((2, 2), 3, 1))


def test_arithmetic_is_that_of_the_products() -> None:
    # One block and row: two transforms of (4d x 2d), 2 operations a weight, and backward twice that.
    assert contenders.Shape((1, 1), 10, 1).flops(backward=False) == 2 * 2 * (40 * 20)
    assert contenders.Shape((1, 1), 10, 1).flops(backward=True) == 3 * 2 * 2 * (40 * 20)
    assert contenders.Shape((2, 1, 1), 10, 3).flops(backward=False) == 2 * 3 * 2 * 3 * (40 * 30)
