"""Greedy and beam search against an exhaustive search over all targets."""

import itertools
import math

import pytest
import torch
from tests.test_translation_models import MAKE, pairs, task_of
from torch import Tensor

from gridlstm.decoding import Hypothesis, Limits, Networks, beam_search, greedy
from gridlstm.errors import UserError
from gridlstm.tasks.translate import Translate

BEGIN, END, NEVER = 1, 2, (0, 1)
CHOICES = (3, 4, 5)
EVERY = Limits(shortest=0.0, longest=0.0, more=3)
NAMES = ["reencoder", "attention_lstm", "encoder_decoder_lstm", "translation_transformer"]


def network(name: str, seed: int = 0) -> Translate:
    torch.manual_seed(seed)
    task = task_of(MAKE[name]().double())
    with torch.no_grad():
        for parameter in task.head.parameters():
            parameter.mul_(3)  # makes the probabilities differ more
    return task.eval()


def log_p(tasks: list[Translate], source: Tensor, target: list[int]) -> float:
    """Return log p(target and end | source), computed for the whole target at once."""
    inputs, mask = torch.tensor([[BEGIN, *target]]), torch.ones(1, len(source), dtype=torch.bool)
    with torch.no_grad():
        p = sum(task(source[None], mask, inputs).softmax(-1) for task in tasks) / len(tasks)
    assert isinstance(p, Tensor)
    return float(p[0].gather(1, torch.tensor([*target, END])[:, None]).log().sum())


def sources() -> list[Tensor]:
    source, mask, _ = pairs()
    return [row[own] for row, own in zip(source, mask, strict=True)]


def search(tasks: list[Translate], **options: object) -> list[list[Hypothesis]]:
    return beam_search(tasks, *pairs()[:2], BEGIN, END, never=NEVER, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("percent", range(0, 201, 4))
def test_the_least_length_is_the_exact_share_of_the_source_rounded_up(percent: int) -> None:
    symbols = range(1, 201)
    mask = torch.arange(201) <= torch.tensor(symbols)[:, None]
    shortest, _ = Limits(shortest=percent / 100).lengths(mask)
    assert shortest.tolist() == [-(-percent * number // 100) for number in symbols]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_wide_beam_equals_exhaustive_search(name: str, members: int, length_penalty: float) -> None:
    tasks = [network(name, seed) for seed in range(members)]
    everything = [list(t) for length in range(4) for t in itertools.product(CHOICES, repeat=length)]
    found = search(tasks, beam=50, best=5, limits=EVERY, length_penalty=length_penalty)
    for source, best in zip(sources(), found, strict=True):
        scored = [Hypothesis(target, log_p(tasks, source, target)) for target in everything]
        scored.sort(key=lambda h: h.score / (len(h.symbols) + 1) ** length_penalty, reverse=True)
        assert [h.symbols for h in best] == [h.symbols for h in scored[:5]]
        assert [h.score for h in best] == pytest.approx([h.score for h in scored[:5]], abs=1e-10)


@pytest.mark.parametrize("length_penalty", [0.0, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_beam_of_one_is_greedy(name: str, length_penalty: float) -> None:
    for seed in range(5):
        tasks = [network(name, seed)]
        expected = greedy(tasks, *pairs()[:2], BEGIN, END, never=NEVER)
        found = search(tasks, beam=1, length_penalty=length_penalty)
        assert [each[0].symbols for each in found] == [h.symbols for h in expected]
        assert [each[0].score for each in found] == pytest.approx([h.score for h in expected], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_whole_targets_whatever_the_batch(name: str) -> None:
    tasks = [network(name, 1), network("reencoder", 2)]
    together = search(tasks, beam=4, best=3)
    for source, best in zip(sources(), together, strict=True):
        mask = torch.ones(1, len(source), dtype=torch.bool)
        (alone,) = beam_search(tasks, source[None], mask, BEGIN, END, beam=4, best=3, never=NEVER)
        assert [h.symbols for h in best] == [h.symbols for h in alone]
        assert [h.score for h in best] == sorted((h.score for h in best), reverse=True)
        for h in best:
            assert h.score == pytest.approx(log_p(tasks, source, h.symbols), abs=1e-10)


def test_a_wider_beam_finds_no_worse_targets_here() -> None:
    tasks = [network("reencoder")]
    scores = [[best[0].score for best in search(tasks, beam=beam)] for beam in (1, 20)]
    assert all(wide >= narrow for narrow, wide in zip(*scores, strict=True))


def test_target_lengths_respect_the_limits_of_their_own_source() -> None:
    tasks = [network("attention_lstm")]
    lengths = [len(source) - 1 for source in sources()]  # the last symbol is the source's end
    with torch.no_grad():
        tasks[0].head.bias[END] += 20
    for found in (search(tasks, beam=3), [[h] for h in greedy(tasks, *pairs()[:2], BEGIN, END, never=NEVER)]):
        assert [len(best[0].symbols) for best in found] == [math.ceil(words / 2) for words in lengths]
    with torch.no_grad():
        tasks[0].head.bias[END] -= 40
    limits = Limits(longest=1.5, more=1)
    for found in (
        search(tasks, beam=3, limits=limits),
        [[h] for h in greedy(tasks, *pairs()[:2], BEGIN, END, limits, NEVER)],
    ):
        assert [len(best[0].symbols) for best in found] == [math.floor(1.5 * words) + 1 for words in lengths]


def test_finished_sentences_are_not_computed_further(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    step = Networks.step

    def counted(self: Networks, symbols: Tensor) -> Tensor:
        rows.append(len(symbols))
        return step(self, symbols)

    monkeypatch.setattr(Networks, "step", counted)
    limits = Limits(shortest=1.0, longest=1.0, more=0)  # targets of 3, 1 and no symbols
    greedy([network("reencoder")], *pairs()[:2], BEGIN, END, limits, NEVER)
    assert rows == [3, 2, 1, 1]
    rows.clear()
    search([network("reencoder")], beam=2, limits=limits)
    assert rows == [3, 4, 2, 2]


def test_invalid_searches_are_refused() -> None:
    task = network("attention_lstm")
    for options, words in (
        ({"beam": 0}, "beam must be a whole number of at least 1, got 0"),
        ({"beam": 2, "best": 3}, "best must be at most beam=2, got 3. Raise beam, or lower best."),
        ({"length_penalty": -1.0}, "length_penalty must be 0 or more and finite, got -1.0"),
    ):
        with pytest.raises(UserError, match=words):
            search([task], **options)
    with pytest.raises(UserError, match="Expected at least one trained task"):
        search([])
    with pytest.raises(UserError, match=r"Expected evaluation mode: call task\.eval"):
        search([network("attention_lstm").train()])
    with torch.no_grad():
        task.head.weight[0, 0] = math.nan
    with pytest.raises(UserError, match="the network's output is not a number"):
        search([task])
