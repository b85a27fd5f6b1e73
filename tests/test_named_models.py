"""The models in conf/model: their parameters with 6 layers of 1000 units and 205 symbols, and the Torch7 recipes."""

import pytest
import torch
from hydra.utils import instantiate
from tests.conftest import compose

from gridlstm.data.spec import Spec
from gridlstm.models.base import SequenceModel
from gridlstm.tasks.language_model import LanguageModel

M = 1_000_000


def size(name: str) -> int:
    """Count the parameters of a model without the read-out, which belongs to the task."""
    config = compose(f"model={name}", "model.hidden_size=1000", "model.num_layers=6")
    with torch.device("meta"):
        model = instantiate(config.model, input_size=205, _convert_="all")
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # A transform of the 2-D grid has 4 d 2 d weights. The input has 205 d, twice as many with memory at the ends.
        ("grid2d", 2 * 8 * M + 410_000),
        ("grid2d_priority", 2 * 8 * M + 410_000),
        ("grid2d_shared_transforms", 8 * M + 410_000),
        ("grid2d_untied", 12 * 8 * M + 410_000),
        # Layer normalization adds a gain and a shift for each gate and for the memory.
        ("grid2d_untied_layer_norm", 12 * (8 * M + 10_000) + 410_000),
        ("grid2d_relu_depth", (8 + 2) * M + 205_000),
        ("grid2d_identity_depth", (8 + 2) * M + 205_000),
        ("grid2d_gru", 2 * (6 * M + 4_000) + 205_000),
        ("grid2d_torch7", 7 * (8 * M + 4_000) + 205_000),
        ("mdlstm", 10 * M + 410_000),
        ("stacked_lstm", 6 * 8 * M + 205_000),
        ("stacked_lstm_peephole", 6 * (8 * M + 3_000) + 205_000),
        ("stacked_lstm_coupled", 6 * 6 * M + 205_000),
        ("stacked_lstm_layer_norm", 6 * (8 * M + 10_000) + 205_000),
        ("stacked_lstm_torch7", 6 * (8 * M + 4_000) + 205_000),
        ("lstm", 6 * (8 * M + 4_000) + 205_000),
        ("gru", 6 * (6 * M + 6_000) + 205_000),
        ("rnn", 6 * (2 * M + 2_000) + 205_000),
        # Networks without time read only h, and the 1-LSTM has d 4 d weights for all layers together.
        ("grid1d", 4 * M + 410_000),
        ("highway", 6 * (2 * M + 2_000) + 205_000),
        ("feed_forward", 6 * (M + 1_000) + 205_000),
    ],
)
def test_the_number_of_parameters_follows_from_the_equations(name: str, expected: int) -> None:
    assert size(name) == expected


def test_torch7_grid_has_56_5_million_parameters() -> None:
    """In Torch7, each half of H had a bias; this network has one bias, their sum. The read-out is 1000 to 205."""
    assert size("grid2d_torch7") + 7 * 4_000 + 1000 * 205 + 205 == 56_466_205


@pytest.mark.parametrize("name", ["grid2d_torch7", "stacked_lstm_torch7"])
def test_torch7_recipe(name: str) -> None:
    config = compose(f"model={name}", "model.hidden_size=40", "model.num_layers=2")
    model: SequenceModel = instantiate(config.model, input_size=205, _convert_="all")
    task = LanguageModel(model, Spec(205, 205, 50), torch.optim.SGD)
    assert 0.079 < task.head.weight.abs().max() <= 0.08
    assert 0.07 < task.head.bias.abs().max() <= 0.08
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            assert parameter.unique().tolist() == [0, 1], "only the forget gate's bias is 1"
        else:
            assert 0.079 < parameter.abs().max() <= 0.08
