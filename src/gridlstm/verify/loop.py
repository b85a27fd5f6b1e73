"""A second implementation of the equations of all cells and the order of a grid, one block after the other.

It uses only the package's configuration classes, so that a mistake in ``scan``, ``cell`` or ``cells`` shows too.
Autograd computes the gradients.

Shape legend: N dimensions, B batch rows, d size of a dimension, D = the sum of all sizes.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from gridlstm.cell import LSTM, Cell
from gridlstm.cells import GRU, CoupledLSTM, Highway, LayerNormLSTM, NonLSTM, PeepholeLSTM
from gridlstm.grid import Dimension
from gridlstm.scan import Masks

Place = tuple[int, ...]
Pair = tuple[Tensor, Tensor]
"""h and m."""
Product = Callable[[Tensor, Tensor], Tensor]
"""H (B, D), W (rows, D) -> H W^T (B, rows)"""
Parameters = Mapping[str, Tensor]
"""Weight, bias and vectors of one transform at one position."""


def plain_product(H: Tensor, W: Tensor) -> Tensor:
    """Return the product in the type of its factors."""
    return torch.einsum("bi,ji->bj", H, W)


def lowered_product(H: Tensor, W: Tensor) -> Tensor:
    """Return the product of factors rounded to bfloat16, itself rounded to bfloat16, as under autocast."""
    return torch.einsum("bi,ji->bj", H.bfloat16(), W.bfloat16()).float()


def step(cell: Cell, own: slice, p: Parameters, H: Tensor, h: Tensor, m: Tensor, multiply: Product) -> Pair:
    """Return h' and m' of one transform.

    Args:
        own: the columns of H that hold h.
    """
    d = h.shape[1]
    if isinstance(cell, GRU):
        return _gru(cell, own, p, H, h, multiply), m
    z = multiply(H, p["weight"])
    if "bias" in p:
        z = z + p["bias"]
    if isinstance(cell, NonLSTM):
        return _activate(cell.activation, z), m
    if isinstance(cell, Highway):
        t = torch.sigmoid(z[:, :d])
        return t * _activate(cell.activation, z[:, d:]) + (1 - t) * h, m
    assert isinstance(cell, LSTM)
    constant = 0.0 if cell.bias or isinstance(cell, LayerNormLSTM) else cell.forget_bias
    if isinstance(cell, CoupledLSTM):
        f, o, c = torch.sigmoid(z[:, :d] + constant), torch.sigmoid(z[:, d : 2 * d]), torch.tanh(z[:, 2 * d :])
        new_m = f * m + (1 - f) * c
        return _output(cell, o, new_m), new_m
    z_u, z_f, z_o, z_c = z[:, :d], z[:, d : 2 * d] + constant, z[:, 2 * d : 3 * d], z[:, 3 * d :]
    if isinstance(cell, PeepholeLSTM):
        peepholes = {gate: p["peephole"][k * d : (k + 1) * d] for k, gate in enumerate(cell.peepholes)}
        z_u = z_u + peepholes.get("u", 0) * m
        z_f = z_f + peepholes.get("f", 0) * m
        new_m = torch.sigmoid(z_f) * m + torch.sigmoid(z_u) * torch.tanh(z_c)
        return _output(cell, torch.sigmoid(z_o + peepholes.get("o", 0) * new_m), new_m), new_m
    if isinstance(cell, LayerNormLSTM):
        normal = [
            p["gain"][k * d : (k + 1) * d] * _standardized(x, cell.epsilon) + p["shift"][k * d : (k + 1) * d]
            for k, x in enumerate((z_u, z_f, z_o, z_c))
        ]
        z_u, z_f, z_o, z_c = normal
    new_m = torch.sigmoid(z_f) * m + torch.sigmoid(z_u) * torch.tanh(z_c)
    seen = new_m
    if isinstance(cell, LayerNormLSTM):
        seen = p["gain"][4 * d :] * _standardized(new_m, cell.epsilon) + p["shift"][4 * d :]
    return _output(cell, torch.sigmoid(z_o), seen), new_m


def _output(cell: LSTM, o: Tensor, m: Tensor) -> Tensor:
    return torch.tanh(o * m) if cell.output == "paper" else o * torch.tanh(m)


def _activate(name: object, x: Tensor) -> Tensor:
    if callable(name):
        result = name(x)
        assert isinstance(result, Tensor)
        return result
    if name == "relu":
        return torch.where(x > 0, x, torch.where(x.isnan(), x, 0))
    return {"identity": x, "tanh": torch.tanh(x), "sigmoid": torch.sigmoid(x)}[str(name)]


def _standardized(x: Tensor, epsilon: float) -> Tensor:
    centred = x - x.sum(1, keepdim=True) / x.shape[1]
    return centred / ((centred * centred).sum(1, keepdim=True) / x.shape[1] + epsilon) ** 0.5


def _gru(cell: GRU, own: slice, p: Parameters, H: Tensor, h: Tensor, multiply: Product) -> Tensor:
    d = h.shape[1]
    W_r, W_s, W_n = (p["weight"][k * d : (k + 1) * d] for k in range(3))
    b_r, b_s, b_n, c_n = (p["bias"][k * d : (k + 1) * d] for k in range(4)) if cell.bias else (0, 0, 0, 0)
    others = [column for column in range(H.shape[1]) if not own.start <= column < own.stop]
    r, s = torch.sigmoid(multiply(H, W_r) + b_r), torch.sigmoid(multiply(H, W_s) + b_s)
    from_others = multiply(H[:, others], W_n[:, others]) + b_n
    n = torch.tanh(from_others + r * (multiply(H[:, own], W_n[:, own]) + c_n))
    return (1 - s) * n + s * h


def grid(
    dimensions: Sequence[Dimension],
    priority: Sequence[str],
    extents: Place,
    parameters: Mapping[str, Tensor],
    sides: Sequence[Pair],
    masks: Sequence[Masks] | None,
    multiply: Product = plain_product,
) -> list[Pair]:
    """Return the outputs of a grid along each dimension, computed recursively from the last blocks.

    Args:
        parameters: by the names of ``Grid``, such as "transforms.time.weight".
        sides: inputs along each dimension: h (*extents of the others, B, d) and m.
        masks: one per dimension, each of full size.
    """
    N, names = len(dimensions), [d.name for d in dimensions]
    ends = [sum(d.size for d in dimensions[: n + 1]) for n in range(N)]
    own = [slice(end - d.size, end) for end, d in zip(ends, dimensions, strict=True)]
    factors = [None] * N if masks is None else [mask.factor for mask in masks]
    made: dict[Place, list[Pair]] = {}

    def weights(n: int, place: Place) -> Parameters:
        source = dimensions[names.index(dimensions[n].shares or names[n])]
        at = () if source.tied else tuple(place[k] for k, d in enumerate(dimensions) if d.untied_extent is not None)
        prefix = f"transforms.{source.name}."
        return {
            name.removeprefix(prefix).removeprefix("vectors."): x[at]
            for name, x in parameters.items()
            if name.startswith(prefix)
        }

    def entering(place: Place, n: int) -> Pair:
        before = place[n] + (1 if dimensions[n].reverse else -1)
        if 0 <= before < extents[n]:
            return block((*place[:n], before, *place[n + 1 :]))[n]
        h, m = sides[n]
        return h[place[:n] + place[n + 1 :]], m[place[:n] + place[n + 1 :]]

    def block(place: Place) -> list[Pair]:
        if place in made:
            return made[place]
        came = [entering(place, n) for n in range(N)]
        result, hidden = list(came), [h for h, _ in came]
        for together in ([n for n in range(N) if names[n] not in priority], *([names.index(x)] for x in priority)):
            H = torch.cat([h if x is None else h * x[place] for h, x in zip(hidden, factors, strict=True)], dim=1)
            for n in together:
                h, m = step(dimensions[n].cell, own[n], weights(n, place), H, *came[n], multiply)
                if masks is not None:
                    h = _held_back(masks[n].keep_h, place, came[n][0], h)
                    m = _held_back(masks[n].keep_m, place, came[n][1], m)
                result[n] = h, m
            for n in together:
                hidden[n] = result[n][0]
        made[place] = result
        return result

    leaving: list[Pair] = []
    for n, dimension in enumerate(dimensions):
        last = 0 if dimension.reverse else extents[n] - 1
        rests = list(product(*(range(e) for k, e in enumerate(extents) if k != n)))
        ends_here = [block((*rest[:n], last, *rest[n:]))[n] for rest in rests]
        h, m = (torch.stack([pair[k] for pair in ends_here]).view(sides[n][k].shape) for k in range(2))
        leaving.append((h, m))
    return leaving


def _held_back(keep: Tensor | None, place: Place, old: Tensor, new: Tensor) -> Tensor:
    if keep is None:
        return new
    k = keep[place]
    return torch.where(k, old, new) if k.dtype == torch.bool else k * old + (1 - k) * new


def stacked(
    cell: Cell,
    num_layers: int,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    state: Pair,
    multiply: Product = plain_product,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output (B, T, d) and the last h and m (L, B, ...) of a stacked LSTM.

    Args:
        parameters: by the names of ``StackedLSTM``; without an axis for layers if these are tied.
        x: (B, T) symbols.
    """
    d = state[0].shape[2]
    layers = {name.removeprefix("layers."): p for name, p in parameters.items() if name.startswith("layers.")}
    axes = layers["weight"].dim() - 2
    h, m = ([vectors[k] for k in range(num_layers)] for vectors in state)
    outputs = []
    for t in range(x.shape[1]):
        below = parameters["input.weight"][x[:, t]]
        for k in range(num_layers):
            p = {name.removeprefix("vectors."): each[k] if axes else each for name, each in layers.items()}
            H = torch.cat([below, h[k]], dim=1)
            h[k], m[k] = step(cell, slice(d, 2 * d), p, H, h[k], m[k], multiply)
            below = h[k]
        outputs.append(below)
    return torch.stack(outputs, 1), torch.stack(h), torch.stack(m)
