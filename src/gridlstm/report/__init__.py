"""``python -m gridlstm.report multirun/EXPERIMENT/TIME``: write tables, curves and a web page on the runs of sweeps."""
