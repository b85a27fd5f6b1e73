"""The look command."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gridlstm.command import Parser, checkpoint_paths, from_one, numbers, packages, run_command
from gridlstm.errors import UserError, within_memory
from gridlstm.files import writable

if TYPE_CHECKING:
    from gridlstm.look.load import Text

log = logging.getLogger(__name__)

PARSER = Parser(
    "look",
    """Look inside networks and write pictures with their numbers as CSV, into a checkpoint's run directory or look/.

  gradients    norms of dL_T/dh_i through time and depth. With --ckpt A,B,…: at the start and after training, on test
               data, --steps 500 of a text or all of a shorter one; networks of the same name are numbered in order.
               Without --ckpt: new networks, --model grid2d,stacked_lstm,… --steps 500 --layers 100, and train.py's
               network options
  cells        memory cells of a character model over --symbols 40000 of its test text or all of a shorter one: which
               cells follow URLs, quotes, markup, …, the text coloured by them, and how long a value survives from layer
               to layer
  gates        how often gates are closed or open, by layer; --symbols 10000 of a text or all of a shorter one; for
               other tasks, about 10000 steps of test batches
  image        a classifier of images: the pixels that decide, and the memories of each layer; --images 6 of the test
  drawn        --images 16 that a network of task=mnist_pixels draws with seed=1, beside images of the test
  alignment    a translation: which source words move which target word, by gradients, and the attention if the network
               has it; the first --sentences 4 of the test
  activation   the 1-LSTM as an activation function; --memory=-2,-1,0,1,2 --weights 1,2,3,4 (of u, f, o, c), or seed=1
               for four random sets

With --ckpt, key=value are options of its run, such as task.path=other.txt.""",
    others="key=value",
)
PARSER.add_argument("--what", required=True, help="one of these pictures")
PARSER.add_argument("--ckpt", metavar="CHECKPOINT[,…]", help="files in run directories")
PARSER.add_argument("--out", metavar="DIRECTORY", help="directory of pictures and tables")

MOST, MOST_IMAGES, MOST_DRAWN, MOST_SENTENCES = 1_000_000, 24, 100, 20
"""Largest number of steps or layers of a new network, and of images, drawn images and sentences in one picture."""

PARSER.add_argument("--steps", type=from_one(MOST), help="time steps")
PARSER.add_argument("--layers", type=from_one(MOST), help="layers of new networks")
PARSER.add_argument("--model", metavar="MODEL[,…]", help="new networks")
PARSER.add_argument("--symbols", type=from_one(), help="symbols of a text")
PARSER.add_argument("--images", type=from_one(MOST_DRAWN), help="images in one picture")
PARSER.add_argument("--sentences", type=from_one(MOST_SENTENCES), help="sentences of a test")
PARSER.add_argument("--memory", type=numbers, metavar="NUMBER[,…]", help="values of m")
PARSER.add_argument("--weights", type=numbers, metavar="U,F,O,C", help="four numbers")
PARSER.add_argument(
    "--trust", type=packages, metavar="PACKAGE[,…]",
    help="packages besides gridlstm whose code the run may use: your own models and tasks",
)  # fmt: skip

STEPS, ROWS = 10_000, 10
"""Number of steps over which gates are counted, and number of streams into which a text is split for the count."""

MODES: dict[str, frozenset[str]] = {
    "gradients": frozenset({"steps", "layers", "model"}),
    "cells": frozenset({"symbols"}),
    "gates": frozenset({"symbols"}),
    "image": frozenset({"images"}),
    "drawn": frozenset({"images"}),
    "alignment": frozenset({"sentences"}),
    "activation": frozenset({"memory", "weights"}),
}
"""Options of each picture, besides the options that all pictures have."""


def look(given: dict[str, Any], overrides: list[str]) -> list[Path]:
    """Run the look command.

    Args:
        given: options of ``PARSER`` by name.
        overrides: ``key=value``, options of the checkpoint's run or of new networks.

    Returns:
        The files written.

    Raises:
        UserError: if options are missing or invalid, the network is unsupported or too large for the memory, or the
            directory is not writable.
    """
    what = given["what"]
    if what not in MODES:
        raise UserError(f"what must be {', '.join(MODES)}, got {what!r}.")
    if unread := sorted(set(given) - MODES[what] - {"what", "ckpt", "out", "trust"}):
        raise UserError(f"{unread[0]} has no effect on what={what}. Remove it.")
    named = checkpoint_paths(given["ckpt"]) if "ckpt" in given else []
    of_one = {"cells": _cells, "gates": _gates, "image": _image, "drawn": _drawn, "alignment": _alignment}
    if what in of_one and len(named) != 1:
        raise UserError(f"what={what} needs one checkpoint. Give ckpt=outputs/…/checkpoints/best.ckpt.")
    out = writable(Path(given["out"]) if "out" in given else _beside(named))
    with within_memory("Give fewer units, layers, steps or symbols."):
        if what == "activation":
            return _activation(named, out, given, overrides)
        if what == "gradients":
            return _gradients(named, out, given, overrides)
        return of_one[what](named[0], out, given, overrides)


def _beside(checkpoints: list[Path]) -> Path:
    from gridlstm.training.compatibility import run_directory

    if len(checkpoints) > 1:
        raise UserError("there is no default directory for several checkpoints. Give out=DIRECTORY.")
    directory = run_directory(checkpoints[0]) if checkpoints else None
    return Path("look") if directory is None else directory / "look"


def _activation(checkpoints: list[Path], out: Path, given: dict[str, Any], overrides: list[str]) -> list[Path]:
    from gridlstm.look.activation import panels, write

    if checkpoints:
        raise UserError("what=activation shows a single unit without a checkpoint. Replace ckpt by weights.")
    seed, others = _seed(overrides)
    if others:
        raise UserError(f"what=activation has no option {others[0].partition('=')[0]}. Remove it.")
    if "weights" in given and overrides:
        raise UserError("weights and seed exclude each other: seed draws weights. Remove one of them.")
    return write(panels(given.get("weights"), seed), given.get("memory", [-2.0, -1.0, 0.0, 1.0, 2.0]), out)


def _gradients(checkpoints: list[Path], out: Path, given: dict[str, Any], overrides: list[str]) -> list[Path]:
    from gridlstm.look.flow import curves_of_new, curves_of_trained, write
    from gridlstm.look.load import load
    from gridlstm.options import Role, role

    if checkpoints:
        if refused := [key for key in ("model", "layers") if key in given]:
            raise UserError(f"{refused[0]} is fixed by the checkpoint. Remove it.")
        runs = [load(path, overrides, given.get("trust", [])) for path in checkpoints]
        names = [run.name for run in runs]
        runs = [
            run if names.count(run.name) == 1 else run._replace(name=f"{run.name} ({n})")
            for n, run in enumerate(runs, 1)
        ]
        return write(curves_of_trained(runs, given.get("steps")), out)
    if "model" not in given:
        raise UserError("what=gradients needs networks. Give ckpt=… or model=grid2d,stacked_lstm,….")
    for key in (override.partition("=")[0] for override in overrides):
        if key in ("model.num_layers", "task.network.num_layers"):
            raise UserError(f"{key} cannot be set here. Give layers=… instead (gradients through time use 2 layers).")
        if role(key) not in (Role.NETWORK, Role.START, Role.SEED, Role.SPEED) or key == "init_from":
            raise UserError(f"{key} has no effect on a new network. Remove it.")
    models, steps, layers = given["model"].split(","), given.get("steps", 500), given.get("layers", 100)
    return write(curves_of_new(models, steps, layers, overrides), out)


def _cells(checkpoint: Path, out: Path, given: dict[str, Any], overrides: list[str]) -> list[Path]:
    from gridlstm.look import cells
    from gridlstm.look.load import load, text_of

    trained = load(checkpoint, overrides, given.get("trust", []))
    return cells.look(trained, _symbols(given.get("symbols"), text_of(trained), 40_000), out)


def _gates(checkpoint: Path, out: Path, given: dict[str, Any], overrides: list[str]) -> list[Path]:
    import torch

    from gridlstm.look.cells import record
    from gridlstm.look.gates import COUNTED, joined, of_sequences, saturation, write
    from gridlstm.look.load import load, sequences, text_of, windows
    from gridlstm.look.watch import watching

    asked = given.get("symbols")
    trained = load(checkpoint, overrides, given.get("trust", []))
    if trained.data.vocabulary is not None:
        text = text_of(trained)
        symbols = _symbols(asked, text, STEPS)
        rows = min(ROWS, symbols)
        x, _ = windows(text, rows, symbols // rows)
        batches = iter([(x, torch.ones_like(x, dtype=torch.bool))])
    elif asked is not None:
        raise UserError(f"symbols is only for texts; other tasks use test batches of about {STEPS:,} steps. Remove it.")
    else:
        batches = sequences(trained.data, STEPS)
    with watching(trained.task.model, vectors=False) as seen:
        cells = {name: watched.cell for name, watched in seen.items()}
    others = [name for name, cell in cells.items() if type(cell) not in COUNTED]
    if len(others) < len(cells):
        for name in others:
            log.info("%s is skipped: its cell has no gates u, f and o: %s", name, type(cells.pop(name)).__name__)
    parts = []
    for x, inside in batches:
        recorded = record(trained.task.model, x, {"time": ["z"], "depth": ["z"]})
        z = {name: of_sequences(recorded[name]["z"], inside) for name in cells}
        found = [s for name, cell in cells.items() for s in saturation(name, cell, z[name])]
        parts.append((int(inside.sum()), found))
    return write(joined(parts), out)


def _image(checkpoint: Path, out: Path, given: dict[str, Any], overrides: list[str]) -> list[Path]:
    from gridlstm.look import image
    from gridlstm.look.load import load_task
    from gridlstm.tasks.classify_image import ClassifyImage

    if (images := given.get("images", 6)) > MOST_IMAGES:
        raise UserError(f"images must be at most {MOST_IMAGES} with what=image, got {images}.")
    data, task = load_task(checkpoint, overrides, given.get("trust", []), ClassifyImage, "image", "mnist")
    return image.look(data, task, images, out)


def _alignment(checkpoint: Path, out: Path, given: dict[str, Any], overrides: list[str]) -> list[Path]:
    from gridlstm.data.translation import TranslationData
    from gridlstm.look import alignment
    from gridlstm.look.load import load_task
    from gridlstm.tasks.translate import Translate

    data, task = load_task(checkpoint, overrides, given.get("trust", []), Translate, "alignment", "translation")
    return alignment.look(cast(TranslationData, data), task, given.get("sentences", 4), out)


def _drawn(checkpoint: Path, out: Path, given: dict[str, Any], overrides: list[str]) -> list[Path]:
    from gridlstm.look import drawn
    from gridlstm.look.load import load_task
    from gridlstm.tasks.predict_pixels import PredictPixels

    seed, others = _seed(overrides)
    data, task = load_task(checkpoint, others, given.get("trust", []), PredictPixels, "drawn", "mnist_pixels")
    return drawn.look(data, task, given.get("images", 16), seed, out)


def _seed(overrides: list[str]) -> tuple[int, list[str]]:
    """Return the seed, 1 by default, and the other options."""
    seeds = [override for override in overrides if override.startswith("seed=")]
    text = seeds[-1].partition("=")[2] if seeds else "1"
    if not text.isdecimal():
        raise UserError(f"seed must be a whole number of at least 0, got {text!r}.")
    return int(text), [override for override in overrides if override not in seeds]


def _symbols(asked: int | None, text: "Text", default: int) -> int:
    """Return the number of symbols to analyse."""
    most = len(text.ids) - 1
    if asked is not None and asked > most:
        raise UserError(f"symbols must be at most {most:,}, the length of the test split less one, got {asked}.")
    return min(default, most) if asked is None else asked


def main() -> None:
    """Run the command line."""
    run_command(PARSER, _run)


def _run(given: dict[str, Any], overrides: list[str]) -> None:
    for path in look(given, overrides):
        print(path)


if __name__ == "__main__":
    main()
