"""Sizes that the paper states, or that follow from its numbers."""

import re

import pytest
import torch

from gridlstm.cell import LSTM
from gridlstm.config import CONF, compose
from gridlstm.data.memorization import MemorizationData
from gridlstm.data.spec import Spec
from gridlstm.models.grid2d import Grid2d
from gridlstm.models.stacked_lstm import StackedLSTM
from gridlstm.tasks.language_model import LanguageModel


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("num_layers", [1, 6])
def test_tied_language_model_has_16_8_million_parameters(num_layers: int) -> None:
    """The 16.8 M of section 4.3 do not depend on the depth.

    They are 2 transforms x 4 gates x 1000 x 2000 without bias, a column of h and one of m for each symbol, and the
    softmax on both h and m, with its 205 biases.
    """
    with torch.device("meta"):
        model = Grid2d(input_size=205, hidden_size=1000, num_layers=num_layers)
        task = LanguageModel(model, Spec(205, 205, 50), torch.optim.Adam)
    assert parameters(task) == 16_820_205 == 2 * 4 * 1000 * 2000 + 2 * 205 * 1000 + 2 * 1000 * 205 + 205


def test_untied_language_model_would_have_96_8_million() -> None:
    with torch.device("meta"):
        model = Grid2d(input_size=205, hidden_size=1000, num_layers=6, tied=False)
    assert parameters(model.grid) == 6 * 16_000_000


def test_biases_are_counted_where_they_are_learned() -> None:
    cell = LSTM(bias=True)
    assert parameters(Grid2d(5, 7, 3, time=cell, depth=cell)) - parameters(Grid2d(5, 7, 3)) == 2 * 4 * 7


@pytest.mark.parametrize(("tied", "copies"), [(True, 1), (False, 4)])
def test_stacked_lstm_has_8_d_squared_weights_a_layer(tied: bool, copies: int) -> None:
    model = StackedLSTM(input_size=11, hidden_size=10, num_layers=4, tied=tied)
    assert parameters(model) == copies * 8 * 10**2 + 11 * 10


def test_memorization_of_20_symbols_takes_42_steps_and_65_symbols() -> None:
    spec = MemorizationData(length=20, alphabet=64, batch_size=15, seed=0).spec
    assert (spec.sequence_length, spec.input_size, spec.output_size) == (42, 65, 65)


def test_the_docs_show_the_papers_table_of_mnist_as_the_experiment_has_it() -> None:
    page = (CONF.parent / "docs" / "images.md").read_text()
    section = page.partition("## The paper's experiment")[2].partition("\n## ")[0]
    shown = {name: float(error) for name, error in re.findall(r"^\| ([^|*]+) \| ([\d.]+) \|$", section, re.MULTILINE)}
    published = compose("experiment=paper/mnist").report.published["test/error"]
    assert shown == {name: pytest.approx(100 * error) for name, error in published.items()}
