"""Read the configuration stored in a run directory, which may be damaged or not a run's."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gridlstm.data.old_runs import rewrite
from gridlstm.errors import UserError

_NODES = ("task", "model", "trainer", "run")


def data_here(there: str) -> str | None:
    """Return $GRIDLSTM_DATA if a run's data directory is not here: the run may be from another machine. Else None."""
    here = os.environ.get("GRIDLSTM_DATA")
    return here if here and not Path(there).expanduser().is_dir() else None


def read_config(path: Path) -> DictConfig:
    """Return config.yaml or config_source.yaml in today's format, with unresolved references.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        config: Any = OmegaConf.load(path)
        found = [name for name in _NODES if isinstance(config, DictConfig) and isinstance(config.get(name), DictConfig)]
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing. Every run directory holds config.yaml and config_source.yaml. Restore it."
        ) from error
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:  # ValueError: bytes that are not text
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}. Restore it from a copy.") from error
    if len(found) < len(_NODES):
        lacks = next(name for name in _NODES if name not in found)
        raise UserError(f"{path} is damaged: it lacks the options of {lacks}. Restore it from a copy.")
    plain = OmegaConf.to_container(config)
    rewrite(plain, references=True)
    now = OmegaConf.create(plain)
    assert isinstance(now, DictConfig)
    return now
