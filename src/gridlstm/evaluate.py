"""Evaluate a checkpoint: ``python -m gridlstm.evaluate ckpt=outputs/…/checkpoints/best.ckpt split=test``."""

import json
import logging
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gridlstm.errors import UserError
from gridlstm.threads import wait_briefly

USAGE = """python -m gridlstm.evaluate ckpt=CHECKPOINT [split=val|test] [key=value …]

Evaluates a checkpoint on the task it was trained for and prints the metrics as JSON.

  ckpt    a file below a run directory, such as outputs/…/checkpoints/best.ckpt; its config.yaml describes the rest
  split   test (default), or val: the whole validation split, of which the run itself may use a part (val_symbols)
  key     any option of the run, such as task.data.batch_size=200, trainer.accelerator=gpu or task.path=other.txt"""


def load_config(checkpoint: Path, overrides: list[str]) -> DictConfig:
    """The configuration of the run that wrote a checkpoint, with other options.

    Raises:
        UserError: there is no such checkpoint or option, or no run directory above it.
    """
    from gridlstm.runtime.preflight import run_directory

    if not checkpoint.is_file():
        raise UserError(f"ckpt={checkpoint} is no file. Give a checkpoint, such as outputs/…/checkpoints/best.ckpt.")
    if (directory := run_directory(checkpoint)) is None:
        raise UserError(f"no config.yaml lies above {checkpoint}: a checkpoint is evaluated inside its run directory.")
    source = directory / "config_source.yaml"  # in which task.path still reaches task.data.path
    if not source.is_file():
        raise UserError(
            f"{source} is missing: it stands beside config.yaml in every run directory, so restore it there."
        )
    config = OmegaConf.load(source)
    assert isinstance(config, DictConfig)
    OmegaConf.set_struct(config, True)
    try:
        config.merge_with_dotlist(overrides)
    except OmegaConfBaseException as error:
        raise UserError(f"{str(error).splitlines()[0]}. Options are those of {directory}/config.yaml.") from error
    return config


def evaluate(checkpoint: Path, split: str, overrides: list[str]) -> dict[str, float]:
    """Metrics of a checkpoint.

    Args:
        checkpoint: inside its run directory.
        split: "val" or "test".
        overrides: dotted ``key=value``, of options that the run has.

    Raises:
        UserError: no such checkpoint, split or option, or weights that do not fit.
    """
    if split not in ("val", "test"):
        raise UserError(f"split must be val or test, got {split!r}.")
    # Imported here, so that --help need not wait for torch.
    import torch

    from gridlstm.runtime.build import build
    from gridlstm.runtime.job import quiet
    from gridlstm.runtime.record import metrics

    config = load_config(checkpoint, overrides)
    config.logger = None
    config.callbacks = {name: node for name, node in (config.callbacks or {}).items() if name == "progress"}
    config.trainer.enable_checkpointing = False
    quiet()
    run = build(config)
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    run.data.load_state_dict(content[type(run.data).__qualname__])  # refuses another vocabulary
    try:
        run.task.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise UserError(f"the weights do not fit a model of these sizes: {error}") from error
    go = run.trainer.validate if split == "val" else run.trainer.test
    go(run.task, run.data, verbose=False)
    return {name: value for name, value in metrics(run).items() if name.startswith(f"{split}/")}


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        sys.exit(USAGE) if not arguments else print(USAGE)
        return
    wait_briefly()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # on stderr: stdout is the JSON's
    try:
        if bad := [a for a in arguments if "=" not in a]:
            raise UserError(f"expected key=value, got {bad[0]!r}.\n\n{USAGE}")
        given = dict(a.split("=", 1) for a in arguments)
        if "ckpt" not in given:
            raise UserError(f"ckpt must be given.\n\n{USAGE}")
        checkpoint, split = Path(given.pop("ckpt")), given.pop("split", "test")
        print(json.dumps(evaluate(checkpoint, split, [f"{key}={value}" for key, value in given.items()]), indent=2))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
