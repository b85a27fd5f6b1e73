"""Choose the size of a model so that its parameters or FLOPs match another model: ``match`` in a run's configuration.

Tables of models compare them fairly only at matched sizes.
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
"""A hidden size that is large enough for every model."""
_LARGEST = 2**20
"""The largest hidden size to try."""


def count_parameters(cfg: DictConfig, spec: DataSpec) -> int:
    """Return the number of trained parameters of a run's whole network, with input projection and read-out."""
    with torch.device("meta"):
        return sum(p.numel() for p in make_task(cfg, spec).parameters() if p.requires_grad)


def count_flops(cfg: DictConfig, spec: DataSpec) -> int:
    """Return the floating-point operations of a network's products, forward and backward, with the read-out.

    They are counted for one more step of one sequence (see ``gridlstm.cost.cost``), or for one row of data without
    steps.
    """
    task = make_task(cfg, spec)
    measure_machine()
    run_once(task, *spec.example(1))  # the first call also builds and caches
    whole = run_once(task, *spec.example(1)).flops
    if spec.length is None:
        return whole
    return round((run_once(task, *spec.example(1, 2 * spec.length)).flops - whole) / spec.length)


_MEASURES: dict[str, tuple[Callable[[DictConfig, DataSpec], int], str]] = {
    "parameters_to": (count_parameters, "parameters"),
    "flops_to": (count_flops, "FLOPs a step"),
}


def check_match(cfg: DictConfig) -> tuple[str, str, DictConfig] | None:
    """Return the measure, the name of the reference model and its configuration; None if ``match`` names no model.

    The reference model has its default options on the same task. Options of ``model`` on the command line and in an
    experiment apply only to the model that is sized.

    Raises:
        UserError: the reference model does not exist or does not fit the task, ``match`` names two, or the model to
            size has no hidden_size.
    """
    wanted = [(str(how), name) for how, name in cfg.match.items() if name is not None]
    if not wanted:
        return None
    if len(wanted) > 1:
        raise UserError(
            "match.parameters_to and match.flops_to cannot both be met. Set one of them to null, such as "
            "match.parameters_to=null."
        )
    ((how, name),) = wanted
    if name not in choices("model"):
        raise UserError(f"match.{how}={name} does not exist. Choices: {', '.join(choices('model'))}.")
    if "hidden_size" not in cfg.model:
        raise UserError(f"model={cfg.run.model} has no hidden_size that match could choose. Set match.{how}=null.")
    reference = cfg.copy()
    reference.model, reference.run.model = compose_model(name), name
    check_fit(reference, f"match.{how}")
    return how, name, reference


def match_size(cfg: DictConfig) -> None:
    """Set ``model.hidden_size`` so that the model's parameters or FLOPs are nearest to the reference model's.

    Raises:
        UserError: no size has such a count; see also ``check_match``.
    """
    if (asked := check_match(cfg)) is None:
        return
    how, name, reference = asked
    spec = make_data(cfg).spec
    measure, unit = _MEASURES[how]
    goal = measure(reference, spec)
    sized, default = cfg.copy(), cfg.model.hidden_size or reference.model.hidden_size
    sized.model.hidden_size = _AMPLE
    count_parameters(sized, spec)  # raises errors that do not depend on the size

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
        has = "all sizes have fewer" if best is None else f"the smallest, hidden_size={best}, has {count(best):,}"
        raise UserError(
            f"model={cfg.run.model} cannot be sized to the {goal:,} {unit} of {name}: {has}. Match another model."
        )
    cfg.model.hidden_size = best
    log.info("hidden_size %d: %s %s (%s: %s)", best, f"{count(best):,}", unit, name, f"{goal:,}")


def nearest(count: Callable[[int], int], goal: int, guess: int = 1) -> int | None:
    """Return the size with the count nearest to the goal, or None if no size reaches the goal.

    Args:
        count: function of the size. It never falls as the size grows, and is 0 for sizes without a network.
        goal: count to reach.
        guess: first size to try. The search moves from it in small steps, because counting at a far larger size may
            take much memory.
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
