"""Keep the engine's choices, which it measures on this machine, equal on all ranks and after a resume."""

from dataclasses import asdict
from typing import Any, Literal, get_args

import lightning as L
from lightning.pytorch.callbacks import Callback

from gridlstm.engine import choices, fused, graphs
from gridlstm.engine.fused import PointwiseStep
from gridlstm.engine.triton_step import check_triton
from gridlstm.errors import UserError, check_true_or_false


class EngineChoices(Callback):
    """Gives all ranks the choices of rank zero, and stores them in checkpoints for a resumed run.

    Two choices differ by float32 rounding, which is enough to make two runs diverge.

    Args:
        pointwise: pointwise step of LSTM cells: "fused" (C, on the CPU), "eager" (plain PyTorch), "triton" (a kernel,
            on a GPU, not measured yet) or "auto": "fused" if it can be built. It takes precedence over a checkpoint's.
        cuda_graphs: record the kernels of each sweep on a GPU and start them by one call, not measured yet.
    """

    def __init__(self, pointwise: PointwiseStep | Literal["auto"] = "auto", cuda_graphs: bool = False) -> None:
        check_true_or_false(cuda_graphs=cuda_graphs)
        if pointwise not in (names := ("auto", *get_args(PointwiseStep))):
            raise UserError(f"pointwise must be one of {', '.join(names)}, got {pointwise!r}.")
        self.pointwise: PointwiseStep | Literal["auto"] = pointwise
        self.cuda_graphs = cuda_graphs

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # A machine without a GPU may compose the job or evaluate the trained network.
        if self.pointwise == "triton" and stage == "fit":
            check_triton("callbacks.engine_choices.pointwise=triton", trainer.strategy.root_device)
        if self.cuda_graphs and stage == "fit":
            graphs.check_graphs(trainer.strategy.root_device)
            if trainer.world_size > 1:
                raise UserError(
                    f"{graphs.OPTION} has not been tried with several processes, got {trainer.world_size}. Remove the "
                    f"option, or use trainer.devices=1 trainer.num_nodes=1."
                )
        graphs.force_graphs(self.cuda_graphs)
        if self.pointwise != "auto":
            fused.force_pointwise_step(self.pointwise)
        if trainer.world_size > 1:
            self.load_state_dict(trainer.strategy.broadcast(self.state_dict()))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.cuda_graphs:
            graphs.recordings.clear()

    def state_dict(self) -> dict[str, Any]:
        return asdict(choices.current())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = {} if self.pointwise == "auto" else {"pointwise": self.pointwise}
        choices.force(choices.Choices(**(state_dict | own)))
