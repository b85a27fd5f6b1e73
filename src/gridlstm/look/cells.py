"""Memory cells over a text: the labels that they follow, and how much of the input remains at each layer.

Shape legend: N characters, B batch rows, T time steps, L layers, d hidden size.
"""

import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gridlstm.errors import UserError
from gridlstm.files import write_bytes, write_csv, write_png, write_text
from gridlstm.look.colouring import page, picture
from gridlstm.look.labels import characters, labels
from gridlstm.look.load import Trained, text_of, windows
from gridlstm.look.ranking import Array, rank, survival
from gridlstm.look.watch import stacked, watching
from gridlstm.models.base import SequenceModel
from gridlstm.models.grid2d import Grid2d

log = logging.getLogger(__name__)

CHUNK = 500
"""Steps recorded at a time."""
MOST = 2**29
"""Largest number of values of one vector over all steps, 2 GiB."""


@torch.no_grad()
def record(model: SequenceModel, x: Tensor, names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Tensor]]:
    """Run a model over x (B, T) and return the named vectors ("z", "h", "m") by dimension, (T, L, B, …) each.

    Raises:
        UserError: if the model's cells cannot be recorded, or have more than ``MOST`` values.
    """
    state, found = None, dict[str, dict[str, Tensor]]()
    for start, chunk in zip(range(0, x.shape[1], CHUNK), x.split(CHUNK, dim=1), strict=True):
        with watching(model, vectors=any(set(each) - {"z"} for each in names.values())) as seen:
            _, state = model(chunk, state)
        for dimension, watched in seen.items():
            calls, whole = watched.by_step(chunk.shape[1]), found.setdefault(dimension, {})
            for name in names[dimension]:
                part = stacked(calls, name)
                if name not in whole:
                    size = (x.shape[1], *part.shape[1:])
                    if math.prod(size) > MOST:
                        raise UserError(
                            f"{x.numel():,} symbols give {math.prod(size):,} values of {name} along {dimension}. "
                            f"Expected at most {MOST:,}. Give a smaller symbols=…"
                        )
                    whole[name] = part.new_empty(size)
                whole[name][start : start + len(part)] = part
    return found


LEAST = 100
"""Smallest number of symbols."""
SURVIVAL = ("survival.csv", "survival.png")


def look(trained: Trained, symbols: int, out: Path) -> list[Path]:
    """Write cells.csv, cells.png, cells.html, memories.npz, and for a grid survival.csv and survival.png.

    Args:
        symbols: number of symbols, from the beginning of the test split.

    Raises:
        UserError: if the model is not a character model, the text is too short, or the model's cells cannot be
            recorded.
    """
    text = text_of(trained)
    if (most := len(text.ids) - 1) < LEAST:
        raise UserError(
            f"the test split has {most} symbols for correlations, which need at least {LEAST}. "
            f"Give a longer text: task.path=…"
        )
    if symbols < LEAST:
        raise UserError(f"symbols must be at least {LEAST} for a meaningful correlation, got {symbols}.")
    model = trained.task.model
    x, _ = windows(text, 1, symbols)
    letters, places = characters(text.vocabulary, x[0].tolist())
    seen = record(model, x, {"time": ["m"], "depth": ["h", "m"]})
    memories = {name: each["m"][places, :, 0].float().numpy() for name, each in seen.items() if each["m"].shape[-1]}
    if not memories:
        raise UserError("this network has no memory cells. Give the checkpoint of another one.")
    known = labels(letters)
    ranked = rank(memories, known)
    columns = ["label", "dimension", "layer", "unit", "r of the half it was chosen on", "r of the other half"]
    paths = [out / name for name in ("cells.csv", "cells.png", "cells.html", "memories.npz")]
    write_csv(paths[0], [columns, *((r.label, r.dimension, r.layer + 1, *r[3:]) for r in ranked)])
    best = [next(r for r in ranked if r.label == label) for label in dict.fromkeys(r.label for r in ranked)]
    write_png(paths[1], picture(letters, memories, known, best))
    write_text(paths[2], page(letters, memories, known, best))
    write_bytes(paths[3], _archive(letters, memories))
    if isinstance(model, Grid2d) and model.memory_at_ends and "depth" in memories:
        return paths + _survival(model, x, seen["depth"], out)
    for name in SURVIVAL:  # files of another network, written here earlier
        (out / name).unlink(missing_ok=True)
    log.info("no survival.csv: this network has no memory whose first layer reads the input")
    return paths


def _archive(text: str, memories: dict[str, Array]) -> bytes:
    """Return every cell's value at every character, by dimension (N, L, d), and the text's code points (N,) as .npz."""
    out = io.BytesIO()
    codes = np.array([ord(c) for c in text], dtype=np.uint32)  # NumPy's strings would lose a NUL
    np.savez_compressed(out, text=codes, **memories)  # type: ignore[arg-type]  # typed for other keywords
    return out.getvalue()


@torch.no_grad()
def _survival(model: Grid2d, x: Tensor, depth: dict[str, Tensor], out: Path) -> list[Path]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    bottom = model.input(x)[0].split([model.hidden_size, model.output_size - model.hidden_size], dim=-1)
    rows = []
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for vector, entering in zip(("h", "m"), bottom, strict=True):
        r = abs(survival(entering.double().numpy(), depth[vector][:, :, 0].double().numpy()))
        quartiles = np.quantile(r, [0.25, 0.5, 0.75], axis=1)
        layers = np.arange(1, len(r) + 1)
        rows += [(vector, *row) for row in zip(layers, r.mean(1), *quartiles, strict=True)]
        axes.plot(layers, r.mean(1), marker=".", label={"h": "hidden vector", "m": "memory"}[vector])
        axes.fill_between(layers, quartiles[0], quartiles[2], alpha=0.2)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("|r| with the input of the first layer")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend()
    paths = [out / name for name in SURVIVAL]
    write_csv(paths[0], [("vector", "layer", "mean |r|", "lower quartile", "median", "upper quartile"), *rows])
    write_png(paths[1], figure)
    return paths
