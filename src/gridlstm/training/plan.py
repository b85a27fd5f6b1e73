"""What a run will do, decided once before anything is built or written. Everything else asks the plan."""

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
    """What a run does with which weights."""

    directory: Path
    """The run directory."""
    leg: int
    """1 for a new run, n where the run continues in its directory for the n-th time."""
    checkpoint: Path | None
    """The checkpoint whose weights are tested, or from which the training continues with all its state."""
    init_from: Path | None
    """The checkpoint of another run whose weights a new training starts from."""
    trains: bool
    tests: bool
    best: Path | None
    """The weights to test of a training that has ended in an earlier leg."""
    earlier: Mapping[str, Any]
    """What result.json says of the earlier legs."""

    @property
    def continues(self) -> bool:
        """True where the run takes up what is in its directory."""
        return self.leg > 1

    def __str__(self) -> str:
        """Return one line for the log."""
        if self.best is not None:
            steps = self.earlier["steps"]
            left = f"test {self.best}" if self.tests else "nothing is left"
            return (
                f"leg {self.leg}: the training ended at step {steps}, {left} (a larger trainer.max_steps or "
                f"trainer.max_time trains on)"
            )
        source = self.checkpoint or self.init_from
        what = " and ".join(name for name, done in (("train", self.trains), ("test", self.tests)) if done)
        if source is None:
            return f"new run: {what} from scratch"
        if self.continues:
            return f"leg {self.leg}: {what}, continuing from {source}"
        return f"new run: {what} with the weights of {source}"


def decide(cfg: DictConfig) -> Plan:
    """Return the plan of a checked configuration.

    Raises:
        UserError: a run cannot continue with these options, or the directory holds another run.
    """
    directory = Path(cfg.run.dir)
    checkpoint = _checkpoint(cfg)
    own = checkpoint is not None and run_directory(checkpoint) == directory.resolve()
    trains, tests = "fit" in cfg.stages, "test" in cfg.stages
    if checkpoint is not None and (trains or own):
        check_resume(cfg, checkpoint)
    if not own and trains and any((directory / CHECKPOINTS).glob("*.ckpt")):
        raise UserError(
            f"{directory} holds the checkpoints of an earlier run. Give ckpt_path=last to continue it, another "
            f"hydra.run.dir, or delete it."
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
    )


def _checkpoint(cfg: DictConfig) -> Path | None:
    if cfg.ckpt_path is None:
        return None
    if cfg.ckpt_path != "last":
        return Path(cfg.ckpt_path).expanduser()
    return intact_checkpoint(Path(cfg.run.dir))


def _trained_to_end(cfg: DictConfig, checkpoint: Path, earlier: Mapping[str, Any]) -> Path | None:
    """Return the best checkpoint where training has ended and the test alone may be left; else None.

    Steps, a clock, a criterion or early stopping may have ended it. With other limits than then, or from a checkpoint
    that is not the last, the run trains on.

    Raises:
        UserError: callbacks are others than then, and there are no steps left in which they could do anything; or the
            checkpoint that is to be tested is damaged.
    """
    directory = Path(cfg.run.dir)
    last = last_checkpoint(directory)
    if not earlier.get("trained_to_end") or last is None or checkpoint.resolve() != last.resolve():
        return None
    different = differences_of_end(cfg, directory)
    if any(key.startswith("trainer.max_") for key in different):
        return None
    if rules := [key for key in different if key.startswith("callbacks.")]:
        if 0 < cfg.trainer.max_steps <= earlier["steps"]:
            raise UserError(
                f"the training ended at step {earlier['steps']}, and {rules[0]} is not what it was. Give a larger "
                f"trainer.max_steps to train on, or leave the option as it was."
            )
        return None
    best = earlier.get("best", {})
    if cfg.task.monitor not in best or not best.get("checkpoint"):
        return None
    weights = directory / CHECKPOINTS / Path(best["checkpoint"]).name  # wherever the directory has moved to
    if not weights.is_file():
        return None
    if "test" in cfg.stages and (reason := damage(weights)) is not None:
        raise UserError(
            f"{weights} cannot be read: {reason}. The test that is left of this run needs it. Restore it from a copy, "
            f"or test the last weights by stages=[test] ckpt_path=last."
        )
    return weights
