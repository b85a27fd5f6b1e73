"""The W&B logger, imported by the one config that names it."""

import hashlib
import netrc
import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import wandb
from lightning.pytorch.loggers import WandbLogger

from gridlstm.errors import UserError


class OneRunWandbLogger(WandbLogger):
    """A W&B run that ends with its job: left open, it would swallow the next job of the process."""

    def finish(self, failed: bool) -> None:
        """Ends the run, of which only rank zero has one; W&B shows it as failed where it failed."""
        if wandb.run is not None:
            wandb.finish(exit_code=1 if failed else 0)


def make_logger(
    project: str,
    entity: str | None,
    name: str,
    group: str,
    dir: str,
    mode: Literal["auto", "online", "offline"],
    tags: list[str],
) -> OneRunWandbLogger:
    """One W&B run for one run directory: the same directory is the same run, so a resumed run goes on in it.

    Args:
        project, entity, name, group, tags: as W&B means them.
        dir: the run directory.
        mode: "auto" is the environment variable WANDB_MODE where set, else online where an API key is stored, else
            offline. Nothing ever asks for an account.

    Raises:
        UserError: online was asked for without an API key.
    """
    if mode not in ("auto", "online", "offline"):
        raise UserError(f"logger.wandb.mode must be auto, online or offline, got {mode!r}.")
    logged_in = _logged_in()
    if mode == "auto":
        asked = os.environ.get("WANDB_MODE")
        mode = "online" if (asked == "online" or (asked is None and logged_in)) else "offline"
    if mode == "online" and not logged_in:
        raise UserError(
            "logger.wandb.mode=online needs an account: run `wandb login`, or use logger.wandb.mode=offline."
        )
    directory = Path(dir).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    logger = OneRunWandbLogger(
        project=project,
        entity=entity,
        name=name,
        group=group,
        tags=tags,
        save_dir=str(directory),
        id=hashlib.sha1(str(directory).encode()).hexdigest()[:12],
        resume="allow" if mode == "online" else None,
        log_model=mode == "online",
        # To wandb itself: Lightning's own "offline" would set WANDB_MODE for the rest of the process.
        mode=mode,
        settings=wandb.Settings(silent=True, console="off"),
    )
    # Lightning 2.6 always passes an option that wandb 0.31 has retired, with a warning in every run.
    del logger._wandb_init["anonymous"]
    return logger


def _logged_in() -> bool:
    """Whether `wandb login` has stored a key, or WANDB_API_KEY holds one; asks no server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    if not path.exists():
        return False
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except netrc.NetrcParseError as error:
        raise UserError(f"cannot read the API key from {path}: {error}. Mend the file or use logger=csv.") from error
