"""Print the commands of the package: ``python -m gridlstm``."""

import sys

COMMANDS = {
    "train": "train and test a model on a task: model=grid2d task=memorization",
    "evaluate": "evaluate a checkpoint: ckpt=outputs/…/best.ckpt split=test",
    "sample": 'let a language model write: ckpt=outputs/…/best.ckpt prime="The "',
    "translate": 'translate sentences: ckpt=outputs/…/best.ckpt "Ein Hund bellt."',
    "average": "average the last checkpoints of a run: ckpt=outputs/…/RUN",
    "report": "put the runs of a sweep into tables, curves and one page: multirun/…",
    "look": "draw gradients, memory cells and gates of a network: what=gradients model=grid2d",
    "dashboard": "make a W&B workspace of a sweep: multirun/…",
    "publish": "export a network as files for other people: ckpt=outputs/…/best.ckpt out=DIRECTORY",
    "list": "list models, their tasks, parameters and FLOPs",
    "bench": "measure the speed of the sweeps on this machine",
    "verify": "compare the fast sweeps with the equations in plain loops on random networks",
    "doctor": "report what this machine will use and what is missing",
}


def main() -> None:
    """Print every command with its purpose and its options.

    Raises:
        SystemExit: there are arguments, which belong to one of the commands.
    """
    width = max(map(len, COMMANDS))
    lines = [f"  python -m gridlstm.{name:<{width}}  {what}" for name, what in COMMANDS.items()]
    text = "\n".join(["Grid LSTM as a layer and as an experiment suite. Commands:", *lines, "Options: --help of each."])
    if len(sys.argv) > 1 and sys.argv[1] not in ("-h", "--help"):
        name = sys.argv[1] if sys.argv[1] in COMMANDS else "train"
        sys.exit(f"error: python -m gridlstm takes no arguments. Type python -m gridlstm.{name} …\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
