"""Early stopping: Lightning's callback, whose options are those of the run at hand."""

from typing import Any

from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping


class EarlyStopping(LightningEarlyStopping):
    """Ends a run that has not improved for ``patience`` validations.

    A resumed run goes on counting where its checkpoint was, with the patience that it is given; Lightning's callback
    takes back the checkpoint's.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})
