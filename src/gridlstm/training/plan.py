"""Decide once what a run will do, before anything is built or written. Everything else asks the plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gridlstm.errors import UserError
from gridlstm.training.compatibility import check_resume, differences_of_end, run_directory
from gridlstm.training.intact import damage
from gridlstm.training.legs import CHECKPOINTS, earlier_result, intact_checkpoint, last_checkpoint


@dataclass(frozen=True)
class Plan:
    """Stages of a run and the weights that they use."""

    directory: Path
    """Run directory."""
    leg: int
    """1 for a new run, n for the n-th leg in its directory."""
    checkpoint: Path | None
    """Checkpoint to test, or to resume training from, including all its state."""
    init_from: Path | None
    """Checkpoint of another run whose weights a new training starts from."""
    trains: bool
    tests: bool
    best: Path | None
    """Checkpoint to test if training ended in an earlier leg."""
    earlier: Mapping[str, Any]
    """Contents of result.json from the earlier legs."""
    finds_no_last: bool = False
    """True if ``ckpt_path=last`` found no checkpoint."""

    @property
    def continues(self) -> bool:
        """True if the run continues one in its directory."""
        return self.leg > 1

    def __str__(self) -> str:
        """Return one line for the log."""
        if self.best is not None:
            steps = self.earlier["steps"]
            left = f"test {self.best}" if self.tests else "nothing is left"
            return (
                f"leg {self.leg}: training ended at step {steps}, {left} (a larger trainer.max_steps or "
                f"trainer.max_time continues it)"
            )
        source = self.checkpoint or self.init_from
        what = " and ".join(name for name, done in (("train", self.trains), ("test", self.tests)) if done)
        if source is None:
            why = f" (ckpt_path=last: {self.directory} holds no checkpoint)" if self.finds_no_last else ""
            return f"new run: {what} from scratch{why}"
        if self.continues:
            return f"leg {self.leg}: {what}, continuing from {source}"
        return f"new run: {what} with the weights of {source}"


def decide(cfg: DictConfig) -> Plan:
    """Return the plan of a checked configuration.

    Raises:
        UserError: the run cannot resume with these options, or the directory holds another run.
    """
    directory = Path(cfg.run.dir)
    checkpoint = _checkpoint(cfg)
    own = checkpoint is not None and run_directory(checkpoint) == directory.resolve()
    trains, tests = "fit" in cfg.stages, "test" in cfg.stages
    if checkpoint is not None and (trains or own):
        check_resume(cfg, checkpoint)
    if not own and trains and any((directory / CHECKPOINTS).glob("*.ckpt")):
        resume = "ckpt_path=last to resume it"
        if cfg.ckpt_path == "last":
            resume = f"one of them to resume it, since there is no last.ckpt (ckpt_path={directory / CHECKPOINTS}/…)"
        raise UserError(
            f"{directory} holds the checkpoints of an earlier run. Use {resume}, or another hydra.run.dir, or delete "
            f"it."
        )
    earlier = earlier_result(directory) if own else {}
    best = _trained_to_end(cfg, checkpoint, earlier) if own and trains and checkpoint is not None else None
    return Plan(
        directory=directory,
        leg=int(earlier.get("legs", 1)) + 1 if own else 1,
        checkpoint=checkpoint,
        init_from=Path(cfg.init_from).expanduser() if cfg.init_from is not None and checkpoint is None else None,
        trains=trains and best is None,
        tests=tests,
        best=best,
        earlier=earlier,
        finds_no_last=cfg.ckpt_path == "last" and checkpoint is None,
    )


def _checkpoint(cfg: DictConfig) -> Path | None:
    if cfg.ckpt_path is None:
        return None
    if cfg.ckpt_path != "last":
        return Path(cfg.ckpt_path).expanduser()
    return intact_checkpoint(Path(cfg.run.dir))


def _trained_to_end(cfg: DictConfig, checkpoint: Path, earlier: Mapping[str, Any]) -> Path | None:
    """Return the best checkpoint if training has ended and at most the test is left, else None.

    Training may have ended by steps, clock, criterion or early stopping. With other limits, or from a checkpoint other
    than the last, training continues.

    Raises:
        UserError: callbacks have changed but no steps are left for them, or the checkpoint to test is missing or
            damaged.
    """
    directory = Path(cfg.run.dir)
    last = last_checkpoint(directory)
    if not earlier.get("trained_to_end") or last is None or checkpoint.resolve() != last.resolve():
        return None
    different = differences_of_end(cfg, directory)
    if any(key.startswith("trainer.max_") for key in different):
        return None
    no_steps_left = 0 < cfg.trainer.max_steps <= earlier["steps"]
    if rules := [key for key in different if key.startswith("callbacks.")]:
        if no_steps_left:
            raise UserError(
                f"training ended at step {earlier['steps']}, but {rules[0]} has changed. Raise trainer.max_steps to "
                f"continue training, or restore the option."
            )
        return None
    best = earlier.get("best", {})
    known = cfg.task.monitor in best and best.get("checkpoint")
    weights = directory / CHECKPOINTS / Path(best["checkpoint"]).name if known else None  # the directory may have moved
    if weights is None or not weights.is_file():
        if not no_steps_left:
            return None
        raise UserError(
            f"training ended at step {earlier['steps']}, and {directory / CHECKPOINTS} has no best checkpoint by "
            f"{cfg.task.monitor}. Raise trainer.max_steps to continue training, or test the last weights with "
            f"stages=[test] ckpt_path=last."
        )
    if "test" in cfg.stages and (reason := damage(weights)) is not None:
        raise UserError(
            f"{weights} cannot be read: {reason}. The run's test needs it. Restore it from a copy, or test the last "
            f"weights with stages=[test] ckpt_path=last."
        )
    return weights
