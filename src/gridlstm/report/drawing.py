"""Names, legends and scales that the pictures share."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS = "model.num_layers"
SIZES = {LAYERS: "layers", "task.delay": "delay", "task.bits": "bits", "task.digits": "digits"}
"""Options against which runs are drawn if they vary, with their names in pictures."""

_CHOICES = ("task", "model")
"""Groups of which a picture names the choice alone."""

_WIDE = 10
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


def short_names(options: Iterable[str]) -> dict[str, str]:
    """Return the name of each option in a picture: without its path, unless two options would have the same name."""
    names = {option: SIZES.get(option, option.rpartition(".")[2]) for option in options}
    uses = Counter(names.values())
    return {option: name if uses[name] == 1 else option for option, name in names.items()}


def labeled(settings: Mapping[str, str], names: Mapping[str, str]) -> str:
    """Return settings as a label, such as "grid2d, layers=43, tied=true"; ``names`` are those of ``short_names``."""
    parts = [value if key in _CHOICES else f"{names.get(key, key)}={value}" for key, value in settings.items()]
    return drawn(", ".join(parts))


def drawn(label: str) -> str:
    """Escape $ for a picture, where matplotlib would read the text between two of them as a formula."""
    return label.replace("$", r"\$")


def wide(values: Iterable[float]) -> bool:
    """Return True if values are positive and so far apart that the small ones need a logarithmic axis."""
    found = list(values)
    return bool(found) and 0 < _WIDE * min(found) < max(found)


def one_legend(
    figure: "Figure", place: Literal["outside upper center", "outside lower center"], **options: Any
) -> None:
    """Draw one legend above or below all panels, with every label once."""
    pairs = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    found = {label: handle for handle, label in pairs}
    figure.legend(list(found.values()), list(found), loc=place, **options)
