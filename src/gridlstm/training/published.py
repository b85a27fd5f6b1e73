"""Check an experiment's published numbers and claims, which the report shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gridlstm
from gridlstm.errors import UserError

_NODES = ("paper", "recalled", "published", "claims", "points", "curve")
_FILES = Path(gridlstm.__file__).parent / "report" / "published"
_CLAIM = ("claim", "there", "of")


def check_report(node: Any, file: str = "") -> None:
    """Check the ``report`` node of a configuration (conf/train.yaml).

    Args:
        node: the node.
        file: its file, for the message.

    Raises:
        UserError: a part is missing or has the wrong type.
    """
    where = f"{file}: report" if file else "report"
    _check(isinstance(node, Mapping), f"{where} must be {', '.join(_NODES)} with their values, got {node!r}")
    for name in node:
        _check(name in _NODES, f"{where}.{name} does not exist. Choices: {', '.join(_NODES)}")
    for metric, value in _mapping(node, "paper", where).items():
        key = f"{where}.paper.{metric}"
        for one in value.values() if isinstance(value, Mapping) else (value,):
            _check(one is None or _is_number(one), f"{key} must be a number, or one for each model, got {one!r}")
    published = _mapping(node, "published", where)
    for metric in published:
        for network, value in _mapping(published, metric, f"{where}.published").items():
            _check(_is_number(value), f"{where}.published.{metric} must be numbers, got {value!r} for {network}")
    for name in ("points", "curve"):
        if node.get(name) is not None and not published_file(str(node[name])).is_file():
            own = ", ".join(sorted(path.stem for path in _FILES.glob("*.csv")))
            raise UserError(f"{where}.{name}={node[name]} is not a file. Give the path of a CSV file, or one of {own}.")
    claims = _mapping(node, "claims", where)
    for name in claims:
        claim, key = _mapping(claims, name, f"{where}.claims"), f"{where}.claims.{name}"
        for part in _CLAIM:
            _check(claim.get(part) is not None, f"{key} needs {', '.join(_CLAIM)}, but has no {part!r}")
        for part in claim:
            _check(part in (*_CLAIM, "against"), f"{key}.{part} does not exist. Choices: {', '.join(_CLAIM)}, against")
        for part in ("of", "against"):
            options = str(claim.get(part) or "")
            right = all("=" in option for option in options.split())
            _check(right, f"{key}.{part} must be options such as model=grid2d model.num_layers=6, got {options}")


def published_file(name: str) -> Path:
    """Return the package's own file of published numbers with this name, or else the name as a path."""
    own = _FILES / f"{name}.csv"
    return own if own.is_file() else Path(name).expanduser()


def _mapping(node: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    found = node.get(name)
    _check(
        found is None or isinstance(found, Mapping), f"{where}.{name} must be names with their values, got {found!r}"
    )
    return found or {}


def _check(right: bool, message: str) -> None:
    if not right:
        raise UserError(f"{message}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
