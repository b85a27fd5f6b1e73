"""The form of the report's pictures."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(figure: "Figure") -> bytes:
    """The figure as a PNG of 100 dots an inch, with all that stands beside its axes."""
    out = io.BytesIO()
    figure.savefig(out, dpi=100, format="png", bbox_inches="tight")
    return out.getvalue()
