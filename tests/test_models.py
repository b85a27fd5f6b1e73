"""Properties of every sequence model: its state, causality, inputs, and the names and shapes of its parameters."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class, instantiate
from tests.conftest import compose
from tests.test_image_models import MAKE as IMAGE_MODELS
from tests.test_pixel_models import MAKE as PIXEL_MODELS
from tests.test_published_models import MAKE as PUBLISHED
from tests.test_translation_models import MAKE as TRANSLATION_MODELS
from tests.test_vector_models import MAKE as VECTOR_MODELS
from torch.utils._pytree import tree_leaves

from gridlstm import cells
from gridlstm.cell import LSTM
from gridlstm.cells import CoupledLSTM, NonLSTM, PeepholeLSTM
from gridlstm.config import choices, compose_model
from gridlstm.errors import UserError
from gridlstm.models.base import SequenceModel
from gridlstm.models.grid1d import Grid1d
from gridlstm.models.grid2d import Grid2d
from gridlstm.models.mdlstm2d import MDLSTM2d
from gridlstm.models.recurrent import GRU, RNN
from gridlstm.models.stacked_lstm import StackedLSTM

GOLDEN = Path(__file__).parent / "golden" / "parameters.json"

STANDARD = LSTM(output="standard", bias=True)
MAKE: dict[str, Callable[[], SequenceModel]] = {
    **PUBLISHED,
    "grid2d": lambda: Grid2d(5, 4, 3),
    "grid2d untied": lambda: Grid2d(5, 4, 3, tied=False),
    "grid2d depth first": lambda: Grid2d(5, 4, 3, priority="time"),
    "grid2d standard, prioritized": lambda: Grid2d(5, 4, 3, time=STANDARD, depth=STANDARD, priority="depth"),
    "grid2d one transform tied": lambda: Grid2d(5, 4, 3, tied=["depth"], memory_at_ends=False),
    "grid2d shared": lambda: Grid2d(5, 4, 3, shared=True),
    "grid2d depth without memory": lambda: Grid2d(5, 4, 3, depth=NonLSTM("sigmoid")),
    "grid2d gru": lambda: Grid2d(5, 4, 3, time=cells.GRU(), depth=cells.GRU()),
    "stacked_lstm": lambda: StackedLSTM(5, 4, 3),
    "stacked_lstm tied standard": lambda: StackedLSTM(5, 4, 3, time=STANDARD, tied=True),
    "stacked_lstm peephole": lambda: StackedLSTM(5, 4, 3, time=PeepholeLSTM(peepholes="fo")),
    "stacked_lstm coupled": lambda: StackedLSTM(5, 4, 3, time=CoupledLSTM()),
    "mdlstm": lambda: MDLSTM2d(5, 4, 3),
    "rnn": lambda: RNN(5, 4, 3),
    "gru": lambda: GRU(5, 4, 3),
    "lstm": lambda: StackedLSTM(5, 4, 3, time=STANDARD),
}


def from_conf(name: str) -> SequenceModel:
    """Instantiate the model of conf/model/NAME.yaml at a small size."""
    cfg = compose("task=memorization", f"model={name}", "model.hidden_size=4", "model.num_layers=3")
    made: SequenceModel = instantiate(cfg.model, input_size=5, _convert_="all")
    return made


_KNOWN = {type(make()) for make in MAKE.values()}
for _name in choices("model"):
    _kind = get_class(compose_model(_name)._target_)
    if issubclass(_kind, SequenceModel) and _kind not in _KNOWN:  # a model whose class is not in the list above
        MAKE[_name] = partial(from_conf, _name)


@pytest.fixture(params=MAKE)
def model(request: pytest.FixtureRequest) -> SequenceModel:
    torch.manual_seed(0)
    return MAKE[request.param]().double()


def test_whole_sequence_equals_pieces_with_carried_state(model: SequenceModel) -> None:
    x = torch.randint(5, (2, 9))
    whole, end = model(x)
    state, pieces = None, []
    for piece in x.split([1, 5, 3], dim=1):
        y, state = model(piece, state)
        pieces.append(y)
    # Both are the same float64 sums, but matrix products of other shapes round differently.
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-13)
    for a, b in zip(tree_leaves(state), tree_leaves(end), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_outputs_do_not_depend_on_later_inputs(model: SequenceModel) -> None:
    x = torch.randn(1, 6, 5, dtype=torch.float64)
    direction = torch.linspace(
        1, 2, model.output_size, dtype=torch.float64
    )  # after a layer norm, an unweighted sum is constant
    derivative = torch.autograd.functional.jacobian(lambda x: (model(x)[0] @ direction)[0], x)[:, 0].abs().sum(-1)
    later = torch.ones(6, 6).triu(1).bool()
    assert (derivative[later] == 0).all()
    assert (derivative[~later] > 0).all()


def test_rows_in_a_batch_are_computed_independently(model: SequenceModel) -> None:
    x = torch.randint(5, (3, 6))
    together, _ = model(x)
    for row in range(3):
        torch.testing.assert_close(model(x[row : row + 1])[0][0], together[row], rtol=0, atol=1e-13)


def test_symbols_are_equivalent_to_one_hot_vectors(model: SequenceModel) -> None:
    x = torch.randint(5, (2, 6))
    one_hot = torch.nn.functional.one_hot(x, 5).double()
    torch.testing.assert_close(model(one_hot)[0], model(x)[0], rtol=0, atol=1e-13)


def test_shapes_and_initial_state(model: SequenceModel) -> None:
    y, state = model(torch.randint(5, (2, 6)))
    assert y.shape == (2, 6, model.output_size)
    initial = model.initial_state(2)
    assert type(state) is type(initial)
    assert [leaf.shape for leaf in tree_leaves(state)] == [leaf.shape for leaf in tree_leaves(initial)]
    assert all(leaf.shape[1] == 2 for leaf in tree_leaves(initial))


def test_gradients_reach_every_parameter_and_the_initial_state(model: SequenceModel) -> None:
    _, state = model(torch.randint(5, (2, 6)))  # an empty context would not affect a transformer
    state = type(state)(*(leaf.detach().requires_grad_(leaf.is_floating_point()) for leaf in state))
    # A clock is an integer, and the memory vectors of a GRU have length 0.
    numbers = [leaf for leaf in state if leaf.requires_grad and leaf.numel()]
    y, _ = model(torch.randint(5, (2, 6)), state)
    (y * torch.randn_like(y)).sum().backward()
    used = [*model.parameters(), *numbers]
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in used)


def test_a_state_may_be_a_plain_tuple(model: SequenceModel) -> None:
    """Generic code that detaches states returns plain tuples."""
    x = torch.randint(5, (2, 6))
    _, state = model(x)
    torch.testing.assert_close(model(x, tuple(state)), model(x, state), rtol=0, atol=0)


def test_a_state_that_does_not_fit_is_refused(model: SequenceModel) -> None:
    """Otherwise torch would broadcast or cut the state, or raise an error of its own."""
    x, fitting = torch.randint(5, (2, 6)), model.initial_state(2)
    for name, good in zip(fitting._fields, fitting, strict=True):
        shape, own = re.escape(str(tuple(good.shape))), f"as {good.dtype} on cpu, like the network, got"
        for bad, words in (
            (good[:, :1], f"of shape {shape}, got"),
            (torch.cat([good, good]), f"of shape {shape}, got"),
            (None, f"of shape {shape}, got NoneType"),
            (good.half(), f"{own} torch.float16 on cpu"),
            (good.to("meta"), f"{own} {good.dtype} on meta"),
        ):
            with pytest.raises(UserError, match=f"expected the state's {name} {words}"):
                model(x, fitting._replace(**{name: bad}))
    for state in (fitting[:-1], (*fitting, fitting[0]), fitting[0]):
        with pytest.raises(UserError, match=f"a tuple of {', '.join(fitting._fields)}, got"):
            model(x, state)


@pytest.mark.parametrize("name", MAKE)
def test_a_state_of_autocast_is_accepted_by_the_next_call(name: str) -> None:
    model, x = MAKE[name](), torch.randint(5, (2, 6))
    with torch.autocast("cpu", torch.bfloat16):
        _, state = model(x)
        _, state = model(x, state)
    assert [leaf.dtype for leaf in state] == [leaf.dtype for leaf in model.initial_state(2)]


def test_inputs_of_another_type_or_device_than_the_weights_are_refused(model: SequenceModel) -> None:
    x, symbols = torch.randn(2, 6, 5), torch.randint(5, (2, 6))
    with pytest.raises(UserError, match=r"expected x of type torch\.float64 like the weights, got torch\.float32"):
        model(x)
    for elsewhere in (x.double().to("meta"), symbols.to("meta")):
        with pytest.raises(UserError, match="expected x on cpu like the weights, got meta"):
            model(elsewhere)


def test_autocast_accepts_every_type_of_floats_except_float64() -> None:
    model, x = Grid2d(5, 4, 3), torch.randn(2, 6, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x)[0], model(x.float())[0])
        with pytest.raises(UserError, match=r"like the weights, got torch\.float64"):
            model(x.double())


@pytest.mark.parametrize(
    "x",
    [
        *(torch.zeros(3), torch.zeros(2, 3), torch.zeros(2, 3, 4), torch.zeros(2, 3, 5, dtype=torch.int64)),
        *(torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.bool)),
        *(torch.full((2, 3), 5), torch.full((2, 3), -1)),
    ],
)
def test_refuses_other_inputs(model: SequenceModel, x: torch.Tensor) -> None:
    with pytest.raises(UserError, match="expected symbols"):
        model(x)


def test_refuses_impossible_sizes() -> None:
    for make in (Grid2d, StackedLSTM, MDLSTM2d, RNN, GRU, Grid1d):
        for place, name in enumerate(("input_size", "hidden_size", "num_layers")):
            for value in (0, -1, 2.5, True, "3"):
                sizes: list[Any] = [5, 4, 1]
                sizes[place] = value
                with pytest.raises(UserError, match=f"{name} must be a whole number of at least 1, got {value!r}"):
                    make(*sizes)
    with pytest.raises(UserError, match="priority must be"):
        Grid2d(5, 4, 3, priority="width")


def test_parameters_are_those_on_record() -> None:
    """A change of names or shapes breaks existing checkpoints. If it is intended, record it with make generated."""
    assert described() == json.loads(GOLDEN.read_text())


def described() -> dict[str, dict[str, list[int]]]:
    made = {**MAKE, **VECTOR_MODELS, **IMAGE_MODELS, **PIXEL_MODELS, **TRANSLATION_MODELS}
    return {name: {key: list(value.shape) for key, value in make().state_dict().items()} for name, make in made.items()}


def record() -> None:
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = [f" {json.dumps(name)}: {json.dumps(shapes)}" for name, shapes in described().items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    record()
