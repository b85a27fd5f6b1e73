"""Pictures of a translation: which source words move which target word.

Shape legend: S source places, T target steps, e length of a projected word.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from gridlstm.data.translation import TranslationData
from gridlstm.data.words import BOS, EOS, PAD, UNK, SentenceVocabulary
from gridlstm.decoding import beam_search
from gridlstm.errors import UserError
from gridlstm.files import write_csv, write_png
from gridlstm.tasks.translate import Translate

log = logging.getLogger(__name__)

LONGEST = 40
"""Largest number of source symbols of a sentence in the picture."""


class Aligned(NamedTuple):
    """A sentence and its translation."""

    source: list[str]
    """Symbols as text, with the end (S)."""
    target: list[str]
    """Symbols as text, with the end (T)."""
    influence: Tensor
    """(T, S) |d log p(target symbol) / d projected source symbol|, each row divided by its sum."""
    attention: Tensor | None
    """(T, S) weights of the network's attention; None if it has none."""


def align(task: Translate, data: TranslationData, sentence: str, beam: int = 5) -> Aligned:
    """Translate a sentence, and return how much each source symbol influences each target symbol.

    The gradient of a symbol's log-probability with respect to a projected source symbol is a vector. Its length says
    how much the source symbol moves the target symbol. It is defined for every network.
    """
    ids = [*data.source_vocabulary.encode(sentence), EOS]
    source = torch.tensor([ids])
    mask = torch.ones_like(source, dtype=torch.bool)
    (best,) = beam_search([task], source, mask, BOS, EOS, beam, never=(PAD, BOS, UNK))[0]
    target = [*best.symbols, EOS]
    inputs = torch.tensor([[BOS, *best.symbols]])
    projected: list[Tensor] = []

    def keep(module: nn.Module, given: Any, words: Tensor) -> Tensor:
        projected.append(words.detach().requires_grad_())
        return projected[-1]

    hook = cast(nn.Module, task.model.source).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            log_p = task(source, mask, inputs)[0].log_softmax(-1)  # (T, V)
            chosen = log_p[torch.arange(len(target)), torch.tensor(target)]
            rows = [torch.autograd.grad(x, projected[0], retain_graph=True)[0][0].norm(dim=-1) for x in chosen]
    finally:
        hook.remove()
    influence = torch.stack(rows)
    with torch.no_grad():
        attention = task.model.alignment(source, mask, inputs)
    return Aligned(
        _texts(data.source_vocabulary, ids),
        _texts(data.target_vocabulary, target),
        influence / influence.sum(1, keepdim=True).clamp_min(torch.finfo(influence.dtype).tiny),
        None if attention is None else attention[0],
    )


def _texts(vocabulary: SentenceVocabulary, ids: Iterable[int]) -> list[str]:
    return ["</s>" if id == EOS else vocabulary.decode([id]) for id in ids]


def look(data: TranslationData, task: Translate, sentences: int, out: Path) -> list[Path]:
    """Write alignment.csv and alignment.png of the first sentences of the test that are short enough for a picture.

    Raises:
        UserError: no sentence is.
    """
    sources = data.sources("test")
    short = [sentence for sentence in sources if len(data.source_vocabulary.encode(sentence)) <= LONGEST]
    if not short:
        raise UserError(
            f"every test sentence of {data.called} has more than {LONGEST} symbols, too many for a picture. Give a "
            f"checkpoint whose test has shorter sentences."
        )
    if short[:sentences] != sources[:sentences]:
        log.info("test sentences of more than %d symbols are left out of the picture", LONGEST)
    found = [align(task, data, sentence) for sentence in short[:sentences]]
    paths = [out / "alignment.csv", out / "alignment.png"]
    write_csv(paths[0], _rows(found))
    write_png(paths[1], _draw(found))
    return paths


def _rows(found: Sequence[Aligned]) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = [
        ("sentence", "target place", "target", "source place", "source", "influence", "attention")
    ]
    for n, one in enumerate(found):
        for t, target in enumerate(one.target):
            for s, source in enumerate(one.source):
                weight = "" if one.attention is None else float(one.attention[t, s])
                rows.append((n, t, target, s, source, float(one.influence[t, s]), weight))
    return rows


def _draw(found: Sequence[Aligned]) -> Any:
    """Draw one sentence per row: the influence, and the attention if the network has it."""
    from matplotlib.figure import Figure

    families, missing = _fonts({char for one in found for text in one.source + one.target for char in text})
    if missing:
        log.info(
            "no installed font has %s: symbols with such characters are labelled by their places in alignment.csv. For "
            "Chinese, install a font such as Noto Sans CJK",
            "".join(sorted(missing)[:5]),
        )

    def shown(texts: Sequence[str]) -> list[str]:
        return [f"#{n}" if missing & set(text) else text.replace("$", r"\$") for n, text in enumerate(texts)]

    panels = 1 if found[0].attention is None else 2
    sizes = [0.28 * len(one.target) + 1.3 for one in found]
    width = 0.28 * max(len(one.source) for one in found) + 1.6
    figure = Figure(figsize=(panels * width, sum(sizes)), layout="constrained")
    every = figure.subplots(len(found), panels, squeeze=False, height_ratios=sizes)
    for row, one in zip(every, found, strict=True):
        maps = [("influence |d log p / d source word|", one.influence), ("attention", one.attention)]
        for axes, (name, values) in zip(row, maps, strict=False):
            assert values is not None, "only networks with attention have a second panel"
            axes.imshow(values.numpy(), cmap="Greys", vmin=0, aspect="auto")
            options = {"fontsize": 7, "fontfamily": families}
            axes.set_xticks(range(len(one.source)), shown(one.source), rotation=60, ha="right", **options)
            axes.set_yticks(range(len(one.target)), shown(one.target), **options)
            axes.set_xlabel("source", fontsize=8)
            axes.set_ylabel("translation", fontsize=8)
            axes.set_title(name, fontsize=8)
    return figure


def _fonts(chars: set[str]) -> tuple[list[str], set[str]]:
    """Return the default font and the others that are needed to draw some characters, and those that no font has."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    missing = {char for char in chars if ord(char) not in get_font(findfont("sans")).get_charmap()}
    families = FontProperties().get_family()
    for entry in sorted(fontManager.ttflist, key=lambda entry: (entry.name, entry.fname)):
        if not missing:
            break
        # Last Resort has a box for every character.
        drawable = set() if entry.name.startswith("Last Resort") else get_font(entry.fname).get_charmap()
        if had := {char for char in missing if ord(char) in drawable}:
            families, missing = [*families, entry.name], missing - had
    return families, missing
