"""One job: build, fit, test, record."""

import logging
import time
import warnings
from pathlib import Path
from typing import Any, cast

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gridlstm.errors import UserError
from gridlstm.runtime.build import Run, build
from gridlstm.runtime.progress_file import best_checkpoint
from gridlstm.runtime.record import Record, describe, metrics, recording

log = logging.getLogger(__name__)

STAGES = ("fit", "test")


def run_job(cfg: DictConfig) -> float:
    """Runs the stages of one job in ``cfg.run.dir``.

    Returns:
        The best value of the monitored metric (for ``stages=[test]``, its test value), which a sweep optimises.

    Raises:
        UserError: the configuration cannot work.
    """
    _check(cfg)
    quiet()
    with recording(cfg) as record:
        L.seed_everything(cfg.seed, workers=True, verbose=False)
        run = build(cfg)
        record.fields |= describe(run)
        for logger in run.trainer.loggers:
            logger.log_hyperparams(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)))
        _announce(cfg, run, record)
        try:
            score = _run_stages(cfg, run, record)
        except BaseException:
            _finish_loggers(run, failed=True)
            raise
        _finish_loggers(run, failed=False)
    _summary(cfg, record)
    return score


def _run_stages(cfg: DictConfig, run: Run, record: Record) -> float:
    checkpoint: str | None = cfg.ckpt_path
    score: float | None = None
    if "fit" in cfg.stages:
        start = time.monotonic()
        run.trainer.fit(run.task, run.data, ckpt_path=checkpoint)
        score, checkpoint = _best(cfg, run)
        record.fields |= {
            "best": {cfg.task.monitor: score, "checkpoint": checkpoint},
            "final": metrics(run),
            "steps": run.trainer.global_step,
            "samples": run.task.samples_seen,
            "fit_seconds": round(time.monotonic() - start, 3),
        }
        record.write()  # before the test, which may be long
    if "test" in cfg.stages:
        log.info("testing %s", _short(checkpoint) if checkpoint else "the final weights")
        run.trainer.test(run.task, run.data, ckpt_path=checkpoint, verbose=False)
        tested = {name: value for name, value in metrics(run).items() if name.startswith("test/")}
        record.fields["test"] = tested
        score = score if score is not None else tested[cfg.task.monitor.replace("val/", "test/")]
    assert score is not None, "_check refuses a job without stages"
    record.fields["score"] = score
    return score


def _best(cfg: DictConfig, run: Run) -> tuple[float, str | None]:
    """The best score and its checkpoint; without checkpoints, the final score of the weights in memory."""
    if (best := best_checkpoint(run.trainer)) is not None:
        return best
    if (final := run.trainer.callback_metrics.get(cfg.task.monitor)) is None:
        raise UserError(
            f"training ended without a value of {cfg.task.monitor}, by which this task is judged. Metrics there are: "
            f"{', '.join(sorted(run.trainer.callback_metrics)) or 'none'}; is trainer.limit_val_batches=0?"
        )
    return float(final), None


def _check(cfg: DictConfig) -> None:
    """What no component can know for itself."""
    unknown = [stage for stage in cfg.stages if stage not in STAGES]
    if unknown or not cfg.stages:
        raise UserError(f"stages must be some of {list(STAGES)}, got {list(cfg.stages)}.")
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError("\n".join(f"{key} must be given: {key}=…" for key in missing))
    if type(cfg.seed) is not int or cfg.seed < 0:
        raise UserError(f"seed must be a whole number of at least 0, got {cfg.seed!r}.")
    if cfg.ckpt_path is None and "fit" not in cfg.stages:
        raise UserError("stages=[test] needs trained weights: ckpt_path=outputs/…/checkpoints/best.ckpt")
    if cfg.ckpt_path not in (None, "last") and not Path(cfg.ckpt_path).is_file():
        raise UserError(f"ckpt_path={cfg.ckpt_path} is no file. Give a checkpoint, or ckpt_path=last.")
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN and _processes(cfg) != 1:
        raise UserError(
            "a sweep over distributed runs needs a process tree of its own for every job, or the ranks would sweep "
            "each for itself. Leave out hydra/launcher, whose default does that."
        )


def _processes(cfg: DictConfig) -> int | str:
    """Ranks that the trainer would start; -1 and "auto" stand for as many as there are devices."""
    devices = cfg.trainer.devices
    several = cfg.trainer.strategy not in ("auto", None)
    return devices if isinstance(devices, int) and devices > 1 else (-1 if several and devices in (-1, "auto") else 1)


def quiet() -> None:
    """Turns down messages that say nothing about this run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Batches are slices of memory or made on the device: worker processes would only cost.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # A checkpoint that is only evaluated needs none of the callbacks that wrote it.
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
    # A run goes on in its own directory.
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    # Lightning's own use of an API that torch has begun to retire.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def _announce(cfg: DictConfig, run: Run, record: Record) -> None:
    fields, spec = record.fields, run.data.spec
    log.info(
        "%s: %s parameters, %d %s x %d rows a step, %d classes, on %s (%d process%s), seed %d",
        cfg.run.name,
        f"{fields['parameters']:,}",
        spec.sequence_length,
        run.data.unit,
        run.data.batch_size,
        spec.output_size,
        fields["device"],
        fields["processes"],
        "" if fields["processes"] == 1 else "es",
        cfg.seed,
    )
    log.info("run directory: %s", _short(cfg.run.dir))


def _finish_loggers(run: Run, failed: bool) -> None:
    """Ends every logger's run, as failed where it failed: a W&B run would else go on into the next job of a sweep."""
    for logger in run.trainer.loggers:
        end: Any = getattr(logger, "finish", None)
        if end is not None:
            end(failed)


def _summary(cfg: DictConfig, record: Record) -> None:
    fields = record.fields
    lines = [f"{name} {value:.4g}" for name, value in fields.get("test", {}).items()]
    best = fields.get("best", {})
    if best:
        lines.insert(0, f"best {cfg.task.monitor} {best[cfg.task.monitor]:.4g}")
    log.info("")
    log.info("done in %.0f s: %s", fields["seconds"], " | ".join(lines))
    log.info("  everything is in   %s", _short(cfg.run.dir))
    if (picture := Path(cfg.run.dir) / "learning_curve.png").exists():
        log.info("  learning curve     %s", _short(picture))
    if best and best["checkpoint"]:
        log.info("  evaluate again     python -m gridlstm.evaluate ckpt=%s split=test", _short(best["checkpoint"]))
    log.info("  try next           %s", NEXT.get(cfg.run.model, NEXT["grid2d"]))


def _short(path: str | Path) -> str:
    """Relative to the working directory where it lies below that: as a person would type it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


NEXT = {
    "grid2d": "python train.py model=stacked_lstm            (the same task without memory along depth)",
    "stacked_lstm": "python train.py task=text task.path=README.md   (a character model of any text)",
}
"""What a newcomer may try after a run of this model."""
