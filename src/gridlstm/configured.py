"""Numbers of a module that are configured instead of learned. A state_dict stores them as metadata, not as tensors."""

from typing import Any

from torch import nn

from gridlstm.errors import UserError


class Configured(nn.Module):
    """Keeps configured numbers out of its tensors, and rejects weights that were trained with other numbers.

    This keeps the numbers exact in every precision, on every device and on the meta device. A state_dict stores them in
    its ``_metadata`` and its keys do not change; a state_dict without them is loaded unchecked.
    """

    def configured(self) -> dict[str, Any]:
        """Return names and plain values of settings that change the results and are in no tensor."""
        raise NotImplementedError(f"{type(self).__name__} must define configured")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        getattr(destination, "_metadata", {}).get(prefix[:-1], {})["configured"] = self.configured()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        saved = local_metadata.get("configured", {})
        for name, own in self.configured().items():
            if saved.get(name, own) != own:
                raise UserError(
                    f"{prefix[:-1] or type(self).__name__}: the weights were trained with {name} {saved[name]}. "
                    f"Expected {own}, as in this network. Build it with the options that the weights were trained with."
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
