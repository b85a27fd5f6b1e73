"""``python -m gridlstm.report multirun/EXPERIMENT/TIME``: tables, curves and a page of what sweeps have found."""
