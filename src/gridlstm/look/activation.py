"""The 1-LSTM as an activation function: h' of one unit against its h, for several m (section 3, N = 1)."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.cell import LSTM
from gridlstm.errors import UserError
from gridlstm.files import write_csv, write_png

RANGE, POINTS = 5.0, 201
DRAWS = 4


def responses(weights: Tensor, memory: Tensor, h: Tensor, cell: LSTM) -> Tensor:
    """Return h' (len(memory), len(h)) of a single unit: (h', m') = LSTM(h, m, W) with W (4,) = (w_u, w_f, w_o, w_c).

    For the paper's cell h' = tanh(sigma(w_o h) (sigma(w_f h + b) m + sigma(w_u h) tanh(w_c h))), b the forget bias.
    """
    grid_m, grid_h = torch.meshgrid(memory, h, indexing="ij")
    column = grid_h.reshape(-1, 1)
    z = F.linear(column, weights[:, None], cell.constant_bias(1, column))
    return cell.pointwise(z, column, grid_m.reshape(-1, 1)).h.view_as(grid_h)


def panels(weights: Sequence[float] | None, seed: int) -> list[Tensor]:
    """Return the given weights, or four sets drawn from a normal distribution.

    Raises:
        UserError: if there are not four weights.
    """
    if weights is None:
        return list(torch.randn(DRAWS, 4, generator=torch.Generator().manual_seed(seed)) * 2)
    if len(weights) != 4:
        raise UserError(f"weights must be four numbers, of u, f, o and c, got {len(weights)}.")
    return [torch.tensor(weights)]


def write(drawn: Sequence[Tensor], memory: Sequence[float], out: Path) -> list[Path]:
    """Write activation.csv and activation.png for the paper's cell without forget bias."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    h = torch.linspace(-RANGE, RANGE, POINTS)
    rows: list[tuple[object, ...]] = []
    figure = Figure(figsize=(4 * len(drawn), 3.6), layout="constrained")
    for axes, weights in zip(figure.subplots(1, len(drawn), squeeze=False, sharey=True)[0], drawn, strict=True):
        shown = " ".join(f"{weight:.3g}" for weight in weights.tolist())
        for k, (m, response) in enumerate(
            zip(memory, responses(weights, torch.tensor(memory), h, LSTM(forget_bias=0)), strict=True)
        ):
            axes.plot(h, response, color=colormaps["coolwarm"](k / max(1, len(memory) - 1)), label=f"m = {m:g}")
            rows += [(*weights.tolist(), m, *point) for point in zip(h.tolist(), response.tolist(), strict=True)]
        axes.set_title(f"$w_u, w_f, w_o, w_c$ = {shown}", fontsize="small")
        axes.set_xlabel("h")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("h'")
    figure.axes[0].legend(fontsize="x-small")
    paths = [out / "activation.csv", out / "activation.png"]
    write_csv(paths[0], [("w_u", "w_f", "w_o", "w_c", "m", "h", "h'"), *rows])
    write_png(paths[1], figure)
    return paths
