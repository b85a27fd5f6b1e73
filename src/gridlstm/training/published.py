"""Check an experiment's published numbers and claims, which the report shows, and read its published figures.

An experiment names a CSV file in ``report.points``, with the columns network, at_least, SIZE and samples, or in
``report.curve``, with network, samples and one or more METRICS. A network is a list of options that a run must have,
such as "model=grid2d model.tied=true task.length=20"; SIZE is an option such as model.num_layers.
"""

import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gridlstm
from gridlstm.errors import UserError

_NODES = ("paper", "recalled", "published", "claims", "points", "curve")
_FILES = Path(gridlstm.__file__).parent / "report" / "published"
_CLAIM = ("claim", "there", "of")
_POINT = ("network", "at_least", "samples")
_CURVE = ("network", "samples")


class PublishedPoint(NamedTuple):
    """Samples after which a published network of some size reached a threshold."""

    network: str
    at_least: float
    size: float
    samples: float


class PublishedPoints(NamedTuple):
    """Points of a published figure, and the option that is their size."""

    option: str
    points: list[PublishedPoint]


class PublishedCurve(NamedTuple):
    """Learning curve of a published network: samples, and each metric's values."""

    network: str
    samples: list[float]
    metrics: dict[str, list[float]]


def check_report(node: Any, file: str = "", read_files: bool = True) -> None:
    """Check the ``report`` node of a configuration (conf/train.yaml).

    Args:
        node: the node.
        file: its file, for the message.
        read_files: check the files of published figures too.

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
    readers: dict[str, Callable[[str], object]] = {"points": read_points, "curve": read_curves}
    for name, read in readers.items() if read_files else ():
        if node.get(name) is not None:
            read(str(node[name]))
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


def read_points(name: str) -> PublishedPoints:
    """Return the points of ``report.points``: a CSV file, or the name of one of the package's.

    Raises:
        UserError: the file is missing or lacks a column, or a number is none.
    """
    rows = _rows("report.points", name, _POINT, "an option such as model.num_layers")
    (option,) = rows[0].keys() - {*_POINT}
    return PublishedPoints(
        option, [PublishedPoint(row["network"], row["at_least"], row[option], row["samples"]) for row in rows]
    )


def read_curves(name: str) -> list[PublishedCurve]:
    """Return the curves of ``report.curve``: a CSV file, or the name of one of the package's.

    Raises:
        UserError: as for ``read_points``.
    """
    curves: dict[str, PublishedCurve] = {}
    for row in _rows("report.curve", name, _CURVE, "a metric such as val/accuracy"):
        curve = curves.setdefault(row["network"], PublishedCurve(row["network"], [], {}))
        curve.samples.append(row["samples"])
        for metric in row.keys() - {*_CURVE}:
            curve.metrics.setdefault(metric, []).append(row[metric])
    return list(curves.values())


def _rows(key: str, name: str, columns: tuple[str, ...], other: str) -> list[dict[str, Any]]:
    """Return the rows of a CSV file with these columns and others of numbers; only "network" is not a number."""
    own = _FILES / f"{name}.csv"
    path = own if own.is_file() else Path(name).expanduser()
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in _FILES.glob("*.csv")))
        raise UserError(f"{key}={name} is not a file. Give the path of a CSV file, or one of {names}.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, found = list(reader), [*(reader.fieldnames or ())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{key}={name} cannot be read as CSV: {error}.") from error
    right = rows and {*columns} < {*found} and (key == "report.curve" or len(found) == len(columns) + 1)
    if not right or len({*found}) < len(found):
        raise UserError(
            f"{key}={name} needs rows below a line with the columns {', '.join(columns)} and {other}, got "
            f"{', '.join(map(repr, found)) or 'no columns'} and {len(rows)} rows."
        )
    return [{column: _cell(row, column, f"{key}={name}, row {n}") for column in found} for n, row in enumerate(rows, 1)]


def _cell(row: Mapping[str, str | None], column: str, where: str) -> str | float:
    text = row[column]
    if column == "network":
        options = (text or "").split()
        _check(bool(options) and all("=" in x for x in options), f"{where}: network must be options, got {text!r}")
        return " ".join(options)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    _check(math.isfinite(number), f"{where}: {column} must be a number, got {text!r}")
    return number


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
