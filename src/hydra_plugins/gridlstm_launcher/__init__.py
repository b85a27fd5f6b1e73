"""Hydra finds launchers in packages of the ``hydra_plugins`` namespace alone."""
