"""Sizes a model so that it has as many parameters, or takes as much arithmetic, as another: ``match`` in a run's
configuration, without which no table of models is fair.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from omegaconf import DictConfig

from gridlstm.config import choices, compose_model
from gridlstm.cost import run_once
from gridlstm.data.spec import DataSpec
from gridlstm.engine.matmul import product as measure_machine
from gridlstm.errors import UserError
from gridlstm.training.build import make_data, make_task
from gridlstm.training.task_models import check_fit

log = logging.getLogger(__name__)

_AMPLE = 2**12
"""A hidden size that is too small for no model."""
_LARGEST = 2**20
"""The largest hidden size that is tried."""


def count_parameters(cfg: DictConfig, spec: DataSpec) -> int:
    """Return the trained numbers of a run's whole network, projection of the input and read-out included."""
    with torch.device("meta"):
        return sum(p.numel() for p in make_task(cfg, spec).parameters() if p.requires_grad)


def count_flops(cfg: DictConfig, spec: DataSpec) -> int:
    """Return the floating-point operations of a run's products, forward and backward, read-out included: for one more
    step of one sequence (see ``gridlstm.cost.cost``), or for one row of data without steps.
    """
    task = make_task(cfg, spec)
    measure_machine()
    run_once(task, *spec.example(1))  # builds and caches
    whole = run_once(task, *spec.example(1)).flops
    if spec.length is None:
        return whole
    return round((run_once(task, *spec.example(1, 2 * spec.length)).flops - whole) / spec.length)


_MEASURES: dict[str, tuple[Callable[[DictConfig, DataSpec], int], str]] = {
    "parameters_to": (count_parameters, "parameters"),
    "flops_to": (count_flops, "FLOPs a step"),
}


def check_match(cfg: DictConfig) -> tuple[str, str, DictConfig] | None:
    """Return what ``match`` asks for: how, the model's name and the configuration with that model; None for nothing.

    That model is taken as it is by itself at the same task; what the command line and an experiment say of ``model`` is
    said of the one that is sized.

    Raises:
        UserError: there is no such model, or it does not go with the task, or nothing can be sized.
    """
    wanted = [(str(how), name) for how, name in cfg.match.items() if name is not None]
    if not wanted:
        return None
    if len(wanted) > 1:
        raise UserError(
            "match.parameters_to and match.flops_to cannot both be met: set one of them to null, such as "
            "match.parameters_to=null."
        )
    ((how, name),) = wanted
    if name not in choices("model"):
        raise UserError(f"match.{how}={name} is no model. Choices: {', '.join(choices('model'))}.")
    if "hidden_size" not in cfg.model:
        raise UserError(f"model={cfg.run.model} has no hidden_size, by which match.{how} could size it.")
    reference = cfg.copy()
    reference.model, reference.run.model = compose_model(name), name
    check_fit(reference, f"match.{how}")
    return how, name, reference


def match_size(cfg: DictConfig) -> None:
    """Set ``model.hidden_size`` so that the count is nearest to that of the model that ``match`` names.

    Raises:
        UserError: no size can do that, or see ``check_match``.
    """
    if (asked := check_match(cfg)) is None:
        return
    how, name, reference = asked
    spec = make_data(cfg).spec
    measure, unit = _MEASURES[how]
    goal = measure(reference, spec)
    sized, default = cfg.copy(), cfg.model.hidden_size or reference.model.hidden_size
    sized.model.hidden_size = _AMPLE
    count_parameters(sized, spec)  # refuses what is wrong at any size

    @cache
    def count(hidden_size: int) -> int:
        sized.model.hidden_size = hidden_size
        try:
            return measure(sized, spec) if hidden_size else 0
        except UserError:  # too small for this model
            return 0

    # Nearly all weights are matrices between hidden vectors.
    guess = round(default * (goal / count(default)) ** 0.5) if count(default) else default
    best = nearest(count, goal, max(guess, 1))
    if best is None or (count(best) > goal and count(best - 1) == 0):
        has = "no hidden_size has as many" if best is None else f"already hidden_size={best} has {count(best):,}"
        raise UserError(f"model={cfg.run.model} cannot be sized to the {goal:,} {unit} of {name}: {has}.")
    cfg.model.hidden_size = best
    log.info("hidden_size %d: %s %s (%s: %s)", best, f"{count(best):,}", unit, name, f"{goal:,}")


def nearest(count: Callable[[int], int], goal: int, guess: int = 1) -> int | None:
    """Return the size with the count nearest to the goal; counts never fall with size, and 0 means no such network.

    Args:
        guess: sizes far above it are not tried, where a count may take much memory.

    Returns:
        None where none has as much.
    """
    low = high = guess
    while count(high) < goal:
        low, high = high, high + high // 8 + 1
        if high > _LARGEST:
            return None
    while low > 0 and count(low) >= goal:
        low, high = low - low // 8 - 1, low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < goal else (low, middle)
    return low if count(low) > 0 and goal - count(low) <= count(high) - goal else high
