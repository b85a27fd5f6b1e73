"""The training command: ``python train.py``, or where only the wheel is installed, ``python -m gridlstm.train``."""

import os
import shutil
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gridlstm.command import prepare
from gridlstm.config import CONF, MATRIX
from gridlstm.errors import UserError
from gridlstm.explain import explain
from gridlstm.training.arguments import with_kept
from gridlstm.training.validate import check_start

_SHOWING = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version"}
"""Flags of Hydra that print something and run nothing."""

# Read only for --help.
OmegaConf.register_new_resolver("gridlstm.models", MATRIX.read_text, replace=True)


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
def _job(cfg: DictConfig) -> float:
    try:
        check_start(cfg)
        # Imported here, so that --help, --cfg and a misspelt option need not wait for torch.
        from gridlstm.training.job import run_job

        return run_job(cfg)
    except (UserError, OmegaConfBaseException) as error:
        if HydraConfig.get().mode == RunMode.RUN:
            if "TORCHELASTIC_RUN_ID" not in os.environ:  # whose ranks share the directory, and may not all be here yet
                _remove_empty(Path(HydraConfig.get().runtime.output_dir))
            reason = error if isinstance(error, UserError) else explain(error, sys.argv[1:])
            sys.exit(f"error: {reason}")  # past Hydra, which would print the command line's options once more
        raise


def _remove_empty(directory: Path) -> None:
    """Removes the directory of a run that was refused, where nothing but Hydra's own files is in it."""
    if {path.name for path in directory.iterdir()} <= {".hydra", "train.log"}:
        shutil.rmtree(directory)
        for parent in directory.parents:
            if not parent.is_relative_to(Path.cwd() / "outputs") or any(parent.iterdir()):
                break
            parent.rmdir()


def main() -> None:
    """Runs the command line; an error of the user's is one message on stderr and exit status 1."""
    # Hydra then lets exceptions through, instead of printing half a traceback and hiding the type.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    prepare()
    if _SHOWING.intersection(sys.argv):  # a reader such as head may have enough; nothing else can be cut off then
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        _take_up()
        _job()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error, sys.argv[1:])}")
    except OSError as error:
        sys.exit(f"error: {error}. A run writes into hydra.run.dir, by default below ./outputs.")
    except ValueError as error:
        if "Config group override must be" not in str(error):
            raise
        sys.exit(
            "error: a group cannot be null; leave out single nodes instead, such as callbacks.learning_curve=null."
        )


def _take_up() -> None:
    """Put the options of a run that is resumed before those of the command line, also in the record of that."""
    arguments = with_kept(sys.argv[1:])
    first = len(sys.orig_argv) - len(sys.argv) + 1
    sys.argv[1:] = sys.orig_argv[first:] = arguments


if __name__ == "__main__":
    main()
