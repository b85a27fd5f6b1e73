"""Train a model on a task: ``python train.py model=grid2d task=memorization``. ``--help`` lists what there is.

README.md says in which order to read the code.
"""

from gridlstm.train import main

if __name__ == "__main__":
    main()
