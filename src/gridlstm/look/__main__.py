"""The look command."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridlstm.command import Parser, checkpoint_paths, packages, run_command
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
               Without: new networks, --model grid2d,stacked_lstm,… --steps 500 --layers 100, and train.py's network
               options
  cells        memory cells of a character model over --symbols 40000 of its test text or all of a shorter one: which
               cells follow URLs, quotes, markup, …, the text coloured by them, and how long a value survives from layer
               to layer
  gates        how often gates are closed or open, by layer; --symbols 10000 of a text or all of a shorter one; for
               other tasks, as many steps of test batches
  activation   the 1-LSTM as an activation function; --memory=-2,-1,0,1,2 --weights 1,2,3,4 (of u, f, o, c), or seed=1
               for four random sets

With --ckpt, key=value are options of its run, such as task.path=other.txt.""",
    others="key=value",
)
PARSER.add_argument("--what", required=True, help="gradients, cells, gates, image or activation")
PARSER.add_argument("--ckpt", metavar="CHECKPOINT[,…]", help="files in run directories")
PARSER.add_argument("--out", metavar="DIRECTORY", help="directory of pictures and tables")
for name, what in (
    ("steps", "time steps"), ("layers", "layers of new networks"), ("model", "new networks, separated by commas"),
    ("symbols", "symbols of a text"), ("images", "images of a test"),
    ("memory", "numbers, separated by commas"), ("weights", "four numbers"),
    ("trust", "packages besides gridlstm whose code the run may use: your own models and tasks"),
):  # fmt: skip
    PARSER.add_argument(f"--{name}", help=what)

STEPS, ROWS = 10_000, 10
"""Steps over which gates are counted, and the number of streams that a text is split into for it."""

_MOST = 1_000_000
"""Largest number of steps or layers of a new network."""
_LARGEST = 1e30
"""Largest number accepted, well below the limit of single precision."""


def look(given: dict[str, str]) -> list[Path]:
    """Run the look command with the given options; see ``PARSER``.

    Returns:
        The files written.

    Raises:
        UserError: if options are missing or invalid, the network is unsupported or too large for the memory, or the
            directory is not writable.
    """
    what = given.pop("what", None)
    if what not in ("gradients", "cells", "gates", "image", "activation"):
        raise UserError(f"what must be gradients, cells, gates, image or activation, got {what!r}.")
    named = checkpoint_paths(given.pop("ckpt")) if "ckpt" in given else []
    if what in ("cells", "gates", "image") and len(named) != 1:
        raise UserError(f"what={what} needs one checkpoint. Give ckpt=outputs/…/checkpoints/best.ckpt.")
    out = writable(Path(given.pop("out")) if "out" in given else _beside(named))
    with within_memory("Give fewer units, layers, steps or symbols."):
        if what == "activation":
            return _activation(named, out, given)
        if what == "gradients":
            return _gradients(named, out, given)
        return {"cells": _cells, "gates": _gates, "image": _image}[what](named[0], out, given)


def _beside(checkpoints: list[Path]) -> Path:
    from gridlstm.training.compatibility import run_directory

    if len(checkpoints) > 1:
        raise UserError("there is no default directory for several checkpoints. Give out=DIRECTORY.")
    directory = run_directory(checkpoints[0]) if checkpoints else None
    return Path("look") if directory is None else directory / "look"


def _activation(checkpoints: list[Path], out: Path, given: dict[str, str]) -> list[Path]:
    from gridlstm.look.activation import panels, write

    if checkpoints:
        raise UserError("what=activation shows a single unit without a checkpoint. Replace ckpt by weights.")
    if "weights" in given and "seed" in given:
        raise UserError("weights and seed exclude each other: seed draws weights. Remove one of them.")
    seed = _whole(given, "seed", 1, 2**63 - 1)
    weights = _numbers(given, "weights", None)
    memory = _numbers(given, "memory", "-2,-1,0,1,2")
    assert memory is not None, "it has a default"
    _nothing_else(given)
    return write(panels(weights, seed), memory, out)


def _gradients(checkpoints: list[Path], out: Path, given: dict[str, str]) -> list[Path]:
    from gridlstm.look.flow import curves_of_new, curves_of_trained, write
    from gridlstm.look.load import load
    from gridlstm.options import Role, role

    steps = _whole(given, "steps", 500, _MOST) if "steps" in given or not checkpoints else None
    if checkpoints:
        if refused := [key for key in ("model", "layers") if key in given]:
            raise UserError(f"{refused[0]} is fixed by the checkpoint. Remove it.")
        trust = packages(given.pop("trust", ""))
        runs = [load(path, _words(given), trust) for path in checkpoints]
        names = [run.name for run in runs]
        runs = [
            run if names.count(run.name) == 1 else run._replace(name=f"{run.name} ({n})")
            for n, run in enumerate(runs, 1)
        ]
        return write(curves_of_trained(runs, steps), out)
    if "model" not in given:
        raise UserError("what=gradients needs networks. Give ckpt=… or model=grid2d,stacked_lstm,….")
    assert steps is not None, "it has a default"
    for key in given:
        if key in ("model.num_layers", "task.network.num_layers"):
            raise UserError(f"{key} cannot be set here. Give layers=… instead (gradients through time use 2 layers).")
        if role(key) not in (Role.NETWORK, Role.START, Role.SEED, Role.SPEED) or key == "init_from":
            raise UserError(f"{key} has no effect on a new network. Remove it.")
    models, layers = given.pop("model").split(","), _whole(given, "layers", 100, _MOST)
    return write(curves_of_new(models, steps, layers, _words(given)), out)


def _cells(checkpoint: Path, out: Path, given: dict[str, str]) -> list[Path]:
    from gridlstm.look import cells
    from gridlstm.look.load import load, text_of

    asked = _whole(given, "symbols", 1) if "symbols" in given else None
    trust = packages(given.pop("trust", ""))
    trained = load(checkpoint, _words(given), trust)
    return cells.look(trained, _symbols(asked, text_of(trained), 40_000), out)


def _gates(checkpoint: Path, out: Path, given: dict[str, str]) -> list[Path]:
    import torch

    from gridlstm.look.cells import record
    from gridlstm.look.gates import COUNTED, joined, of_sequences, saturation, write
    from gridlstm.look.load import load, sequences, text_of, windows
    from gridlstm.look.watch import watching

    asked = _whole(given, "symbols", 1) if "symbols" in given else None
    trust = packages(given.pop("trust", ""))
    trained = load(checkpoint, _words(given), trust)
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
            log.info("%s is skipped, its cell has no gates u, f and o: %s", name, type(cells.pop(name)).__name__)
    parts = []
    for x, inside in batches:
        recorded = record(trained.task.model, x, {"time": ["z"], "depth": ["z"]})
        z = {name: of_sequences(recorded[name]["z"], inside) for name in cells}
        found = [s for name, cell in cells.items() for s in saturation(name, cell, z[name])]
        parts.append((int(inside.sum()), found))
    return write(joined(parts), out)


def _image(checkpoint: Path, out: Path, given: dict[str, str]) -> list[Path]:
    from gridlstm.look import image
    from gridlstm.look.load import load_classifier

    images = _whole(given, "images", 6, image.MOST)
    trust = packages(given.pop("trust", ""))
    data, task = load_classifier(checkpoint, _words(given), trust)
    return image.look(data, task, images, out)


def _symbols(asked: int | None, text: "Text", default: int) -> int:
    """Return the number of symbols to analyse."""
    most = len(text.ids) - 1
    if asked is not None and asked > most:
        raise UserError(f"symbols must be at most {most:,}, the length of the test split less one, got {asked}.")
    return min(default, most) if asked is None else asked


def _whole(given: dict[str, str], name: str, default: int, most: int | None = None) -> int:
    text = given.pop(name, str(default))
    if not text.isdecimal() or int(text) < 1 or (most is not None and int(text) > most):
        above = "" if most is None else f" and at most {most:,}"
        raise UserError(f"{name} must be a whole number of at least 1{above}, got {text!r}.")
    return int(text)


def _numbers(given: dict[str, str], name: str, default: str | None) -> list[float] | None:
    text = given.pop(name, default)
    try:
        numbers = None if text is None else [float(part) for part in text.split(",")]
        if not all(abs(number) <= _LARGEST for number in numbers or ()):
            raise ValueError(text)
        return numbers
    except ValueError as error:
        raise UserError(
            f"{name} must be numbers of at most {_LARGEST:g}, separated by commas, got {text!r}."
        ) from error


def _words(given: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in given.items()]


def _nothing_else(given: dict[str, str]) -> None:
    if given:
        raise UserError(f"there is no option {next(iter(given))} of what=activation. Remove it.")


def main() -> None:
    """Run the command line."""
    run_command(PARSER, _run)


def _run(given: dict[str, Any], overrides: list[str]) -> None:
    for path in look(given | dict(override.split("=", 1) for override in overrides)):
        print(path)


if __name__ == "__main__":
    main()
