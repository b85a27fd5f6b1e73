"""Run one job: build, fit, test, record."""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from gridlstm.engine.matmul import cost_of_products
from gridlstm.errors import UserError, within_memory
from gridlstm.training import provenance
from gridlstm.training.build import Run, build, check_monitors
from gridlstm.training.callbacks.best_checkpoint import best_checkpoint
from gridlstm.training.callbacks.clock import Clock
from gridlstm.training.callbacks.criterion import solved
from gridlstm.training.callbacks.interruption import ending_by_signal, exit_status, later_signals_ignored, trained
from gridlstm.training.callbacks.ranks import Ranks
from gridlstm.training.checkpoint import data_state, load_content, load_weights
from gridlstm.training.compatibility import other_network
from gridlstm.training.init_from import init_from
from gridlstm.training.loggers.csv_logger import CSVLogger
from gridlstm.training.match import match_size
from gridlstm.training.plan import Plan, decide
from gridlstm.training.record import Record, describe, metrics, recording, status_after, write_config
from gridlstm.training.summary import as_typed_path, log_summary
from gridlstm.training.validate import check, unused_network_options

log = logging.getLogger(__name__)

_SMALLER = (
    "Use a smaller size, or a smaller task.data.batch_size with trainer.accumulate_grad_batches (where batches have "
    "different numbers of targets, each counts equally), or model.sweep=recompute if the model has it."
)

_LOW = {"bf16": torch.bfloat16, "16": torch.float16}
"""Types of the precisions below float32."""


def run_job(cfg: DictConfig) -> float:
    """Run the stages of one job in ``cfg.run.dir``.

    Returns:
        Best value of the monitored metric, or its test value for ``stages=[test]``. A sweep optimizes it.

    Raises:
        UserError: the job cannot work as configured.
    """
    check(cfg)
    quiet()
    match_size(cfg)
    plan = decide(cfg)
    cfg.run.leg = plan.leg
    log.info("%s", plan)
    with (
        ending_by_signal(),
        recording(cfg, plan) as record,
        later_signals_ignored(),
        _sentences(),
        within_memory(_SMALLER),
    ):
        run = _prepare(cfg, plan, record)
        try:
            score = _run_stages(cfg, run, record, plan)
        except BaseException as error:
            _finish_loggers(run, record, error)
            if status_after(error) == "interrupted":  # Lightning would exit with 1, as after a failure
                raise SystemExit(exit_status(run.trainer, error)) from error
            raise
    _finish_loggers(run, record, None)  # may wait for a server, but every file is written by now
    log_summary(cfg, record.fields)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # If left until the process ends, its threads can abort a rank that has finished its work.
        torch.distributed.destroy_process_group()
    return score


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn Lightning's errors about options into one-line errors.

    Raises:
        UserError: Lightning refuses an option.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def _prepare(cfg: DictConfig, plan: Plan, record: Record) -> Run:
    """Build a run, load the weights that the plan names and start the loggers.

    Raises:
        UserError: a component refuses its options, or the weights do not fit.
    """
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    run = build(cfg)
    check_monitors(cfg, run.task)
    if plan.checkpoint is not None:
        _restore(cfg, run, plan, plan.checkpoint)
    if plan.init_from is not None:
        init_from(run.task, run.data, plan.init_from)
        _warn_of_other_network(cfg, plan.init_from)
    callbacks: list[L.Callback] = run.trainer.callbacks  # type: ignore[attr-defined]  # set, but not annotated
    # Ranks waits until all ranks have read from the directory whether training is left to do.
    callbacks.insert(0, Ranks(lambda: _begin(cfg, record, plan)))
    record.fields |= describe(run)
    for logger in run.trainer.loggers:
        if isinstance(logger, CSVLogger) and plan.trains and not plan.continues:
            logger.start_over()
        logger.log_hyperparams(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)))
    record.refused = False
    _announce(cfg, run, record)
    _warn(cfg, run)
    return run


def _restore(cfg: DictConfig, run: Run, plan: Plan, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into the network.

    Raises:
        UserError: the weights belong to another network, the run needs the checkpoint's data but has other data, no
            training time is left, or the file has no training state.
    """
    content = load_content(checkpoint)
    if plan.trains and "optimizer_states" not in content:
        raise UserError(
            f"{checkpoint} contains weights but no training state. Expected a checkpoint that a run wrote. "
            f"Use init_from={checkpoint} to start a new run from these weights."
        )
    if (plan.continues or plan.trains) and (state := data_state(cfg, content)):
        run.data.check_goes_on(state)
    load_weights(run.task, content["state_dict"])
    if plan.trains:
        _check_time_left(run, content)
    if not plan.continues:
        _warn_of_other_network(cfg, checkpoint)


def _check_time_left(run: Run, content: dict[str, Any]) -> None:
    """Raise UserError if no training time is left, before the training overwrites the record of earlier legs."""
    for clock in run.trainer.callbacks:  # type: ignore[attr-defined]  # set, but not annotated
        if isinstance(clock, Clock):
            clock.load_state_dict(content.get("callbacks", {}).get(clock.state_key, {}))
            if (left := clock.time_remaining()) is not None and left <= 0:
                raise UserError("trainer.max_time limits the whole run, and earlier legs have used it up. Raise it.")


def _warn_of_other_network(cfg: DictConfig, checkpoint: Path) -> None:
    if different := other_network(cfg, checkpoint):
        log.warning("the weights of %s may mean something else in this network:", checkpoint)
        for line in different:
            log.warning("  %s", line)


def _begin(cfg: DictConfig, record: Record, plan: Plan) -> None:
    """Write the configuration, and remove results of earlier weights from the record."""
    if "fit" not in cfg.stages:
        return
    if provenance.rank() == 0 and not record.config_written:
        write_config(cfg)
    if plan.trains:
        for name in ("test", "tested", "trained_to_end"):
            record.fields.pop(name, None)
        record.write()


def _run_stages(cfg: DictConfig, run: Run, record: Record, plan: Plan) -> float:
    """Train and test, and return the score."""
    score: float | None = None
    weights = None if plan.checkpoint is None else str(plan.checkpoint)
    if plan.best is not None:
        score, weights = record.fields["best"][cfg.task.monitor], str(plan.best)
        record.fields["best"]["checkpoint"] = weights  # the directory may have moved
    elif plan.trains:
        score, weights = _train(cfg, run, record, weights)
    if plan.tests:
        log.info("testing %s", as_typed_path(weights) if weights else "the final weights")
        run.trainer.test(run.task, run.data, ckpt_path=weights, verbose=False)
        tested = {name: value for name, value in metrics(run).items() if name.startswith("test/")}
        record.fields |= {"test": tested, "tested": Path(weights).name if weights else None}
        score = score if score is not None else tested[cfg.task.monitor.replace("val/", "test/")]
    assert score is not None, "check refuses a job without stages"
    record.fields.setdefault("score", score)
    return score


def _train(cfg: DictConfig, run: Run, record: Record, checkpoint: str | None) -> tuple[float, str | None]:
    """Train, record the progress made, and return the best score and its checkpoint."""
    start = time.monotonic()
    try:
        run.trainer.fit(run.task, run.data, ckpt_path=checkpoint)
    finally:  # record the progress even if training fails
        record.fields |= _trained(cfg, run, record, time.monotonic() - start)
        if trained(run.trainer):
            record.fields["trained_to_end"] = True
        if not solved(run.trainer):  # an earlier leg may have had a criterion
            record.fields.pop("samples_to_solve", None)
    score, weights = _best(cfg, run)
    record.fields |= {"best": {cfg.task.monitor: score, "checkpoint": weights}, "score": score}
    record.write()  # before the test, which may be long
    return score, weights


def _trained(cfg: DictConfig, run: Run, record: Record, seconds: float) -> dict[str, Any]:
    """Return the progress of a training over all its legs."""
    if not run.trainer.global_step:
        return {}
    best = best_checkpoint(run.trainer)
    return {
        **({"best": {cfg.task.monitor: best[0], "checkpoint": best[1]}} if best else {}),
        "final": metrics(run) or record.earlier.get("final", {}),
        "steps": run.trainer.global_step,
        "samples": run.task.samples_seen,
        **solved(run.trainer),
        "fit_seconds": round(record.earlier.get("fit_seconds", 0) + seconds, 3),
    }


def _best(cfg: DictConfig, run: Run) -> tuple[float, str | None]:
    """Return the best score and its checkpoint; without checkpoints, the final score and None."""
    if (best := best_checkpoint(run.trainer)) is not None:
        return best
    if (final := run.trainer.callback_metrics.get(cfg.task.monitor)) is None:
        raise UserError(
            f"training ended after {run.trainer.global_step} steps without a value of {cfg.task.monitor}, the score of "
            f"this task. Raise trainer.max_steps or trainer.max_time to allow a step, and trainer.limit_val_batches to "
            f"allow a validation."
        )
    return float(final), None


def quiet() -> None:
    """Silence messages that say nothing about this run."""
    for name in ("lightning.pytorch", "lightning.fabric", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("profilers", "callbacks.early_stopping"):  # the user asked for their output
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    if logging.getLogger().handlers:  # Lightning's own handler would print every message twice
        logging.getLogger("lightning").handlers.clear()
    # Batches are slices of memory or made on the device: worker processes would only add cost.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # A checkpoint can be evaluated without the callbacks that wrote it.
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
    # A run resumes in its own directory.
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    # The loss of a log row is NaN until its first batch; that is intended.
    warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
    # Sweeps use SLURM through hardware=slurm, so a run without srun is intended.
    warnings.filterwarnings("ignore", message=".*`srun` command is available on your system.*")
    # Lightning uses an API that torch has deprecated.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def _announce(cfg: DictConfig, run: Run, record: Record) -> None:
    fields = record.fields
    log.info(
        "%s: %s parameters, %s x %d rows a step, %s, on %s (%d process%s), seed %d",
        cfg.run.name,
        f"{fields['parameters']:,}",
        run.data.spec,
        run.data.batch_size,
        run.task.output_text,
        fields["device"],
        fields["processes"],
        "" if fields["processes"] == 1 else "es",
        cfg.seed,
    )
    log.info("run directory: %s", as_typed_path(cfg.run.dir))


def _warn(cfg: DictConfig, run: Run) -> None:
    """Warn about options that have no effect, or less than expected."""
    for key, value in unused_network_options(cfg):
        log.warning("task.network.%s=%s has no effect: model=%s does not use it", key, value, cfg.run.model)
    low = _LOW.get(str(cfg.trainer.precision).partition("-")[0])
    if low is not None and run.trainer.strategy.root_device.type == "cpu" and (cost := cost_of_products(low)) > 1.2:
        log.warning(
            "trainer.precision=%s: on this CPU a matrix product in this type takes %.1f times as long as in float32. "
            "trainer.precision=32-true may be faster",
            cfg.trainer.precision,
            cost,
        )
    samples = run.trainer.max_steps * cfg.trainer.accumulate_grad_batches * run.data.batch_size
    opened = run.data.curriculum_samples
    if 0 < samples <= opened:
        log.warning(
            "the curriculum includes all lengths after %s samples, but trainer.max_steps=%d ends training after %s: "
            "the longest lengths are evaluated but never trained on",
            f"{opened:,}",
            run.trainer.max_steps,
            f"{samples:,}",
        )


def _finish_loggers(run: Run, record: Record, error: BaseException | None) -> None:
    """End every logger's run and record its status. Otherwise a W&B run would also log the next job of a sweep."""
    result = record.fields | {"status": status_after(error)} | ({"error": str(error)} if error else {})
    for logger in run.trainer.loggers:
        end: Any = getattr(logger, "finish", None)
        try:
            logger.save()
            if end is not None:
                end(result)
        except Exception as failure:  # noqa: BLE001  a failed logger must not lose the result
            log.warning("%s failed: %r", type(logger).__name__, failure)
