"""Launchers; Hydra finds them only in packages of the ``hydra_plugins`` namespace."""
