"""The fast sweeps. ``gridlstm.scan`` is what they must equal; nothing outside needs more of them than ``dispatch``."""
