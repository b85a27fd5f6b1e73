"""The training command: ``python train.py``, or ``python -m gridlstm.train`` if only the wheel is installed."""

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
from yaml import YAMLError

from gridlstm.command import is_unknown_home, prepare
from gridlstm.config import CONF, MATRIX
from gridlstm.errors import UserError
from gridlstm.explain import explain
from gridlstm.training.arguments import with_home, with_kept
from gridlstm.training.validate import check_start

_SHOWING = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version"}
"""Hydra flags that print something and run nothing."""

# Used only by --help.
OmegaConf.register_new_resolver("gridlstm.models", MATRIX.read_text, replace=True)


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
def _job(cfg: DictConfig) -> float:
    try:
        check_start(cfg)
        # Imported here, so that --help, --cfg and a misspelt option do not wait for torch.
        from gridlstm.training.job import run_job

        return run_job(cfg)
    except (UserError, OmegaConfBaseException) as error:
        if HydraConfig.get().mode == RunMode.RUN:
            if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun's ranks share the directory and may start later
                _remove_empty(Path(HydraConfig.get().runtime.output_dir))
            reason = error if isinstance(error, UserError) else explain(error, sys.argv[1:])
            sys.exit(f"error: {reason}")  # a raised error would make Hydra print the command line's options too
        raise


def _remove_empty(directory: Path) -> None:
    """Remove the directory of a run that did not start, if it contains only Hydra's own files."""
    if {path.name for path in directory.iterdir()} <= {".hydra", "train.log"}:
        shutil.rmtree(directory)
        for parent in directory.parents:
            if not parent.is_relative_to(Path.cwd() / "outputs") or any(parent.iterdir()):
                break
            parent.rmdir()


def main() -> None:
    """Run the command line; print a user error as one message on stderr and exit with status 1."""
    # With this, Hydra passes exceptions on instead of printing half a traceback and hiding their type.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    prepare()
    if _SHOWING.intersection(sys.argv):  # end quietly if a reader such as head closes the pipe; no run is lost
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
    except RuntimeError as error:
        if not is_unknown_home(error):
            raise
        sys.exit(f"error: {error} Write the path without ~.")
    except YAMLError as error:
        sys.exit(f"error: a YAML file cannot be read: {error}")
    except OSError as error:
        sys.exit(f"error: {error}. A run writes into hydra.run.dir, by default below ./outputs.")
    except ValueError as error:
        if "Config group override must be" not in str(error):
            raise
        sys.exit("error: a group cannot be null. Remove single nodes instead, such as callbacks.learning_curve=null.")


def _take_up() -> None:
    """Prepend the stored options of a resumed run to the command line, in sys.argv and sys.orig_argv."""
    arguments = with_kept([with_home(word) for word in sys.argv[1:]])
    first = len(sys.orig_argv) - len(sys.argv) + 1
    sys.argv[1:] = sys.orig_argv[first:] = arguments


if __name__ == "__main__":
    main()
