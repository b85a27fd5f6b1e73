"""Early stopping: Lightning's callback with the options of the present run."""

from typing import Any

from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from gridlstm.errors import UserError


class EarlyStopping(LightningEarlyStopping):
    """Ends a run that has not improved for ``patience`` validations.

    A resumed run continues the count of its checkpoint, but with its own patience; Lightning's callback restores the
    patience of the checkpoint.

    Args:
        monitor: monitored metric.
        patience: number of validations, at least 1.
        min_delta: an improvement must exceed this, at least 0.
        options: other options of Lightning's callback.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(self, monitor: str, patience: int = 3, min_delta: float = 0.0, **options: Any) -> None:
        if patience < 1:
            raise UserError(f"callbacks.early_stopping.patience must be at least 1, got {patience}.")
        if min_delta < 0:
            raise UserError(
                f"callbacks.early_stopping.min_delta must be at least 0, got {min_delta}: a worse value would count as "
                f"an improvement."
            )
        super().__init__(monitor, min_delta, patience, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})
