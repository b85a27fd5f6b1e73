"""Early stopping: Lightning's callback, whose options are those of the run at hand."""

from typing import Any

from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from gridlstm.errors import UserError


class EarlyStopping(LightningEarlyStopping):
    """Ends a run that has not improved for ``patience`` validations.

    A resumed run goes on counting where its checkpoint was, with the patience that it is given; Lightning's callback
    takes back the checkpoint's.

    Args:
        monitor: the metric.
        patience: at least 1.
        min_delta: what counts as an improvement is more than this, at least 0.
        options: others of Lightning's callback.

    Raises:
        UserError: a value out of range.
    """

    def __init__(self, monitor: str, patience: int = 3, min_delta: float = 0.0, **options: Any) -> None:
        if patience < 1:
            raise UserError(f"callbacks.early_stopping.patience must be at least 1, got {patience}.")
        if min_delta < 0:
            raise UserError(
                f"callbacks.early_stopping.min_delta must be at least 0, got {min_delta}: what is worse would count as "
                f"an improvement."
            )
        super().__init__(monitor, min_delta, patience, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})
