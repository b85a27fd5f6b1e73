"""Train a model on a task: ``python train.py model=grid2d task=memorization``. ``--help`` lists what there is.

Read the code in this order: src/gridlstm/cell.py (the paper's equations), scan.py (the reference sweep), grid.py,
models/grid2d.py, data/memorization.py, tasks/base.py, training/build.py (the wiring), training/job.py (the stages of a
run).
"""

from gridlstm.train import main

if __name__ == "__main__":
    main()
