"""Hydra's errors about a command line, rewritten for the user."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from gridlstm.config import CONF, as_typed
from gridlstm.errors import did_you_mean


def explain(error: Exception, arguments: list[str]) -> str:
    """Return Hydra's message without its advice to force unknown options in, and with the closest valid names."""
    message = str(error).split("\nConfig search path:")[0].strip()
    if found := re.search(r"Could not override '([^']+)'", message):
        return _unknown_option(found.group(1), arguments)
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", message):
        group, name = found.groups()
        if group.startswith("experiment/"):  # one group, although its files lie in subdirectories
            group, _, directory = group.partition("/")
            name = f"{directory}/{name}"
        choices = sorted({name for conf in (CONF, *_config_dirs(arguments)) for name in _group_options(conf, group)})
        return f"{group}={name} does not exist.{did_you_mean(name, choices)}\nChoices of {group}: {', '.join(choices)}"
    if "override_grammar" in message and (wrong := next(filter(_unreadable, arguments), None)) is not None:
        key, _, value = wrong.partition("=")
        return f"{wrong} cannot be parsed. Quote this value: {as_typed(key, value)}"
    if found := re.search(r"Missing mandatory value: (\S+)", message):
        return f"a value is missing. Give {found.group(1)}=…"
    if "object_type=list" in str(error.__cause__):
        wrong = message.removeprefix("Error merging override ")
        return f"{wrong} is not a list. Give {wrong.partition('=')[0]}=[…]."
    return f"{message}\nSee python train.py --help, or --cfg job for every option and its value."


def _unreadable(argument: str) -> bool:
    """Return True if an argument assigns text to an option, but not in Hydra's grammar."""
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return re.match(r"[\w.@+~/-]+=[^\[{]", argument) is not None
    return False


def _unknown_option(key: str, arguments: list[str]) -> str:
    if key.startswith("experiment/"):
        named = next((word for word in arguments if word.lstrip("+").startswith(f"{key}=")), f"{key}=…")
        return f"{named} is not a group. Use experiment={named.partition('/')[2].replace('=', '/')}."
    parent = key.rpartition(".")[0]
    for replaced, word in ((key, f"{key}={{"), (parent, f"{parent}._target_=")):
        if any(argument.startswith(word) for argument in arguments):
            return (
                f"{replaced} has options of its own, and {word}… gives it those of another class beside them. Replace "
                f'them together: ~{replaced} "+{replaced}={{_target_:CLASS,OPTION:VALUE}}"'
            )
    name = key.split("@")[0]
    keys = list(_keys(_default_config(arguments, with_hydra=key.startswith("hydra."))))
    if key in keys:  # a swept choice, or one of the user's own, lacks the option
        return f"{key} does not exist for every choice of this command. Run the choices that have it separately."
    node, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    # If the callback is chosen, the rest of the key is misspelt.
    chosen = any(name in argument for argument in arguments if argument.startswith("callbacks="))
    if node == "callbacks" and not chosen and (CONF / node / f"{name}.yaml").is_file():
        return f"{key} needs a callback that is not chosen. Add callbacks=[default,{name}]."
    groups = [str(path.relative_to(CONF)) for path in CONF.rglob("*") if path.is_dir()]
    # Search the options of the same node for a misspelt last part, then all options.
    siblings = [k for k in keys if parent and k.startswith(parent + ".") and "." not in k[len(parent) + 1 :]]
    hint = did_you_mean(key, siblings) or did_you_mean(key, [*keys, *groups])
    listing = f"\nOptions of {parent}: {', '.join(k.rpartition('.')[2] for k in siblings)}" if siblings else ""
    groups_line = f"\nGroups: {', '.join(sorted(groups))}" if "." not in name else ""
    everything = "\nAll options with their values: python train.py --cfg job"
    return f"there is no option {key}.{hint}{listing}{groups_line}{everything}"


def _config_dirs(arguments: Sequence[str]) -> Iterator[Path]:
    """Yield the user's own configuration directories."""
    for flag, following in pairwise([*arguments, ""]):
        name, _, value = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            yield Path(value or following)


def _group_options(conf: Path, group: str) -> Iterator[str]:
    files = (conf / group).rglob("*.yaml") if group == "experiment" else (conf / group).glob("*.yaml")
    yield from (str(path.relative_to(conf / group).with_suffix("")) for path in files)


def _default_config(arguments: list[str], with_hydra: bool) -> DictConfig:
    """Return the configuration with the existing group choices of the command line."""
    choices = []
    for argument in arguments:
        group, _, name = argument.partition("=")
        swept = "," in name  # joined, the choices may be longer than a file's name
        if not swept and (CONF / group.partition("@")[0] / f"{name}.yaml").is_file():  # transform@model.depth=gru
            choices.append(argument)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return hydra.compose("train", choices, return_hydra_config=with_hydra)
        except HydraException:  # the place of a choice is misspelt, such as transform@model.depht=gru
            choices = [choice for choice in choices if "@" not in choice.partition("=")[0]]
            return hydra.compose("train", choices, return_hydra_config=with_hydra)


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in map(str, node):
        key = f"{prefix}{name}"
        yield key
        child = None if OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name) else node[name]
        if isinstance(child, DictConfig):
            yield from _keys(child, key + ".")
