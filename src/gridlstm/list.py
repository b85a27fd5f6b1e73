"""Which model goes with which task, and what it costs: ``python -m gridlstm.list``."""

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from gridlstm.atomic import write_text
from gridlstm.compose import CONF, choices, compose
from gridlstm.errors import UserError

USAGE = """python -m gridlstm.list [--write]

Prints every model and task of conf/ that go together, with the parameters of the model at the task's default size.

  --write   write that into conf/models.txt, which train.py --help shows, and the table of costs into docs/models.md"""

SYMBOLS = 205
"""Assumed of a text before it is read: those of enwik8."""
HIDDEN_SIZE, NUM_LAYERS, STEPS, BITS = 128, 2, 64, 64
"""What the models are compared at: the last two are steps of a sequence, and the input of a model without time."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first to the left and all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def matrix() -> str:
    """Models by tasks: parameters at the task's default size, read-out included; "-" where they do not go together."""
    from gridlstm.runtime.fit import fits
    from gridlstm.runtime.match import count_parameters

    tasks = choices("task")
    rows = [["", *tasks]]
    for model in choices("model"):
        row = [model]
        for task in tasks:
            cfg = compose(f"model={model}", f"task={task}")
            spec = _default_spec(cfg)
            known = "yes" if spec is None else f"{count_parameters(cfg, spec):,}"
            row.append(known if fits(cfg.model, cfg.task) else "-")
        rows.append(row)
    return table(rows)


def _default_spec(cfg: DictConfig) -> "Spec | None":
    """Of the data without reading any; None where it cannot be known."""
    from hydra.utils import get_class

    from gridlstm.data.base import Spec
    from gridlstm.data.generated import GeneratedData
    from gridlstm.data.text import TextData
    from gridlstm.runtime.build import make_data

    kind = get_class(cfg.task.data._target_)
    if issubclass(kind, GeneratedData):
        return make_data(cfg).spec
    return Spec(SYMBOLS, SYMBOLS, cfg.task.data.window) if issubclass(kind, TextData) else None
