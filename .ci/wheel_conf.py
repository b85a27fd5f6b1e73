"""Build hook: an installed wheel carries conf/ as gridlstm/conf, where gridlstm.train looks for it.

An editable install reads the repository's conf/ itself, so a copy there would only go stale.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelConf(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"]["conf"] = "gridlstm/conf"
