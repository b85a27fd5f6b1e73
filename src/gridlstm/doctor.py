"""Report what this machine will use and what is missing: ``python -m gridlstm.doctor``."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from gridlstm import machine
from gridlstm.command import prepare
from gridlstm.errors import UserError

_DATA = {
    "enwik8": (("enwik8", "enwik8.zip"), "the first run of task=enwik8 downloads it, 36 MB"),
    "text8": (("text8", "text8.zip"), "the first run of task=text8 downloads it, 31 MB"),
}
"""Data sets by name: file names, one of which is enough, and how to get the file."""

_PACKAGES = {
    "torchvision": ("images", "image tasks"),
    "sacrebleu": ("translation", "BLEU of translation tasks"),
    "sentencepiece": ("translation", "pieces of words, the default of translation tasks"),
    "datasets": ("datasets", "task=hub, texts of the Hugging Face hub"),
    "wandb_workspaces": ("dashboard", "python -m gridlstm.dashboard"),
    "tensorboard": ("tensorboard", "logger=tensorboard"),
    "submitit": ("slurm", "hardware=slurm"),
    "optuna": ("optuna", "hydra/sweeper=optuna"),
}
"""Optional packages: the extra that installs each, and the commands and options that need it."""

_MODULES = {"optuna": "hydra_plugins.hydra_optuna_sweeper"}
"""Module to look for, if the package itself is not enough."""


class Finding(NamedTuple):
    """One line of the report: name of the component, True if it was found, and the consequence in words."""

    name: str
    found: bool
    text: str


def main() -> None:
    """Print one line for each finding."""
    argparse.ArgumentParser(
        prog="python -m gridlstm.doctor",
        description="Report the processor, kernels, GPUs, W&B account, data sets and packages that the commands will "
        "use here, with reasons, and how to get missing ones. Nothing is downloaded.",
    ).parse_args()
    prepare()
    logging.disable(logging.INFO)  # the engine logs its choices, which the findings below repeat
    findings = list(examine())
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{'ok' if finding.found else '--'}  {finding.name:<{width}}  {finding.text}")
    print("Lines that begin with -- name missing components. Generated data and your own text need none of them.")


def examine() -> Iterator[Finding]:
    """Yield the findings, in the order of a newcomer's questions."""
    yield from _software()
    yield from _processor()
    yield _gpu()
    yield _account()
    yield from _data(Path(os.environ.get("GRIDLSTM_DATA", "data")).expanduser())
    yield from _packages()


def _software() -> Iterator[Finding]:
    from gridlstm.training.provenance import commit, versions

    found = versions()
    names = ("python", "torch", "lightning", "hydra-core")
    yield Finding("versions", True, ", ".join(f"{name} {found[name]}" for name in names))
    yield Finding("gridlstm", True, f"{found['gridlstm']}, commit {commit()}")


def _processor() -> Iterator[Finding]:
    import torch

    from gridlstm.engine import choices, compiled
    from gridlstm.training import provenance

    memory = machine.memory() / 2**30
    processor = provenance.device(torch.device("cpu"))
    yield Finding("processor", True, f"{processor}, {memory:.0f} GiB of memory. OMP_NUM_THREADS=1 gives a run 1 thread")
    chosen = choices.current()
    if chosen.product == "onednn":
        yield Finding("matrix product", True, "oneDNN's: measured as exact as PyTorch's own and faster here")
    elif chosen.product == "packed":
        yield Finding("matrix product", True, "MKL's with packed weights: measured as exact and faster here")
    else:
        yield Finding("matrix product", True, "PyTorch's own: others are not faster, not exact or not available here")
    if (library := compiled.library()) is not None:
        yield Finding("pointwise step", True, f"compiled: {library._name}")
    else:
        yield Finding(
            "pointwise step",
            False,
            "plain PyTorch, same results but slower: no C compiler works here. Install one: apt install gcc",
        )


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
        return Finding("GPU", True, f"{names}: runs use one. hardware=cpu leaves it alone")
    return Finding("GPU", False, "none that torch can use: runs use the processor")


def _account() -> Finding:
    from gridlstm.training.loggers.wandb_account import logged_in

    mode = os.environ.get("WANDB_MODE")
    if logged_in():
        return Finding("W&B account", True, f"found: runs are logged {mode or 'online'}")
    return Finding(
        "W&B account", False, "none: runs are logged offline, in their directories. Type wandb login to log online"
    )


def _data(directory: Path) -> Iterator[Finding]:
    there = directory.is_dir()
    said = "" if there else ", which does not exist yet"
    yield Finding("data directory", there, f"{directory.absolute()}{said}. GRIDLSTM_DATA or data_dir=… sets another")
    for name, (files, advice) in _DATA.items():
        places = [place / file for place in (directory, directory / name) for file in files]
        file = next((place for place in places if place.is_file()), None)
        yield Finding(name, file is not None, advice if file is None else str(file))


def _packages() -> Iterator[Finding]:
    for package, (extra, purpose) in _PACKAGES.items():
        spec = find_spec(_MODULES.get(package, package))
        found = spec is not None and spec.origin is not None  # a folder of that name in the working directory has none
        yield Finding(package, found, purpose if found else f'for {purpose}: pip install "gridlstm[{extra}]"')


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
