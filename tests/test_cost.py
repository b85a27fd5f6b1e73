"""Costs of models against formulas."""

import pytest
import torch
from torch import Tensor, nn

from gridlstm.cost import cost, run_once
from gridlstm.models.base import SequenceModel
from gridlstm.models.grid2d import Grid2d
from gridlstm.models.stacked_lstm import StackedLSTM

FLOAT = 4
L, d, S = 3, 8, 5


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("priority", [None, "depth"])
def test_grid_cost_matches_the_formulas(tied: bool, priority: str | None) -> None:
    found = cost(Grid2d(S, d, L, tied=tied, priority=priority))
    # There are two transforms of 4 d x 2 d weights, shared by all layers or separate for each.
    assert found.parameters == S * 2 * d + 2 * (1 if tied else L) * 8 * d * d
    assert found.state_size == 2 * L * d
    # Each layer has 8 d x 2 d weights. A weight costs two operations in the forward pass, in the gradient of the input
    # and in the gradient of the weights.
    assert found.flops_per_step == 96 * d * d * L
    # Each layer saves 6 D numbers, D = 2 d, and D more if a second stage reads another H. The top saves an exit slot
    # of 2 D, and y.
    stages = 1 if priority is None else 2
    D = 2 * d
    assert found.saved_bytes_per_step == FLOAT * (L * (5 + stages) * D + (1 + stages) * D + D)


def test_recomputing_saves_a_third_and_costs_a_forward_sweep() -> None:
    found = cost(Grid2d(S, d, L, sweep="recompute"))
    assert found.saved_bytes_per_step == FLOAT * (L * 2 * 2 * d + 2 * 2 * d + 2 * d)
    assert found.flops_per_step == (96 + 32) * d * d * L


def test_stacked_lstm_cost_matches_the_formulas() -> None:
    found = cost(StackedLSTM(S, d, L))
    assert found.parameters == S * d + L * 8 * d * d
    assert found.state_size == 2 * L * d
    assert found.flops_per_step == 48 * d * d * L


def test_floats_are_projected_by_a_product() -> None:
    # The input needs no gradient.
    more = cost(StackedLSTM(S, d, L), input_size=S).flops_per_step - cost(StackedLSTM(S, d, L)).flops_per_step
    assert more == 2 * 2 * S * d


class Torch(SequenceModel):
    """torch.nn.LSTM as a SequenceModel."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.LSTM(S, d, L, batch_first=True)

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(L, batch_size, d), torch.zeros(L, batch_size, d)

    def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, end = self.network(x)
        return y, end


def test_torchs_own_lstm_is_counted_in_full() -> None:
    found = cost(Torch(), input_size=S)
    weights = 4 * d * (S + d) + (L - 1) * 8 * d * d
    assert found.parameters == weights + L * 8 * d
    # Its kernel always computes the gradient of the input too.
    assert found.flops_per_step == 6 * weights


def test_bytes_are_counted_until_they_are_freed() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(10))

        def forward(self, x: Tensor) -> Tensor:
            passing = x + 1  # freed when the function returns: no gradient needs it
            kept = passing[:, :1] * 2  # the product below needs it
            return kept * self.weight

    one = run_once(Square(), torch.zeros(100, 50))
    assert one.saved_bytes == FLOAT * (100 * 1 + 100 * 10)
    assert one.peak_bytes == FLOAT * (100 * 50 + 100 * 1 + 100 * 10), "the backward pass needs less than that"


def test_the_model_is_left_as_it_was() -> None:
    model = Grid2d(S, d, L)
    before = {name: p.clone() for name, p in model.named_parameters()}
    generator = torch.get_rng_state()
    cost(model)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), generator)
