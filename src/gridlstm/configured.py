"""Numbers of a module that are configured and not learned: no tensor holds them, a state_dict says them beside."""

from typing import Any

from torch import nn

from gridlstm.errors import UserError


class Configured(nn.Module):
    """Keeps configured numbers out of its tensors, and refuses weights that were trained with others.

    So they are exact in every precision, on every device, and in modules that are built without memory. A state_dict
    carries them in its ``_metadata``, with the keys of the learned tensors as they are; one without is loaded as it is.
    """

    def configured(self) -> dict[str, Any]:
        """Return names and plain values of what changes the results and is in no tensor."""
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
                    f"Expected {own}, as this network has. Build it with the options that they were trained with."
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
