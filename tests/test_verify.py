"""The random comparison of sweeps: today's cases agree, mistakes are found, and every option is drawn."""

import re

import pytest
from torch import Tensor

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import GRU, CoupledLSTM, Highway, LayerNormLSTM, NonLSTM, PeepholeLSTM
from gridlstm.verify.__main__ import main, seed_of_today
from gridlstm.verify.cases import GridCase, StackedCase, draw

LONG = ["--seconds", "3600"]  # so that the number of cases is the limit


def test_daily_random_cases_agree() -> None:
    """The seed changes every day. A failure is printed with the command that repeats it."""
    main(["--cases", "60", "--seed", str(seed_of_today()), *LONG])


def test_a_mistake_is_found_and_repeated_by_its_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slightly_wrong(cell: GRU, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        z_r, z_s, z_x, z_h = z.chunk(4, dim=-1)
        s = z_s.sigmoid()
        return HiddenMemory((1 - s) * (z_x + z_r.sigmoid() * z_h).tanh() + 0.9999 * s * h, m)

    monkeypatch.setattr(GRU, "pointwise", slightly_wrong)
    with pytest.raises(SystemExit) as ended:
        main(["--cases", "100", "--seed", "9000", *LONG])
    command = re.search(r"python -m gridlstm\.verify --cases 1 (--seed \d+)$", str(ended.value.code))
    assert command is not None
    assert "GRU(" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=command[1]):
        main(["--cases", "1", *command[1].split(), *LONG])
    monkeypatch.undo()
    main(["--cases", "1", *command[1].split(), *LONG])


def test_a_network_that_amplifies_roundings_agrees() -> None:
    """Layer normalization of three numbers with a small variance amplifies rounding. Here the float32 loop has none."""
    main(["--cases", "1", "--seed", "739943000770", *LONG])


def test_a_gradient_of_terms_that_cancel_agrees() -> None:
    """A bias of a linear network gets a sum of random numbers near zero. In bfloat16 each term is rounded."""
    main(["--cases", "1", "--seed", "800157", *LONG])


def test_every_option_is_drawn() -> None:
    cases = [draw(seed) for seed in range(1000)]
    grids = [case for case in cases if isinstance(case, GridCase)]
    dimensions = [d for case in grids for d in case.dimensions]
    kinds = {type(d.cell) for d in dimensions}
    assert kinds == {LSTM, PeepholeLSTM, CoupledLSTM, LayerNormLSTM, GRU, NonLSTM, Highway}
    assert {type(case.cell) for case in cases if isinstance(case, StackedCase)} == kinds
    assert {len(case.extents) for case in grids} == {1, 2, 3, 4}
    assert {case.precision for case in cases} == {"float64", "float32", "bfloat16"}
    assert {sweep for case in grids[:200] for sweep in case.sweeps()} == {
        *("auto", "reference", "wavefront", "recompute", "layer-major", "half-step"),
    }
    assert {kind for case in grids for kind in case.masked} == {"keep", "mix", "drop", "select"}
    for name in ("tied", "reverse", "shares", "untied_extent"):
        assert len({bool(getattr(d, name)) for d in dimensions}) == 2, name
    for name in ("priority", "cut"):
        assert len({bool(getattr(case, name)) for case in grids}) == 2, name
    for name in ("threads", "product", "pointwise", "frozen", "twice", "poisoned"):
        assert len({getattr(case, name) for case in cases}) > 1, name
    assert all(draw(case.seed) == case for case in cases[:20])
