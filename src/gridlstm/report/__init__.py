"""``python -m gridlstm.report multirun/EXPERIMENT/SWEEP``: tables, curves and a web page on the runs of sweeps."""
