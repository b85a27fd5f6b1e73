"""The training command: ``python train.py``, or where only the wheel is installed, ``python -m gridlstm.train``."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gridlstm.command import prepare
from gridlstm.config import CONF, MATRIX, as_typed
from gridlstm.errors import UserError, did_you_mean
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


def explain(error: Exception, arguments: list[str]) -> str:
    """Hydra's message without its advice to force unknown options in, and with the nearest valid names."""
    message = str(error).split("\nConfig search path:")[0].strip()
    if found := re.search(r"Could not override '([^']+)'", message):
        return _unknown_option(found.group(1), arguments)
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", message):
        group, name = found.groups()
        if group.startswith("experiment/"):  # whose files lie in directories, and which is one group all the same
            group, _, directory = group.partition("/")
            name = f"{directory}/{name}"
        choices = sorted({name for conf in (CONF, *_config_dirs(arguments)) for name in _group_options(conf, group)})
        return f"{group}={name} does not exist.{did_you_mean(name, choices)}\nChoices of {group}: {', '.join(choices)}"
    if "override_grammar" in message and (wrong := next(filter(_unreadable, arguments), None)) is not None:
        key, _, value = wrong.partition("=")
        return f"{wrong} cannot be read. A value like this one is written in quotes: {as_typed(key, value)}"
    if found := re.search(r"Missing mandatory value: (\S+)", message):
        return f"{found.group(1)} must be given: {found.group(1)}=…"
    return f"{message}\nSee python train.py --help, or --cfg job for every option with its value."


def _unreadable(argument: str) -> bool:
    """Whether an argument gives text to an option, but not in Hydra's grammar."""
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return re.match(r"[\w.@+~/-]+=[^\[{]", argument) is not None
    return False


def _unknown_option(key: str, arguments: list[str]) -> str:
    if key.startswith("experiment/"):
        named = next((word for word in arguments if word.lstrip("+").startswith(f"{key}=")), f"{key}=…")
        return f"{named} names no group: give experiment={named.partition('/')[2].replace('=', '/')}."
    name = key.split("@")[0]
    keys = list(_keys(_default_config(arguments, with_hydra=key.startswith("hydra."))))
    if key in keys:  # but not with a choice that is swept over, or that is of the user's own
        return f"there is no option {key} with some of the choices made here. Run those that have it by themselves."
    node, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    chosen = any(name in argument for argument in arguments if argument.startswith("callbacks="))  # then it is misspelt
    if node == "callbacks" and not chosen and (CONF / node / f"{name}.yaml").is_file():
        return f"there is no option {key} without callbacks=[default,{name}]: add it."
    groups = [str(path.relative_to(CONF)) for path in CONF.rglob("*") if path.is_dir()]
    # A misspelt last part is found among the options of its node, and anything else among all of them.
    parent = key.rpartition(".")[0]
    siblings = [k for k in keys if parent and k.startswith(parent + ".") and "." not in k[len(parent) + 1 :]]
    hint = did_you_mean(key, siblings) or did_you_mean(key, [*keys, *groups])
    listing = f"\nOptions of {parent}: {', '.join(k.rpartition('.')[2] for k in siblings)}" if siblings else ""
    groups_line = f"\nGroups: {', '.join(sorted(groups))}" if "." not in name else ""
    everything = "\nAll options with their values: python train.py --cfg job"
    return f"there is no option {key}.{hint}{listing}{groups_line}{everything}"


def _config_dirs(arguments: Sequence[str]) -> Iterator[Path]:
    """Yield the user's own directories of configuration."""
    for flag, following in pairwise([*arguments, ""]):
        name, _, value = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            yield Path(value or following)


def _group_options(conf: Path, group: str) -> Iterator[str]:
    files = (conf / group).rglob("*.yaml") if group == "experiment" else (conf / group).glob("*.yaml")
    yield from (str(path.relative_to(conf / group).with_suffix("")) for path in files)


def _default_config(arguments: list[str], with_hydra: bool) -> DictConfig:
    """The configuration with those group choices of the command line that exist."""
    choices = []
    for argument in arguments:
        group, _, name = argument.partition("=")
        if (CONF / group / f"{name}.yaml").is_file():
            choices.append(argument)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", choices, return_hydra_config=with_hydra)


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in map(str, node):
        key = f"{prefix}{name}"
        yield key
        child = None if OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name) else node[name]
        if isinstance(child, DictConfig):
            yield from _keys(child, key + ".")


if __name__ == "__main__":
    main()
