"""W&B logger, imported only by the configuration that names it."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment

from gridlstm.errors import UserError
from gridlstm.training.loggers.wandb_account import logged_in, run_id, unreachable
from gridlstm.training.provenance import rank

log = logging.getLogger(__name__)


class OneRunWandbLogger(WandbLogger):
    """W&B run that ends with its job; left open, it would also log the next job of the process.

    An error of W&B becomes a warning and ends the logging, but not the training.
    """

    _failed = False

    @property
    def experiment(self) -> Any:
        return DummyExperiment() if self._failed else super().experiment

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        self._log(super().log_hyperparams, *arguments, **options)

    def log_metrics(self, *arguments: Any, **options: Any) -> None:
        self._log(super().log_metrics, *arguments, **options)

    def finish(self, result: Mapping[str, Any]) -> None:
        """End the run with the job's result; only rank zero has a run.

        ``result``, the contents of result.json, becomes the summary of the run and a table of metrics.
        learning_curve.png is uploaded. W&B shows a failed run as failed, and an interrupted run, which can be resumed,
        as preempted.
        """
        self._log(self._finish, result)
        if self._failed:
            with suppress(Exception):  # it raises the earlier error again
                wandb.teardown(exit_code=1)
            wandb.run = None  # otherwise Lightning would reuse it in the next job

    def _log(self, call: Callable[..., None], *arguments: Any, **options: Any) -> None:
        if self._failed:
            return
        try:
            with _own_places(Path(self.save_dir or ".") / "wandb"):
                call(*arguments, **options)
        except Exception as error:  # noqa: BLE001  any error
            self._failed = True
            log.warning("W&B failed, and nothing more of this run is logged there: %r", error)

    def _finish(self, result: Mapping[str, Any]) -> None:
        if (run := wandb.run) is None:
            return
        run.summary.update(dict(result))
        stages = [stage for stage in ("best", "final", "test") if result.get(stage)]
        values = {stage: {_metric(name): v for name, v in result[stage].items()} for stage in stages}
        metrics = dict.fromkeys(name for stage in stages for name in values[stage] if name != "checkpoint")
        rows = [[name, *(values[stage].get(name) for stage in stages)] for name in metrics]
        if rows:
            run.log({"result": wandb.Table(columns=["metric", *stages], data=rows)})
        if (picture := Path(self.save_dir or ".") / "learning_curve.png").exists():
            run.log({"learning_curve": wandb.Image(str(picture))})
        if result["status"] == "interrupted":
            run.mark_preempting()
        wandb.finish(exit_code=0 if result["status"] == "completed" else 1)


@contextmanager
def _own_places(directory: Path) -> Iterator[None]:
    """Make W&B store temporary files in the run directory, because the home directory may not be writable."""
    own = {"WANDB_DATA_DIR": directory / "data", "WANDB_CACHE_DIR": directory / "cache"}
    added = {name: str(path) for name, path in own.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _metric(name: str) -> str:
    """Return a test metric's validation name, so that both are in one row of the table."""
    return name.replace("test/", "val/")


def make_logger(
    project: str,
    entity: str | None,
    name: str,
    group: str,
    dir: str,
    mode: Literal["auto", "online", "offline", "disabled"],
    tags: list[str],
    leg: int = 1,
) -> OneRunWandbLogger:
    """Return the logger of a run directory's only W&B run. A resumed run continues it, even in a moved directory.

    Checkpoints are not uploaded, because a sweep would fill an account with them. The run's summary gives their paths.

    Args:
        project, entity, name, group, tags: options of W&B.
        dir: run directory.
        mode: "auto" uses the environment variable WANDB_MODE if it is set; otherwise online if an API key is stored and
            W&B can be reached, else offline. "disabled" logs nothing. No mode asks for an account.
        leg: leg of the run, see ``gridlstm.training.plan.Plan``. From the second leg on, the W&B run continues.

    Raises:
        UserError: the mode does not exist, or is online without an API key or a connection to W&B.
    """
    modes = ("online", "offline", "disabled")
    if mode not in ("auto", *modes):
        raise UserError(f"logger.wandb.mode must be auto, online, offline or disabled, got {mode!r}.")
    wanted = mode == "online" or os.environ.get("WANDB_MODE") == "online"
    if mode == "auto":
        asked = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
        if asked not in modes:
            raise UserError(f"WANDB_MODE must be online, offline or disabled, got {asked!r}.")
        mode = cast(Any, asked)
    if mode == "online" and not logged_in():
        raise UserError(
            "logger.wandb.mode=online needs an account. Run `wandb login`, or use logger.wandb.mode=offline."
        )
    if mode == "online" and rank() == 0 and (why := unreachable()):
        advice = "logger.wandb.mode=offline keeps the run here, and `wandb sync` uploads it later"
        if wanted:
            raise UserError(f"{why}: {advice}.")
        log.warning("%s, so this run is logged offline: %s", why, advice)
        mode = "offline"
    directory = Path(dir).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    logger = OneRunWandbLogger(
        project=project,
        entity=entity,
        name=name,
        group=group,
        tags=tags,
        save_dir=str(directory),
        # Only rank zero has a W&B run.
        id=run_id(directory, leg > 1) if rank() == 0 else None,
        resume="allow" if mode == "online" else None,
        # Passed to wandb itself: Lightning's "offline" would set WANDB_MODE for the rest of the process.
        mode=mode,
        settings=wandb.Settings(silent=True, console="off"),
    )
    # Lightning 2.6 always passes an option that wandb 0.31 has deprecated, which would warn in every run.
    del logger._wandb_init["anonymous"]
    return logger
