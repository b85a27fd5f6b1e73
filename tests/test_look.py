"""The look command: gradients against finite differences and formulas; cells, gates and labels on known patterns."""

import csv
import html
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from tests.conftest import look_at
from torch import Tensor, nn

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import CoupledLSTM, LayerNormLSTM, NonLSTM, PeepholeLSTM
from gridlstm.data.corpus import Vocabulary
from gridlstm.data.spec import Spec
from gridlstm.engine.wavefront import wavefront
from gridlstm.errors import UserError
from gridlstm.look import cells, gates
from gridlstm.look.activation import panels, responses
from gridlstm.look.cells import record
from gridlstm.look.colouring import page, picture, telling
from gridlstm.look.flow import curves_of_new, curves_of_trained
from gridlstm.look.gates import saturation
from gridlstm.look.gradients import through_depth, through_time
from gridlstm.look.labels import characters, labels
from gridlstm.look.load import load, new, sequences
from gridlstm.look.ranking import Ranked, correlations, rank, survival
from gridlstm.look.watch import watching
from gridlstm.models.base import SequenceModel
from gridlstm.models.clockwork_rnn import ClockworkRNN
from gridlstm.models.grid1d import Grid1d
from gridlstm.models.grid2d import Grid2d
from gridlstm.models.mdlstm2d import MDLSTM2d
from gridlstm.models.recurrent import GRU, RNN
from gridlstm.models.recurrent_highway import RecurrentHighway, RecurrentHighwayState
from gridlstm.models.stacked_lstm import StackedLSTM
from gridlstm.models.transformer import Transformer
from gridlstm.regularizers import Zoneout
from gridlstm.training.job import run_job

SYMBOLS, D, T = 5, 3, 4
STEP = 1e-5
# Central differences in float64 have a truncation error of about STEP^2 and a rounding error of 1e-16 / STEP.
CLOSE = {"rtol": 1e-6, "atol": 1e-9}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def head_of(model: nn.Module) -> nn.Linear:
    return nn.Linear(model.output_size, SYMBOLS).double()


def sample() -> tuple[Tensor, Tensor]:
    return torch.randint(SYMBOLS, (1, T)), torch.randint(SYMBOLS, (1,))


def slope(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Compute the gradient of a loss at a point by central differences."""
    with torch.no_grad():
        steps = torch.eye(at.numel(), dtype=at.dtype).view(-1, *at.shape) * STEP
        return torch.stack([(loss(at + step) - loss(at - step)) / (2 * STEP) for step in steps])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grid2d(SYMBOLS, D, 2),
        lambda: Grid2d(SYMBOLS, D, 2, priority="depth", tied=False),
        lambda: StackedLSTM(SYMBOLS, D, 2),
        lambda: GRU(SYMBOLS, D, 2),
        lambda: RecurrentHighway(SYMBOLS, D, 2),
        lambda: ClockworkRNN(SYMBOLS, D, 2, periods=[1, 2]),
        lambda: MDLSTM2d(SYMBOLS, D, 2),
    ],
)
def test_through_time_is_the_slope_with_respect_to_each_state(make: Callable[[], SequenceModel]) -> None:
    model = make().double()
    head, (x, target) = head_of(model), sample()
    found = through_time(model, head, x, target)
    assert len(found.h) == T
    for i in range(T):
        with torch.no_grad():
            state = model(x[:, :i])[1] if i else model.initial_state(1)

        def loss(part: Tensor, name: str, i: int = i, state=state) -> Tensor:  # type: ignore[no-untyped-def]
            y = model(x[:, i:], state._replace(**{name: part}))[0]
            return F.cross_entropy(head(y[:, -1]), target)

        h = "s" if isinstance(model, RecurrentHighway) else "h"
        expected = slope(lambda part, f=loss, n=h: f(part, n), getattr(state, h)).norm()
        torch.testing.assert_close(found.h[i], expected, **CLOSE)
        if found.m is not None:
            torch.testing.assert_close(found.m[i], slope(lambda m, f=loss: f(m, "m"), state.m).norm(), **CLOSE)
    assert (found.m is None) == isinstance(model, GRU | RecurrentHighway | ClockworkRNN)


def test_through_time_of_a_linear_network_matches_closed_form() -> None:
    """For h_t = W x_t + V h_{t-1}, dL_T/dh_i = (V^T)^(T-i) A^T (softmax - target). V halves the norm in each step."""
    model = StackedLSTM(SYMBOLS, D, 1, time=NonLSTM("identity")).double()
    head, (x, target) = head_of(model), sample()
    rotation = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))[0]
    with torch.no_grad():
        model.layers.weight[0, :, D:] = 0.5 * rotation
    W, V = (part.numpy() for part in model.layers.weight.detach()[0].split(D, dim=1))
    h = np.zeros(D)
    for symbol in x[0]:
        h = W @ model.input.weight.detach().numpy()[symbol] + V @ h
    A = head.weight.detach().numpy()
    logits = A @ h + head.bias.detach().numpy()
    error = np.exp(logits) / np.exp(logits).sum() - np.eye(SYMBOLS)[int(target)]
    top = np.linalg.norm(A.T @ error)
    found = through_time(model, head, x, target)
    assert found.m is None
    np.testing.assert_allclose(found.h, [top * 0.5 ** (T - i) for i in range(T)], rtol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_through_depth_is_the_slope_between_layers(tied: bool) -> None:
    """The reference changes a layer's vector between two pieces of the fast sweep, one below and one above it."""
    L = 3
    model = Grid2d(SYMBOLS, D, L, tied=tied).double()
    head, (x, target) = head_of(model), sample()
    found = through_depth(model, head, x, target)
    assert len(found.h) == L
    with torch.no_grad():
        state = model(x[:, :-1])[1]
        bottom = model.input(x[:, -1:]).transpose(0, 1).split(D, dim=-1)
    packed = [t.packed(model.grid.copies) for t in model.grid.transforms.values()]

    def layers(entering: HiddenMemory, begin: int, end: int) -> HiddenMemory:
        weights = packed if tied else [w._replace(weight=w.weight[begin:end], bias=w.bias[begin:end]) for w in packed]
        sides = [HiddenMemory(*(side[begin:end].contiguous() for side in state)), entering]
        return wavefront(model.grid.block, weights, sides, (1, end - begin), None)[1]

    for layer in range(1, L):
        with torch.no_grad():
            passed = layers(HiddenMemory(*bottom), 0, layer)

        def loss(part: Tensor, name: str, layer: int = layer, passed: HiddenMemory = passed) -> Tensor:
            top = layers(passed._replace(**{name: part}), layer, L)
            return F.cross_entropy(head(torch.cat(top, dim=-1)[0]), target)

        for name in ("h", "m"):
            expected = slope(lambda part, f=loss, n=name: f(part, n), getattr(passed, name)).norm()
            torch.testing.assert_close(getattr(found, name)[layer - 1], expected, **CLOSE)


def test_through_depth_of_a_plain_network_is_the_chain_rule() -> None:
    """For h_l = tanh(W h_{l-1} + b + V h^- + c), dL/dh_{l-1} = W^T (1 - h_l^2) dL/dh_l."""
    L = 4
    model = RNN(SYMBOLS, D, L).double()
    head, (x, target) = head_of(model), sample()
    before = model(x[:, :-1])[1].h[:, 0].detach().numpy()
    y = model.input(x[:, -1:]).detach().numpy()[0, 0]
    hidden, inward = [], []
    for (W, V, b, c), h in zip(model.layers.all_weights, before, strict=True):
        y = np.tanh(W.detach().numpy() @ y + b.detach().numpy() + V.detach().numpy() @ h + c.detach().numpy())
        hidden.append(y)
        inward.append(W.detach().numpy())
    top = torch.from_numpy(y).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(head(top[None]), target), top)
    norms, g = [], gradient.numpy()
    for W, h in zip(inward[::-1], hidden[::-1], strict=True):
        norms.append(np.linalg.norm(g))
        g = W.T @ ((1 - h**2) * g)
    np.testing.assert_allclose(through_depth(model, head, x, target).h, norms[::-1], rtol=1e-10)


def test_through_depth_of_a_recurrent_highway_network_is_the_slope_between_its_layers() -> None:
    """The reference changes a layer's vector between a network of the layers up to it and one of the layers above."""
    L = 3
    model = RecurrentHighway(SYMBOLS, D, L, transform_bias=0.0).double()
    head, (x, target) = head_of(model), sample()
    found = through_depth(model, head, x, target)
    assert len(found.h) == L
    assert found.m is None
    with torch.no_grad():
        before = model(x[:, :-1])[1]

    def part(begin: int, end: int) -> RecurrentHighway:
        layers = RecurrentHighway(SYMBOLS, D, end - begin).double()
        own = {"weight": model.weight[begin:end], "bias": model.bias[begin:end]}
        layers.load_state_dict({**model.state_dict(), **own})
        return layers

    for layer in range(1, L):
        upper = part(layer, L)
        torch.nn.init.zeros_(upper.from_below.weight)

        def loss(s: Tensor, upper: RecurrentHighway = upper) -> Tensor:
            return F.cross_entropy(head(upper(x[:, -1:], RecurrentHighwayState(s))[0][:, -1]), target)

        with torch.no_grad():
            passed = part(0, layer)(x[:, -1:], before)[1].s
        torch.testing.assert_close(found.h[layer - 1], slope(loss, passed).norm(), **CLOSE)
    with torch.no_grad():
        top = model(x)[0][:, -1]
    torch.testing.assert_close(found.h[-1], slope(lambda y: F.cross_entropy(head(y), target), top).norm(), **CLOSE)


def test_rows_are_averaged_and_do_not_mix() -> None:
    model = Grid2d(SYMBOLS, D, 2).double()
    head, x, target = head_of(model), torch.randint(SYMBOLS, (3, T)), torch.randint(SYMBOLS, (3,))
    alone = [through_time(model, head, x[i : i + 1], target[i : i + 1]).h for i in range(3)]
    torch.testing.assert_close(through_time(model, head, x, target).h, torch.stack(alone).mean(0))
    alone = [through_depth(model, head, x[i : i + 1], target[i : i + 1]).h for i in range(3)]
    torch.testing.assert_close(through_depth(model, head, x, target).h, torch.stack(alone).mean(0))


def test_new_networks_have_the_requested_steps_and_layers() -> None:
    curves = curves_of_new(["grid2d", "rnn", "highway"], 6, 5, ["task.network.hidden_size=4"])
    assert [(c.model, c.along, len(c.norms.h)) for c in curves] == [
        ("grid2d", "time", 6),
        ("grid2d", "depth", 5),
        ("rnn", "time", 6),
        ("rnn", "depth", 5),
        ("highway", "depth", 5),
    ]
    assert [c.norms.m is None for c in curves] == [False, False, True, True, True]
    assert all((c.norms.h > 0).all() for c in curves)


def missing_curves(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the curves that the log reports as missing."""
    return [line.getMessage().partition(":")[0] for line in caplog.records if line.name == "gridlstm.look.flow"]


def test_missing_curves_are_logged_and_the_rest_kept(caplog: pytest.LogCaptureFixture) -> None:
    options = ["task.network.hidden_size=8"]
    curves = curves_of_new(["clockwork_rnn", "transformer", "recurrent_highway"], 3, 4, options)
    assert [(c.model, c.along, len(c.norms.h)) for c in curves] == [
        ("clockwork_rnn", "time", 3),
        ("recurrent_highway", "time", 3),
        ("recurrent_highway", "depth", 4),
    ]
    assert missing_curves(caplog) == [
        "clockwork_rnn has no curve through depth",
        "transformer has no curve through time",
        "transformer has no curve through depth",
    ]
    with pytest.raises(UserError, match="none of these models exposes gradients: transformer"):
        curves_of_new(["transformer"], 3, 4, options)


def test_network_without_visible_layers_keeps_its_time_curve(
    tmp_path: Path, job_in: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    run_job(job_in(tmp_path, task="text", model="min_gru"))
    curves = curves_of_trained([load(tmp_path / "run" / "checkpoints" / "last.ckpt", [])], 5)
    assert [(c.stage, c.along, len(c.norms.h)) for c in curves] == [("start", "time", 5), ("trained", "time", 5)]
    assert missing_curves(caplog) == ["min_gru has no curve through depth"], (
        "it must be reported once, not for each stage"
    )


@pytest.mark.parametrize("name", ["grid2d_relu_depth", "grid2d_gru"])
def test_depth_without_memory_has_gradients_of_h_alone(name: str) -> None:
    curves = curves_of_new([name], 3, 4, ["task.network.hidden_size=4", "model.memory_at_ends=false"])
    (depth,) = (curve for curve in curves if curve.along == "depth")
    assert (depth.norms.h > 0).all()
    assert depth.norms.m is None


def test_unsupported_models_and_cells_raise() -> None:
    with pytest.raises(UserError, match="whose state consists of hidden"):
        through_time(Transformer(SYMBOLS, 4, 1, num_heads=1), nn.Linear(4, SYMBOLS), *sample())
    with pytest.raises(UserError, match="cells of GRU cannot be recorded"), watching(GRU(SYMBOLS, D, 1)):
        pass
    with pytest.raises(UserError, match="model=grid5d does not exist"):
        new("grid5d", Spec(SYMBOLS, SYMBOLS, T), [])
    with pytest.raises(UserError, match=r"model=grid3d does not read sequences of symbols\. Give networks that do"):
        new("grid3d", Spec(SYMBOLS, SYMBOLS, T), [])
    with pytest.raises(UserError, match=r"model=reencoder does not read sequences of symbols"):
        new("reencoder", Spec(SYMBOLS, SYMBOLS, T), [])
    with pytest.raises(UserError, match="counted in PeepholeLSTM cells"):
        saturation("time", PeepholeLSTM(), torch.zeros(1, 1, 1, 4))


def test_recording_zoneout_memories_is_refused() -> None:
    model = Grid2d(SYMBOLS, D, 2, time_regularizers=[Zoneout(m=0.5)]).eval()
    with pytest.raises(UserError, match="Zoneout mixes a cell's h and m with earlier ones"):
        record(model, torch.randint(SYMBOLS, (1, 3)), {"time": [], "depth": ["m"]})
    seen = record(model, torch.randint(SYMBOLS, (1, 3)), {"time": ["z"], "depth": []})
    assert seen["time"]["z"].shape == (3, 2, 1, 4 * D)


def test_more_values_than_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = StackedLSTM(SYMBOLS, D, 2), torch.randint(SYMBOLS, (1, 10))
    monkeypatch.setattr(cells, "MOST", 10 * 2 * D)
    assert record(model, x, {"time": ["m"]})["time"]["m"].shape == (10, 2, 1, D)
    monkeypatch.setattr(cells, "MOST", 10 * 2 * D - 1)
    with pytest.raises(UserError, match=r"10 symbols give 60 values of m along time\. .* Give a smaller symbols="):
        record(model, x, {"time": ["m"]})


@pytest.mark.parametrize("model", [Grid2d(SYMBOLS, D, 2), StackedLSTM(SYMBOLS, D, 2), Grid1d(SYMBOLS, D, 2)])
def test_watching_changes_no_output_and_restores_the_model(model: nn.Module) -> None:
    x = torch.randn(2, SYMBOLS) if isinstance(model, Grid1d) else torch.randint(SYMBOLS, (2, T))
    parts = {name: getattr(model, name) for name in ("cell",) if hasattr(model, name)}
    block = model.grid.block if hasattr(model, "grid") else None
    expected = model(x)
    with watching(model):
        torch.testing.assert_close(model(x), expected)
    assert {name: getattr(model, name) for name in parts} == parts
    assert block is None or (model.grid.block == block and model.grid.sweep == "auto")


@pytest.mark.parametrize("make", [Grid2d, StackedLSTM])
def test_recorded_memories_are_those_of_the_state_step_by_step(make: type[SequenceModel]) -> None:
    model = make(SYMBOLS, D, 2)
    x = torch.randint(SYMBOLS, (1, 12))
    seen = record(model, x, {"time": ["h", "m"], "depth": ["h", "m"]})
    state = None
    for t in range(12):
        y, state = model(x[:, t : t + 1], state)
        torch.testing.assert_close(seen["time"]["m"][t], state.m)
        torch.testing.assert_close(seen["time"]["h"][t], state.h)
        if "depth" in seen:
            torch.testing.assert_close(torch.cat([seen["depth"][n][t, -1] for n in ("h", "m")], dim=-1), y[:, 0])


@pytest.mark.parametrize("normalized", [False, True])
def test_gate_shares_are_those_of_the_equations(normalized: bool) -> None:
    cell = LayerNormLSTM(gain=4.0, forget_bias=0.5) if normalized else LSTM(gain=4.0, forget_bias=0.5)
    model = StackedLSTM(SYMBOLS, D, 1, time=cell)
    x = torch.randint(SYMBOLS, (2, 40))
    if normalized:
        torch.nn.init.normal_(model.layers.get_parameter("vectors.gain"), 2.0)
    found = saturation("time", model.cell, record(model, x, {"time": ["z"]})["time"]["z"])
    W = model.layers.weight.detach().numpy()[0]
    gates, state = [], model.initial_state(2)
    for t in range(40):
        H = np.concatenate([model.input.weight.detach().numpy()[x[:, t]], state.h[0].detach().numpy()], axis=1)
        z = (H @ W.T).reshape(2, 4, D)
        if normalized:
            z = (z - z.mean(2, keepdims=True)) / np.sqrt(z.var(2, keepdims=True) + 1e-5)
            z *= model.layers.get_parameter("vectors.gain").detach().numpy()[0].reshape(5, D)[:4]
        z[:, 1] += 0.5
        gates.append(1 / (1 + np.exp(-z[:, :3])))
        state = model(x[:, t : t + 1], state)[1]
    activations = np.concatenate(gates)  # (80, 3, D)
    for k, each in enumerate(found):
        assert each.gate == "ufo"[k]
        np.testing.assert_allclose(each.left[0], (activations[:, k] < 0.1).mean(0))
        np.testing.assert_allclose(each.right[0], (activations[:, k] > 0.9).mean(0))
    assert 0 < found[0].left.mean() < 1
    u, f, _ = saturation("time", CoupledLSTM(), torch.randn(6, 2, 3, 3 * D) * 3)
    torch.testing.assert_close((u.left, u.right), (f.right, f.left))


def test_cells_are_chosen_on_one_half_and_judged_on_the_other() -> None:
    random = np.random.default_rng(1)
    label = (random.random(2000) < 0.3).astype(float)
    memory = random.normal(size=(2000, 2, 30))
    memory[:, 1, 7] = 3 - 2 * label + 0.5 * memory[:, 1, 7]
    memory[:1000, 0, 4] = label[:1000]  # follows the label only in the first half
    found = rank({"time": memory}, {"planted": label, "never": np.zeros(2000)})
    assert {each.label for each in found} == {"planted"}
    first, second = found[:2]
    assert (first.layer, first.unit, first.chosen) == (0, 4, pytest.approx(1))
    assert abs(first.held_out) < 0.15  # 5 standard errors of 1000 independent pairs
    assert (second.layer, second.unit) == (1, 7)
    expected = np.corrcoef(memory[1000:, 1, 7], label[1000:])[0, 1]
    assert second.held_out == pytest.approx(expected)
    assert expected < -0.8
    assert correlations(np.ones((9, 1)), random.normal(size=(9, 1))).item() == 0


def test_survival_correlates_each_unit_with_its_input() -> None:
    entering = np.random.default_rng(1).normal(size=(4000, 3))
    other = np.random.default_rng(2).normal(size=(4000, 3))
    r = survival(entering, np.stack([5 - 2 * entering, entering + other, other], axis=1))
    np.testing.assert_allclose(r[0], -1)
    np.testing.assert_allclose(r[1], 0.5**0.5, atol=0.05)  # the standard error, 1 / sqrt(4000), is 0.016
    np.testing.assert_allclose(r[2], 0, atol=0.08)


def test_labels_mark_matching_text() -> None:
    text = 'See http://a.org/x [[A b]]\n"Hi" &lt;!-- no\nte --&gt; {{c}} &lt;ref&gt; B7'
    marks = labels(text)

    def marked(name: str) -> list[str]:
        runs = re.finditer("1+", "".join(str(int(v)) for v in marks[name]))
        return [text[run.start() : run.end()] for run in runs]

    assert marked("URL") == ["http://a.org/x"]
    for link in ('"http://a.org/x?y=1"', "(http://a.org/x?y=1).", "&quot;http://a.org/x?y=1&quot;, www"):
        label = labels(link)["URL"].astype(bool)
        assert "".join(c for c, inside in zip(link, label, strict=True) if inside) == "http://a.org/x?y=1"
    assert marked("quotes") == ['"Hi"']
    assert marked("comment") == ["&lt;!-- no\nte --&gt;"]
    assert marked("markup") == ["[[A b]]", "{{c}}", "&lt;ref&gt;"]
    assert marked("digit") == ["7"]
    assert marked("upper case") == ["S", "A", "H", "B"]
    assert marks["position in line"][[0, 5, text.index("\n"), text.index("\n") + 1]].tolist() == [1, 6, 0, 1]


def test_multibyte_characters_are_placed_at_their_last_byte() -> None:
    everything = Vocabulary("byte", tuple(range(256)))
    text, places = characters(everything, list("aé€b".encode()))
    assert text == "aé€b"
    assert places.tolist() == [0, 2, 5, 6]
    text, places = characters(everything, list(b"\x80a\xe2\x82b"))
    assert text == "\ufffda\ufffdb"
    assert places.tolist() == [0, 1, 3, 4]
    text, places = characters(everything, list(b"\xe2\x82\xe2\x82\xac"))
    assert text == "\ufffd€"
    assert places.tolist() == [1, 4], "an incomplete character must end before the next one begins"
    assert characters(Vocabulary("char", (97, 8364)), [1, 0])[0] == "€a"


def test_the_page_keeps_the_direction_of_its_text() -> None:
    """The page replaces marks that would change the direction of the text after them."""
    text = "ab\u202ecd\u2067" * 20
    label = np.arange(len(text)) % 2.0
    shown = page(text, {"time": label[:, None, None]}, {"odd": label}, [Ranked("odd", "time", 0, 0, 1.0, 1.0)])
    (body,) = re.findall(r"<pre>\n(.*?)</pre>", shown, re.DOTALL)
    assert re.sub(r"</?(span|u)[^>]*>", "", body) == "ab\ufffdcd\ufffd" * 10


def test_page_colours_the_text_and_loads_nothing_external() -> None:
    text = "<a> & http://x.org " * 20
    label = labels(text)["URL"]
    memory = label[:, None, None] * 2 - 1
    shown = page(text, {"time": memory}, {"URL": label}, [Ranked("URL", "time", 0, 0, 1.0, 1.0)])
    (body,) = re.findall(r"<pre>\n(.*?)</pre>", shown, re.DOTALL)
    assert html.unescape(re.sub(r"</?(span|u)[^>]*>", "", body)) == text[len(text) // 2 :]
    assert re.findall(r'<span class="p\d+"><u>(.*?)</u></span>', body) == ["http://x.org"] * 10
    assert re.findall(r'<span class="n\d+">(.*?)</span>', body)[0] == "&lt;a&gt; &amp; "
    assert not re.findall(r"<(?:script|link|img|iframe)|url\(|@import|href=|src=", shown)


def test_page_keeps_line_ends_and_replaces_control_characters() -> None:
    text = "before: \na\0\x1b\x9f\r\tb"
    odd = np.arange(len(text)) % 2.0
    shown = page(text, {"time": np.ones((len(text), 1, 1))}, {"odd": odd}, [Ranked("odd", "time", 0, 0, 0.5, 0.5)])
    (body,) = re.findall(r"<pre>\n(.*?)</pre>", shown, re.DOTALL)  # a browser ignores the first line end
    assert re.sub(r"</?u>", "", body) == "\na\ufffd\ufffd\ufffd\ufffd\tb"
    assert "unicode-bidi: bidi-override" in shown, "otherwise right-to-left text would be reordered"


def test_excerpt_can_reach_the_end_of_the_text() -> None:
    label = np.zeros(40_000)
    label[-300:] = 1
    where = telling(label, 3000)
    assert (where.start, where.stop) == (37_000, 40_000)
    label[-300:], label[20_100] = 0, 1
    assert telling(label, 3000).start == 20_000
    assert telling(label[:1000], 3000) == slice(500, 3500)


def test_activation_is_the_equation_of_one_unit() -> None:
    w = np.array([1.0, -2.0, 0.5, 3.0])
    h, m = np.linspace(-2, 2, 5), np.array([-1.0, 0.0, 2.0])

    def sigma(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    new_m = sigma(w[1] * h) * m[:, None] + sigma(w[0] * h) * np.tanh(w[3] * h)
    expected = np.tanh(sigma(w[2] * h) * new_m)
    found = responses(*map(torch.from_numpy, (w, m, h)), LSTM(forget_bias=0))
    np.testing.assert_allclose(found, expected)
    assert len(panels(None, seed=1)) == 4
    with pytest.raises(UserError, match="must be four numbers"):
        panels([1.0], seed=1)


def test_activation_table_keeps_weights_at_full_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    look_at({"what": "activation", "weights": "0.1234567,-2,3,4", "out": "~/there"})
    found = [float(row["m"]) for row in rows(tmp_path / "there" / "activation.csv")]
    assert sorted({*found}) == [-2, -1, 0, 1, 2]
    look_at({"what": "activation", "weights": "0.1234567,-2,3,4", "memory": "5", "out": "~/there"})
    first = rows(tmp_path / "there" / "activation.csv")[0]
    assert list(first) == ["w_u", "w_f", "w_o", "w_c", "m", "h", "h'"]
    found = [float(first[name]) for name in ("w_u", "w_f", "w_o", "w_c", "m")]
    assert found == pytest.approx([0.1234567, -2, 3, 4, 5], rel=1e-6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, job_in: Callable[..., DictConfig]) -> Path:
    root = tmp_path_factory.mktemp("trained")
    run_job(job_in(root, task="text"))
    return root / "run" / "checkpoints" / "last.ckpt"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_gradients_of_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    paths = look_at({"what": "gradients", "ckpt": str(checkpoint), "steps": "20", "out": str(tmp_path)})
    assert [path.name for path in paths] == ["gradients.csv", "gradients.png"]
    table = rows(tmp_path / "gradients.csv")
    assert {(row["stage"], row["along"]) for row in table} == {
        (stage, along) for stage in ("start", "trained") for along in ("time", "depth")
    }
    norms = {
        stage: [row["norm of dL/dh"] for row in table if (row["stage"], row["along"]) == (stage, "time")]
        for stage in ("start", "trained")
    }
    assert len(norms["trained"]) == 20
    assert norms["start"] != norms["trained"]
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")


def test_gradients_of_a_trained_network_without_time(tmp_path: Path, job_in: Callable[..., DictConfig]) -> None:
    run_job(job_in(tmp_path, "task.bits=6", task="parity", model="highway"))
    look_at({"what": "gradients", "ckpt": str(tmp_path / "run" / "checkpoints" / "last.ckpt")})
    table = rows(tmp_path / "run" / "look" / "gradients.csv")
    assert [(row["stage"], row["along"], row["back"]) for row in table] == [
        (stage, "depth", back) for stage in ("start", "trained") for back in "10"
    ]
    assert all(float(row["norm of dL/dh"]) > 0 and not row["norm of dL/dm"] for row in table)


def test_gates_of_a_trained_network_without_time(tmp_path: Path, job_in: Callable[..., DictConfig]) -> None:
    run_job(job_in(tmp_path, "task.bits=6", task="parity", model="grid1d"))
    look_at({"what": "gates", "ckpt": str(tmp_path / "run" / "checkpoints" / "last.ckpt")})
    table = rows(tmp_path / "run" / "look" / "gates.csv")
    assert [(row["dimension"], row["layer"], row["gate"]) for row in table] == [
        ("depth", layer, gate) for gate in "ufo" for layer in "12"
    ]
    with pytest.raises(UserError, match=r"data is P[\s\S]* \(task=text, enwik8, text8, penn_treebank or hub\)"):
        look_at({"what": "cells", "ckpt": str(tmp_path / "run" / "checkpoints" / "last.ckpt")})


def test_gates_table_omits_depth_without_gates(tmp_path: Path, job_in: Callable[..., DictConfig]) -> None:
    run_job(job_in(tmp_path, task="text", model="grid2d_relu_depth"))
    look_at({"what": "gates", "ckpt": str(tmp_path / "run" / "checkpoints" / "last.ckpt"), "symbols": "100"})
    table = rows(tmp_path / "run" / "look" / "gates.csv")
    assert [(row["dimension"], row["layer"], row["gate"]) for row in table] == [
        ("time", layer, gate) for gate in "ufo" for layer in "12"
    ]


def test_gate_shares_cover_all_batches_and_skip_padding(
    tmp_path: Path, job_in: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("task.digits=1", "task.data.min_digits=1", "task.data.test_digits=[1,3]", "task.data.batch_size=6")
    run_job(job_in(tmp_path, *options, task="addition"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    for name in ("LEFT", "RIGHT"):
        monkeypatch.setattr(gates, name, 0.5)  # gates of a new network pass these limits
    look_at({"what": "gates", "ckpt": str(checkpoint)})
    table = rows(tmp_path / "run" / "look" / "gates.csv")
    run = load(checkpoint, [])
    batches = list(sequences(run.data, 10_000))
    assert [len(x) for x, _ in batches] == [6, 6, 6, 2]
    assert len(list(sequences(run.data, 1))) == 1
    alone = [x[None, row] for x, inside in batches for x, row in zip(x, inside, strict=True)]
    assert {each.shape[1] for each in alone} == {3 * 1 + 4, 3 * 3 + 4}
    for name, cell in zip(("time", "depth"), run.task.model.grid.block.cells, strict=True):
        z = [record(run.task.model, x, {"time": ["z"], "depth": ["z"]})[name]["z"] for x in alone]
        for each in saturation(name, cell, torch.cat(z)):
            own = [row for row in table if (row["dimension"], row["gate"]) == (name, each.gate)]
            found = [float(row["share < 0.5"]) for row in own]
            assert found == pytest.approx(each.left.mean(1).tolist())
    assert 0 < float(table[0]["share < 0.5"]) < 1


def test_gradients_use_only_the_longest_sequences(tmp_path: Path, job_in: Callable[..., DictConfig]) -> None:
    """Only the longest sequences have an answer at the last step."""
    options = ("task.digits=1", "task.data.min_digits=1", "task.data.test_digits=[1,3]", "task.data.num_test=6")
    run_job(job_in(tmp_path, *options, task="addition"))
    run = load(tmp_path / "run" / "checkpoints" / "last.ckpt", [])
    batch = run.data.on_after_batch_transfer(next(iter(run.data.test_dataloader())), 0)
    longest = batch.answer_mask.sum(1) == batch.answer_mask.sum(1).max()
    assert 0 < longest.sum() < len(longest)
    last = int(batch.answer_mask.any(0).nonzero().max())
    expected = through_time(
        run.task.double().model, run.task.head, batch.inputs[longest, : last + 1], batch.targets[longest, last]
    )
    (curve,) = (c for c in curves_of_trained([run], None) if (c.stage, c.along) == ("trained", "time"))
    torch.testing.assert_close(curve.norms.h, expected.h)


def test_networks_with_the_same_name_are_numbered(checkpoint: Path, tmp_path: Path) -> None:
    best = checkpoint.with_name("best.ckpt")
    look_at({"what": "gradients", "ckpt": f"{best},{checkpoint}", "steps": "3", "out": str(tmp_path)})
    assert {row["model"] for row in rows(tmp_path / "gradients.csv")} == {"grid2d (1)", "grid2d (2)"}


def test_non_finite_weights_are_refused(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name].view(-1)[0] = torch.nan
    broken = checkpoint.with_name("broken.ckpt")
    torch.save(content, broken)
    for what in ("gradients", "cells", "gates"):
        with pytest.raises(UserError, match=rf"broken\.ckpt are not finite, first in {name}\. Give best\.ckpt"):
            look_at({"what": what, "ckpt": str(broken)})


def test_look_uses_all_of_a_short_text(checkpoint: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("".join(f"{n} times {n} is {n * n}; " for n in range(60)))
    length = len(short.read_text())
    most = length - round(0.95 * length) - 1
    options = {"ckpt": str(checkpoint), "task.path": str(short), "out": str(tmp_path)}
    look_at({"what": "gradients", **options})
    table = rows(tmp_path / "gradients.csv")
    assert len([row for row in table if (row["stage"], row["along"]) == ("start", "time")]) == most < 100
    with pytest.raises(UserError, match=f"has {most} symbols for correlations, which need at least 100"):
        look_at({"what": "cells", **options})


def test_look_removes_files_of_another_network(
    checkpoint: Path, tmp_path: Path, job_in: Callable[..., DictConfig]
) -> None:
    out = tmp_path / "look"
    look_at({"what": "cells", "ckpt": str(checkpoint), "symbols": "200", "out": str(out)})
    assert len(list(out.glob("survival.*"))) == 2
    run_job(job_in(tmp_path, task="text", model="stacked_lstm"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    paths = look_at({"what": "cells", "ckpt": str(last), "symbols": "200", "out": str(out)})
    assert sorted(out.iterdir()) == sorted(paths)


def test_look_writes_cells_and_gates_into_the_run_directory(checkpoint: Path) -> None:
    beside = checkpoint.parents[1] / "look"
    paths = look_at({"what": "cells", "ckpt": str(checkpoint), "symbols": "300"})
    names = ["cells.csv", "cells.png", "cells.html", "memories.npz", "survival.csv", "survival.png"]
    assert paths == [beside / name for name in names]
    assert {row["label"] for row in rows(beside / "cells.csv")} == {
        "digit",
        "position in line",
    }  # "7 times 7 is 49; " …
    with np.load(beside / "memories.npz") as archive:
        assert {name: archive[name].shape for name in archive} == {
            "text": (300,),
            "time": (300, 2, 8),
            "depth": (300, 2, 8),
        }
        assert "times" in "".join(map(chr, archive["text"]))
    assert len(rows(beside / "survival.csv")) == 4
    look_at({"what": "cells", "ckpt": str(checkpoint)})
    with np.load(beside / "memories.npz") as archive:
        assert 300 < len(archive["text"]) < 40_000, "without symbols=, all of a short test text is used"
    look_at({"what": "gates", "ckpt": str(checkpoint), "symbols": "200"})
    assert len(rows(beside / "gates.csv")) == 2 * 2 * 3
    assert len(rows(beside / "gate_units.csv")) == 2 * 2 * 3 * 8


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"what": "gardens"}, "what must be"),
        ({"what": "cells"}, "needs one checkpoint"),
        ({"what": "gates", "ckpt": "a,b"}, "needs one checkpoint"),
        ({"what": "gradients"}, "ckpt=… or model="),
        ({"what": "gradients", "model": "grid2d", "steps": "0"}, "steps must be a whole number"),
        ({"what": "gradients", "ckpt": "a,b"}, "out=DIRECTORY"),
        ({"what": "gradients", "ckpt": "CKPT", "layers": "5"}, "layers is fixed by the checkpoint"),
        ({"what": "gradients", "ckpt": "CKPT", "steps": "100000"}, "test split has .* but steps=100000 needs 100,001"),
        ({"what": "gates", "ckpt": "CKPT", "modle": "3"}, "modle"),
        ({"what": "gates", "ckpt": "CKPT", "symbols": "100000"}, "symbols must be at most .*, got 100000"),
        ({"what": "activation", "weights": "1,b"}, "weights must be a number, got 'b'"),
        ({"what": "activation", "seeds": "1"}, "what=activation has no option seeds"),
        ({"what": "activation", "seed": "-1"}, "seed must be a whole number of at least 0, got"),
        ({"what": "activation", "weights": "1,2,3,4", "seed": "2"}, "Remove one of them"),
        ({"what": "activation", "steps": "9"}, "steps has no effect on what=activation"),
        ({"what": "gradients", "model": "grid2d", "steps": "9" * 11}, "steps must be .* at most 1,000,000"),
        ({"what": "gradients", "model": "grid2d", "model.num_layers": "5"}, "Give layers="),
        ({"what": "gradients", "model": "grid2d", "optimizer.lr": "7"}, "optimizer.lr has no effect on a new network"),
        ({"what": "gradients", "model": "grid2d", "task.length": "7"}, "task.length has no effect on a new network"),
        ({"what": "gradients", "model": "grid2d", "debug": "smoke"}, "debug has no effect on a new network"),
        ({"what": "gradients", "model": "grid2d", "hardware": "cpu"}, "hardware has no effect on a new network"),
        ({"what": "gradients", "model": "grid2d", "data_dir": "d"}, "data_dir has no effect on a new network"),
        ({"what": "gradients", "model": "grid2d", "task.network.num_layers": "5"}, "Give layers="),
        ({"what": "gradients", "model": "grid2d", "seed": "-1"}, "seed must be .* from 0 to 4294967295, got -1"),
        ({"what": "gradients", "model": "grid2d", "seed": "abc"}, "seed must be a whole number .* got 'abc'"),
        ({"what": "gradients", "model": "grid2d", "seed": "5000000000"}, "seed must be a whole .* got 5000000000"),
        ({"what": "gradients", "model": "grid2d", "seed": "1.5"}, "seed must be a whole number .* got 1.5"),
        (
            {"what": "gradients", "model": "grid2d", "model.hidden_size": "1" + "0" * 13},
            "more memory than is available",
        ),
        ({"what": "gates", "ckpt": "CKPT", "out": "CKPT"}, "out=.*last.ckpt is a file. Give a directory"),
        ({"what": "gates", "ckpt": "CKPT", "out": "CKPT/below"}, "out=.*below cannot be written: .*ckpt is a file"),
    ],
)
def test_wrong_options_get_one_sentence(given: dict[str, str], words: str, checkpoint: Path) -> None:
    with pytest.raises(UserError, match=words):
        look_at({key: value.replace("CKPT", str(checkpoint)) for key, value in given.items()})


@pytest.mark.filterwarnings("error")
def test_characters_missing_from_the_font_draw_as_replacements() -> None:
    """There must be no warning for each character, because a binary text would give thousands."""
    text = "plain text\n" * 6 + "a\0\x1b\x9f\u6f22\U0001f600$" * 9
    odd = np.arange(len(text)) % 2.0
    drawn = picture(text, {"time": np.ones((len(text), 1, 1))}, {"odd": odd}, [Ranked("odd", "time", 0, 0, 0.5, 0.5)])
    drawn.canvas.draw()  # type: ignore[no-untyped-call]
    (axes,) = drawn.axes
    assert [found.get_text() for found in axes.texts[-7:]] == ["a", *"\ufffd" * 5, r"\$"]
