"""List the models that fit each task, and their costs: ``python -m gridlstm.list``."""

import argparse
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gridlstm.config import CONF, MATRIX, choices, compose, compose_model, with_directories
from gridlstm.data.source import SYMBOLS
from gridlstm.errors import UserError
from gridlstm.files import write_text

if TYPE_CHECKING:
    from gridlstm.data.spec import DataSpec

PAGE = CONF.parent / "docs" / "models.md"
OPTIONS_PAGE = CONF.parent / "docs" / "configuration.md"

HIDDEN_SIZE, NUM_LAYERS, STEPS, BITS = 128, 2, 32, 64
"""Sizes at which models are compared; a model without time gets all bits at once."""
PIXELS, CLASSES = 28, 10
"""Sizes of the images at which models of images are compared."""

COUNTED = ("text", "parity", "mnist", "mnist_pixels", "moving_digits", "translation")
"""Tasks on which the FLOPs of a model are counted: the first that it fits, or a task of the user's own."""
FLOPS, AT = "FLOPs", "at"
"""Last columns of the matrix: the FLOPs of a model, and the task at whose default size they are counted."""
LEGEND = (
    f"{FLOPS}: of all matrix products, forward and backward, at the default size of the task in the last column, "
    "for one more\nsymbol of text, one string of bits, one image, one more frame or one pair of sentences."
)


def matrix(anew: bool = False) -> str:
    """Return a table of models by tasks: parameters at the task's default size, or "-" if the model does not fit.

    Args:
        anew: count the FLOPs of all models, which takes half a minute. Otherwise read them from the recorded table,
            and count only those of models that are not in it or have other parameters there.
    """
    from gridlstm.training.match import count_parameters
    from gridlstm.training.task_models import fits, unreadable

    tasks = {name: compose(f"task={name}") for name in choices("task")}
    specs = {name: _spec(cfg) for name, cfg in tasks.items()}
    recorded = {} if anew else _recorded()
    rows = [["", *tasks, FLOPS, AT]]
    for model in choices("model"):
        node = compose_model(model)
        cells = dict.fromkeys(tasks, "-")
        if (wrong := unreadable(node)) is not None:
            print(f"model={model} cannot be loaded: {wrong}", file=sys.stderr)
        for task, cfg in tasks.items():
            if wrong is None and fits(node, cfg.task):
                cfg.model, spec = node.copy(), specs[task]
                cells[task] = "yes" if spec is None else f"{count_parameters(cfg, spec):,}"
        before = recorded.get(model, {})
        if FLOPS in before and all(cells[task] == before.get(task, cells[task]) for task in tasks):
            flops, at = before[FLOPS], before[AT]
        else:
            flops, at = _flops(node, tasks, specs, cells)
        rows.append([model, *cells.values(), flops, at])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() + "\n" for row in rows
    )


def _recorded() -> dict[str, dict[str, str]]:
    """Return the cells of the recorded matrix by model and column."""
    head, *rows = (line.split() for line in MATRIX.read_text().splitlines())
    return {model: dict(zip(head, cells, strict=True)) for model, *cells in rows}


def _flops(
    node: DictConfig, tasks: dict[str, DictConfig], specs: "dict[str, DataSpec | None]", cells: dict[str, str]
) -> tuple[str, str]:
    """Return the FLOPs of a model, and the task on which they are counted; "-" for both if no task's sizes are known.

    Args:
        node: the model.
        tasks, specs: configuration and sizes of each task.
        cells: parameters of the model by task, "-" for tasks that it does not fit.
    """
    from gridlstm.training.match import count_flops

    for task in (*COUNTED, *(task for task in tasks if task not in COUNTED)):
        if cells[task] != "-" and (spec := specs[task]) is not None:
            cfg = tasks[task]
            cfg.model = node.copy()
            return f"{count_flops(cfg, spec):,}", task
    return "-", "-"


def _spec(cfg: DictConfig) -> "DataSpec | None":
    """Return the sizes of a task's data without reading it; None if they are known only after reading."""
    from gridlstm.training.build import unread_data

    for key in filter(partial(OmegaConf.is_missing, cfg.task), cfg.task):  # a text's name, on which no size depends
        cfg.task[key] = key
    return unread_data(cfg).expected_spec


def costs(models: Iterable[str]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the name, description, parameters, state size, and FLOPs per step or image of each model."""
    from gridlstm.data.spec import ImageSpec, Spec
    from gridlstm.training.build import make_task
    from gridlstm.training.match import count_flops, count_parameters
    from gridlstm.training.task_models import fits

    tasks = [
        (compose("task=text"), Spec(SYMBOLS, SYMBOLS, STEPS)),
        (compose("task=parity"), Spec(BITS, 2, 1, symbols=False)),
        (compose("task=mnist"), ImageSpec(channels=1, height=PIXELS, width=PIXELS, classes=CLASSES)),
        *((cfg, _spec(cfg)) for cfg in map(compose, ("task=mnist_pixels", "task=moving_digits", "task=translation"))),
    ]
    for model in models:
        node = compose_model(model)
        cfg, spec = next(((cfg, spec) for cfg, spec in tasks if fits(node, cfg.task)), (None, None))
        if cfg is None or spec is None:
            continue
        cfg.model = node
        cfg.model.hidden_size, cfg.model.num_layers = HIDDEN_SIZE, NUM_LAYERS
        state = make_task(cfg, spec).state_size
        yield (
            model,
            _comment(CONF / "model" / f"{model}.yaml"),
            f"{count_parameters(cfg, spec):,}",
            f"{state:,}",
            f"{count_flops(cfg, spec):,}",
        )


def _comment(file: Path) -> str:
    """Return the comment lines at the top of a file of conf/, joined into one line."""
    lines = [line for line in file.read_text().splitlines() if line != "# @package _global_"]
    return " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


GROUPS = {
    "model": "The network. Its options: `model.hidden_size`, `model.num_layers`, `model.tied`, …",
    "transform": "The cell along a dimension: `transform@model.time=…`, `transform@model.depth=…`.",
    "task": "Data, objective and metric. `task.data.batch_size` is the global batch.",
    "optimizer": "The optimizer. Its learning rate: `optimizer.lr`.",
    "scheduler": "The learning rate during training.",
    "callbacks": "Checkpoints, pictures, stopping rules: `callbacks=[default,early_stopping]`.",
    "trainer": "Options of `lightning.Trainer`: length, precision, clipping, validation.",
    "hardware": "Where a run computes. It changes no numbers, except those that dropout draws on several ranks "
    "and those of trainer.limit_val_batches and limit_test_batches, which count the batches of each rank.",
    "logger": "Where metrics are written.",
    "debug": "Short runs for finding faults.",
    "experiment": "Whole comparisons. `-m` runs all their settings.",
}
"""Groups of conf/, with a description of each."""


def options_page() -> str:
    """Return docs/configuration.md."""
    parts = []
    for group, text in GROUPS.items():
        files = sorted((CONF / group).rglob("*.yaml"))
        rows = [(path.relative_to(CONF / group).with_suffix("").as_posix(), _comment(path)) for path in files]
        table = "\n".join(
            f"| [`{name}`](../conf/{group}/{name}.yaml) | {says.replace('|', chr(92) + '|')} |" for name, says in rows
        )
        parts.append(f"## {group}\n\n{text}\n\n| choice | |\n| --- | --- |\n{table}\n")
    head = (
        "# Configuration\n\nThis page is written by `python -m gridlstm.list --write`; a test keeps it up to date.\n\n"
        "`group=choice` chooses a file of a group. An option is changed by its path, such as `model.num_layers=6`. "
        "`python train.py --cfg job` shows every option with its value. A misspelt option is an error that names the "
        "nearest valid ones. The files have comments on their options.\n\n"
    )
    outside = (CONF / "train.yaml").read_text().partition("\n\n")[2]  # the list of groups comes first
    return f"{head}## Options outside groups\n\nWith their defaults:\n\n```yaml\n{outside}```\n\n" + "\n".join(parts)


def page(matrix: str, rows: Iterable[Sequence[str]]) -> str:
    """Return docs/models.md."""
    pair = _spec(compose("task=translation"))
    head = ["`model=`", "network", "parameters", "state", "FLOPs a step"]
    lines = [head, ["---", "---", "---:", "---:", "---:"], *([f"`{row[0]}`", *row[1:]] for row in rows)]
    table = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
    return f"""# Models

This page is written by `python -m gridlstm.list --write`; a test keeps it up to date. The docstring of each class has
its equations and their sources. Tests compare each network with a transcription of its equations or with PyTorch's own
module.

## Cost

The table is for hidden_size={HIDDEN_SIZE} and num_layers={NUM_LAYERS}, and for these inputs:

| networks | input and output |
| --- | --- |
| of sequences | {SYMBOLS} symbols in and out |
| without time | a vector of {BITS} numbers, 2 classes |
| of images | {PIXELS} x {PIXELS} pixels, {CLASSES} classes; the read-out is the mean over all places and 256 ReLUs |
| of single pixels | the images of `mnist_pixels` |
| of moving images | the frames of `moving_digits` |
| of sentences | a pair of {pair} of `translation` |

* Parameters include the projection of the input and the read-out.
* State: numbers that one sequence carries from step to step.
* FLOPs: floating-point operations of all matrix products, forward and backward, for one more step of one sequence after
  {STEPS} steps (attention needs more with each step), for one more frame, for one image, or for one pair of sentences.
  They include the blocks of zeros in the matrices of `grid2d_gru` and `clockwork_rnn`, which are multiplied too.

{table}

## Models and tasks

Parameters of each model at the task's default size, for a text with {SYMBOLS} symbols (text8: 27). "-" means that the
task cannot be trained with the model.

{LEGEND}

```
{matrix.rstrip()}
```

`match.parameters_to` or `match.flops_to` chooses a model's hidden size so that it has as many parameters, or as many
FLOPs a step, as another model on the same task: `python train.py model=stacked_lstm match.parameters_to=grid2d`. The
chosen size is in the run's config.yaml. With `-m model=grid2d,stacked_lstm,transformer` it is chosen for every model.
"""


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit quietly if the reader of a pipe exits, as in "| head"
    parser = argparse.ArgumentParser(
        prog="python -m gridlstm.list",
        description="Print which models of conf/ fit which tasks, with the parameters of each model at the task's "
        "default size, and its FLOPs.",
    )
    parser.add_argument("--config-dir", type=Path, metavar="DIRECTORY", help="a directory of your own models and tasks")
    parser.add_argument(
        "--write", action="store_true", help="write conf/models.txt, docs/models.md and docs/configuration.md"
    )
    given = parser.parse_args()
    if given.write and given.config_dir:
        parser.error("--write is for the repository's own models and tasks. Remove --config-dir.")
    if given.write and not PAGE.parent.is_dir():
        parser.error(f"--write needs a checkout of the repository, but {PAGE.parent} does not exist.")
    if not given.write:
        with with_directories([given.config_dir]) if given.config_dir else nullcontext():
            print(f"{matrix()}\n{LEGEND}")
        return
    found = matrix(anew=True)
    write_text(MATRIX, found)
    write_text(PAGE, page(found, costs(choices("model"))))
    write_text(OPTIONS_PAGE, options_page())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        reason = " ".join(str(error).partition("\nConfig search path:")[0].split())
        sys.exit(f"error: the configuration cannot be read: {reason}")
