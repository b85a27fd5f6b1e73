"""Properties of every translation model: pieces, padding, causality, dependence on all sources, gradients, learning."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import get_class, instantiate
from tests.conftest import compose
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gridlstm.cells import GRU, NonLSTM
from gridlstm.config import choices, compose_model
from gridlstm.cost import run_once
from gridlstm.data.base import PairBatch
from gridlstm.data.spec import PairSpec
from gridlstm.errors import UserError
from gridlstm.models.attention_lstm import AttentionLSTM
from gridlstm.models.reencoder import Reencoder
from gridlstm.models.translation import TranslationModel, select_rows
from gridlstm.models.translation_transformer import TranslationTransformer
from gridlstm.tasks.translate import Translate

SOURCE_SIZE, TARGET_SIZE = 7, 6
LENGTHS = torch.tensor([4, 2, 1])


def from_conf(name: str) -> TranslationModel:
    """Instantiate the model of conf/model/NAME.yaml at a small size."""
    cfg = compose("task=memorization", f"model={name}", "model.hidden_size=4", "model.num_layers=2")
    made: TranslationModel = instantiate(cfg.model, source_size=SOURCE_SIZE, target_size=TARGET_SIZE, _convert_="all")
    return made


MAKE: dict[str, Callable[[], TranslationModel]] = {
    name: partial(from_conf, name)
    for name in choices("model")
    if issubclass(get_class(compose_model(name)._target_), TranslationModel)
} | {
    "reencoder gated max": lambda: Reencoder(7, 6, 4, read_out="gated_max"),
    "reencoder of three grids": lambda: Reencoder(7, 6, 4, num_layers=3),
    "reencoder of one grid": lambda: Reencoder(7, 6, 4, num_layers=1),
    "reencoder gru": lambda: Reencoder(7, 6, 4, time=GRU()),
    "reencoder without memory": lambda: Reencoder(7, 6, 4, time=NonLSTM("tanh"), read_out="gated_max"),
    "translation_transformer uneven": lambda: TranslationTransformer(7, 6, 5, num_layers=1, num_heads=3),
}


@pytest.fixture(params=MAKE)
def model(request: pytest.FixtureRequest) -> TranslationModel:
    torch.manual_seed(0)
    return MAKE[request.param]().double().eval()


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Return sources of 4, 2 and 1 symbols, padded with random symbols, their masks, and inputs of 5 steps."""
    random = torch.Generator().manual_seed(1)
    source = torch.randint(SOURCE_SIZE, (3, 4), generator=random)
    return source, torch.arange(4) < LENGTHS[:, None], torch.randint(TARGET_SIZE, (3, 5), generator=random)


def task_of(model: TranslationModel, **options: bool | float) -> Translate:
    made = Translate(model, PairSpec(SOURCE_SIZE, TARGET_SIZE, 4, 5), torch.optim.Adam, **options)  # type: ignore[arg-type]
    return made.to(model.target.weight.dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", MAKE)
def test_whole_targets_equal_step_by_step_prediction(name: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    task = task_of(MAKE[name]().to(dtype)).eval()
    source, mask, inputs = pairs()
    whole = task(source, mask, inputs).log_softmax(-1)
    context = task.model.read(source, mask)
    state, steps = task.model.start(context), []
    for symbols in inputs.unbind(1):
        y, state = task.model.step(context, state, symbols)
        steps.append(task.head(y).log_softmax(-1))
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, rtol=0, atol=tolerance)


def test_whole_targets_equal_pieces_of_any_length(model: TranslationModel) -> None:
    source, mask, inputs = pairs()
    context = model.read(source, mask)
    state, pieces = model.start(context), []
    for piece in inputs.split([2, 3], dim=1):
        y, state = model.advance(context, state, piece)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(source, mask, inputs), rtol=0, atol=1e-10)


def test_a_padded_batch_equals_its_sentences_one_by_one(model: TranslationModel) -> None:
    source, mask, inputs = pairs()
    together = model(source, mask, inputs)
    for row, length in enumerate(LENGTHS.tolist()):
        own = slice(row, row + 1)
        alone = model(source[own, :length], mask[own, :length], inputs[own])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-10)


def test_gradients_ignore_padding(model: TranslationModel) -> None:
    source, mask, inputs = pairs()
    found = []
    for padding in (0, 5):
        y = model(source.where(mask, padding), mask, inputs)
        found.append(torch.autograd.grad(y.square().sum(), list(model.parameters()), allow_unused=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_later_target_symbol_changes_nothing_earlier(model: TranslationModel) -> None:
    source, mask, inputs = pairs()
    before = model(source, mask, inputs)
    for step in range(5):
        other = inputs.clone()
        other[:, step] = (other[:, step] + 1) % TARGET_SIZE
        after = model(source, mask, other)
        assert torch.equal(after[:, :step], before[:, :step])
        assert (after[:, step:] != before[:, step:]).any(-1).all()


def test_every_source_word_reaches_every_output(model: TranslationModel) -> None:
    source, mask, inputs = pairs()
    before = model(source, mask, inputs)
    for place in range(4):
        other = source.clone()
        other[:, place] = (other[:, place] + 1) % SOURCE_SIZE
        changed = (model(other, mask, inputs) != before).any(-1)
        if not isinstance(model, Reencoder) or model.gated is None:  # a maximum may stay the same
            assert torch.equal(changed, mask[:, place, None].expand(3, 5))
        assert not changed[~mask[:, place]].any()


def test_gradients_are_finite_and_reach_every_parameter(model: TranslationModel) -> None:
    y = model.train()(*pairs())
    (y * torch.randn_like(y)).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0 or parameter.numel() == 0


def test_rows_are_repeated_reordered_and_dropped(model: TranslationModel) -> None:
    source, mask, inputs = pairs()
    rows = torch.tensor([2, 0, 0])
    context = model.read(source, mask)
    _, state = model.advance(context, model.start(context), inputs[:, :3])
    expected, after = model.advance(context, state, inputs[:, 3:])
    found, selected = model.advance(select_rows(context, rows), select_rows(state, rows), inputs[rows, 3:])
    torch.testing.assert_close(found, expected[rows], rtol=0, atol=1e-10)
    for a, b in zip(tree_leaves(selected), tree_leaves(select_rows(after, rows)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_and_predicts_step_by_step(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = MAKE[name]().eval()
    source, mask, inputs = pairs()
    with torch.autocast("cpu", dtype):
        whole = model(source, mask, inputs)
        context = model.read(source, mask)
        state = model.start(context)
        for symbols in inputs.unbind(1):
            y, state = model.step(context, state, symbols)
    torch.testing.assert_close(y.float(), whole[:, -1].float(), rtol=0, atol=0.1)
    whole.float().sum().backward()


def test_a_mask_that_does_not_fit_is_refused(model: TranslationModel) -> None:
    source, mask, inputs = pairs()
    for wrong in (mask.long(), mask[:, :3], mask[0]):
        with pytest.raises(UserError, match=r"expected a source .* and a mask of booleans of the same shape, got"):
            model(source, wrong, inputs)
    for wrong in (mask & False, mask.flip(1)):
        with pytest.raises(UserError, match="Expected padding only at the end of a row, after at least one symbol"):
            model(source, wrong, inputs)
    with pytest.raises(UserError, match=r"expected symbols from 0 to 6, got 0 to 7"):
        model(torch.tensor([[0, 7]]), torch.ones(1, 2, dtype=torch.bool), inputs[:1])


def test_options_out_of_range_are_refused() -> None:
    for make in (Reencoder, AttentionLSTM, TranslationTransformer):
        for name in ("source_size", "target_size", "hidden_size", "num_layers"):
            sizes = {"source_size": 7, "target_size": 6, "hidden_size": 4, "num_layers": 1} | {name: 0}
            with pytest.raises(UserError, match=f"{name} must be a whole number of at least 1, got 0"):
                make(**sizes)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"dropout must be a probability in \[0, 1\), got 1"):
            make(7, 6, 4, dropout=1)
    with pytest.raises(UserError, match="read_out must be end or gated_max, got 'start'"):
        Reencoder(7, 6, 4, read_out="start")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="attention must be true or false, got 'no'"):
        AttentionLSTM(7, 6, 4, attention="no")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="num_heads must be a whole number of at least 1, got 0"):
        TranslationTransformer(7, 6, 4, num_heads=0)


def test_alignments_sum_to_one_over_the_words_of_the_source() -> None:
    torch.manual_seed(0)
    source, mask, inputs = pairs()
    weights = AttentionLSTM(7, 6, 4, num_layers=2).alignment(source, mask, inputs)
    assert weights is not None
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5))
    assert (weights[~mask[:, None].expand(3, 5, 4)] == 0).all()
    assert AttentionLSTM(7, 6, 4, attention=False).alignment(source, mask, inputs) is None
    assert Reencoder(7, 6, 4).alignment(source, mask, inputs) is None


def test_attention_is_its_equations() -> None:
    torch.manual_seed(0)
    model = AttentionLSTM(7, 6, 4).double()
    source, mask, inputs = pairs()
    weights = dict(model.named_parameters())

    def lstm(x: Tensor, h: Tensor, m: Tensor, name: str, suffix: str) -> tuple[Tensor, Tensor]:
        z = weights[f"{name}.weight_ih_{suffix}"] @ x + weights[f"{name}.bias_ih_{suffix}"]
        z = z + weights[f"{name}.weight_hh_{suffix}"] @ h + weights[f"{name}.bias_hh_{suffix}"]
        u, f, c, o = z.chunk(4)
        m = f.sigmoid() * m + u.sigmoid() * c.tanh()
        return o.sigmoid() * m.tanh(), m

    found = model(source, mask, inputs)
    for row, length in enumerate(LENGTHS.tolist()):
        words = [weights["source.weight"][int(symbol)] for symbol in source[row, :length]]
        ways = []
        for suffix, order in (("l0", range(length)), ("l0_reverse", reversed(range(length)))):
            h = m = words[0].new_zeros(4)
            outputs = {}
            for s in order:
                h, m = lstm(words[s], h, m, "encoder", suffix)
                outputs[s] = h
            ways.append(outputs)
        a = [torch.cat([ways[0][s], ways[1][s]]) for s in range(length)]
        ends = torch.cat([ways[0][length - 1], ways[1][0]])
        h, m = (weights["first.weight"] @ ends + weights["first.bias"]).tanh().chunk(2)
        for t, symbol in enumerate(inputs[row].tolist()):
            x = weights["target.weight"][symbol]
            U, b = weights["attention.key.weight"], weights["attention.key.bias"]
            e = [
                weights["attention.score.weight"][0] @ (weights["attention.query.weight"] @ h + U @ each + b).tanh()
                for each in a
            ]
            c = sum(weight * each for weight, each in zip(torch.stack(e).softmax(0), a, strict=True))
            assert isinstance(c, Tensor)
            h, m = lstm(torch.cat([x, c]), h, m, "decoder", "l0")
            y = (weights["read_out.weight"] @ torch.cat([h, c, x]) + weights["read_out.bias"]).tanh()
            torch.testing.assert_close(found[row, t], y, rtol=0, atol=1e-13)


def test_label_smoothing_changes_only_the_training_loss() -> None:
    torch.manual_seed(0)
    source, mask, inputs = pairs()
    batch = PairBatch(source, mask, inputs, inputs.roll(-1, 1), torch.arange(5) < torch.tensor([5, 3, 1])[:, None])
    task = task_of(AttentionLSTM(SOURCE_SIZE, TARGET_SIZE, 4), label_smoothing=0.1)
    log_p = task(source, mask, inputs).log_softmax(-1)
    nats = -log_p.gather(2, batch.targets[..., None])[..., 0]
    smoothed = 0.9 * nats - 0.1 * log_p.mean(-1)
    for training, expected in ((True, smoothed), (False, nats)):
        prediction = task.train(training).predict(batch, None)
        torch.testing.assert_close(prediction.losses, expected * batch.loss_mask)
        metrics = task.make_metrics()
        task.update_metrics(metrics, batch, prediction)  # type: ignore[arg-type]
        mean = nats[batch.loss_mask].double().mean()
        right = (log_p.argmax(-1) == batch.targets)[batch.loss_mask].double().mean()
        for name, value in (("loss", mean), ("perplexity", mean.exp()), ("accuracy", right)):
            assert float(metrics[name].compute()) == pytest.approx(value.item(), rel=1e-6)  # type: ignore[operator]
    with torch.autocast("cpu", torch.bfloat16):
        prediction = task.train().predict(batch, None)
    assert prediction.losses.dtype == torch.float32, "only products are rounded to bfloat16"
    with pytest.raises(UserError, match="label_smoothing must be at least 0 and below 1, got 1"):
        task_of(task.model, label_smoothing=1)


def test_tied_symbols_are_read_out_with_the_matrix_that_projects_them() -> None:
    model = Reencoder(SOURCE_SIZE, TARGET_SIZE, 4)
    task = task_of(model, tied=True)
    assert task.head.weight is model.target.weight
    assert len(list(task.parameters())) == len(list(model.parameters())) + 1
    y = torch.randn(2, 8)
    torch.testing.assert_close(task.head(y), y @ model.target.weight.T / 8**0.5)
    with pytest.raises(UserError, match=r"expected 4, got 8\. Use tied=false"):
        task_of(Reencoder(SOURCE_SIZE, TARGET_SIZE, 4, read_out="gated_max"), tied=True)


@pytest.mark.parametrize("make", [Reencoder, AttentionLSTM, TranslationTransformer])
def test_every_kind_of_model_learns_to_reverse_sources(make: Callable[..., TranslationModel]) -> None:
    """Within 400 steps, over 95 % of the symbols of new sources must be right."""
    torch.manual_seed(0)
    task = Translate(make(8, 8, 32, num_layers=2), PairSpec(8, 8, 4, 5), torch.optim.Adam)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.005)
    for step in range(1, 401):
        prediction = task.predict(reversals(32), None)
        optimizer.zero_grad()
        (prediction.losses.sum() / prediction.terms).backward()
        optimizer.step()
        if step % 50 == 0 and accuracy(task) > 0.95:
            return
    raise AssertionError(f"{accuracy(task):.0%} of the symbols are right after {step} steps")


@torch.no_grad()
def accuracy(task: Translate) -> float:
    batch = reversals(100)
    right = task(batch.source, batch.source_mask, batch.inputs).argmax(-1) == batch.targets
    return float(right[batch.loss_mask].float().mean())


def reversals(rows: int) -> PairBatch:
    """Return sources of 1 to 4 symbols from 3 to 7 and their reversals; 0 is padding, 1 the beginning, 2 the end."""
    lengths, places = torch.randint(1, 5, (rows, 1)), torch.arange(5)
    inside = places < lengths
    source = torch.randint(3, 8, (rows, 5)) * inside
    targets = source.gather(1, (lengths - 1 - places) % 5) * inside + 2 * (places == lengths)
    inputs = F.pad(targets[:, :-1], (1, 0), value=1)
    return PairBatch(source[:, :4], inside[:, :4], inputs, targets, places <= lengths)


@pytest.mark.parametrize(
    ("name", "multiplications"),
    [
        # Two grids of 20 blocks have 4 x 4 gates of 3 x 4 weights, which source and target share, and one also a depth.
        # A weight is used in the forward pass and in both gradients.
        ("reencoder", 3 * 20 * 12 * (16 + 16 + 4)),
    ],
)
def test_flops_are_counted_completely(name: str, multiplications: int) -> None:
    model = MAKE[name]()
    spec = PairSpec(SOURCE_SIZE, TARGET_SIZE, 4, 5)
    run_once(model, *spec.example(1))
    assert run_once(model, *spec.example(1)).flops == 2 * multiplications
