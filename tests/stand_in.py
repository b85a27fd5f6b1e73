"""A stand-in for the recorder of CUDA graphs, on machines without a GPU."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class StandIn:
    """Computes again on the same tensors what a GPU would replay."""

    made = 0

    def __init__(self, device: torch.device) -> None:
        StandIn.made += 1

    def warm_up(self, run: Callable[[], object]) -> None:
        run()

    def record(self, run: Callable[[], Sequence[Tensor | None]]) -> tuple[list[Tensor | None], Callable[[], None]]:
        results, trains = [None if x is None else x.detach().clone() for x in run()], torch.is_grad_enabled()

        def replay() -> None:
            with torch.inference_mode(False), torch.set_grad_enabled(trains):
                for own, x in zip(results, run(), strict=True):
                    if own is not None and x is not None:
                        own.copy_(x.detach())

        return results, replay
