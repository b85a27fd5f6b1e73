"""Write the mean of a run's last checkpoints as a checkpoint: ``python -m gridlstm.average ckpt=outputs/…/RUN``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gridlstm.command import Parser, checkpoint_paths, run_command
from gridlstm.errors import UserError
from gridlstm.files import check_different, replacing

PARSER = Parser(
    "average",
    """Write the mean of the weights of several checkpoints of one run as another checkpoint, which evaluate, translate,
sample, look and publish accept. A run keeps its last checkpoints with callbacks=[default,last_checkpoints].

The mean of weights from different runs is not a good network. Evaluate those checkpoints as an ensemble: ckpt=A,B.""",
    others="none",
)
PARSER.add_argument(
    "--ckpt",
    required=True,
    metavar="CHECKPOINT,…",
    help="two or more files of one run directory, or the directory itself, for its checkpoints/step-….ckpt",
)
PARSER.add_argument("--out", type=Path, metavar="FILE", help="inside the run directory (average.ckpt beside the first)")


def average(checkpoints: Sequence[Path], out: Path | None = None) -> Path:
    """Write a checkpoint with the mean of the weights of several checkpoints of one run; return its path.

    Floating-point weights and buffers are averaged in float64. Other buffers, such as counters, are copied from the
    latest checkpoint. The state of the training is left out, because an average cannot be resumed.

    Args:
        checkpoints: two or more files in one run directory.
        out: file in the same directory; None for average.ckpt beside the first checkpoint.

    Raises:
        UserError: there are fewer than two checkpoints, one is given twice, they come from different runs, networks or
            data sets, or ``out`` is not a .ckpt file in their run directory or would overwrite another checkpoint.
    """
    import torch

    from gridlstm.training.checkpoint import data_state, load_content, load_source

    if len(checkpoints) < 2:
        raise UserError(f"a mean needs two checkpoints or more, got {len(checkpoints)}. Give ckpt=A,B of one run.")
    check_different(checkpoints)
    configs = [load_source(checkpoint) for checkpoint in checkpoints]
    out = _checked_out(checkpoints, checkpoints[0].with_name("average.ckpt") if out is None else out)
    first: dict[str, Any] = {}
    latest: dict[str, Any] = {}
    total: dict[str, torch.Tensor] = {}
    steps: list[int] = []
    for checkpoint, config in zip(checkpoints, configs, strict=True):
        content = load_content(checkpoint)
        found = {
            "network": {name: (tuple(x.shape), str(x.dtype)) for name, x in content["state_dict"].items()},
            "data": _symbols(data_state(config, content)),
        }
        first = first or found
        for what, expected in first.items():
            if found[what] != expected:
                raise UserError(
                    f"{checkpoint} and {checkpoints[0]} differ in their {what}. Expected checkpoints of one run. "
                    f"Remove one of them."
                )
        for name, value in content["state_dict"].items():
            if value.is_floating_point():
                total[name] = total.get(name, 0) + value.double()
        steps.append(int(content.get("global_step", 0)))
        if steps[-1] == max(steps):
            latest = content
    for name, value in total.items():
        latest["state_dict"][name] = (value / len(checkpoints)).to(latest["state_dict"][name].dtype)
    kind = str(configs[0].task.data._target_).rpartition(".")[2]
    kept = ("state_dict", kind, "global_step", "epoch", "pytorch-lightning_version")
    with replacing(out) as file:
        torch.save({name: latest[name] for name in kept if name in latest} | {"mean_of": sorted(steps)}, file)
    return out


def last_checkpoints(directory: Path) -> list[Path]:
    """Return the step-….ckpt of a run directory, the earliest first.

    Raises:
        UserError: the directory has none.
    """
    from gridlstm.training.callbacks.last_checkpoints import kept

    found = kept(directory / "checkpoints")
    if not found:
        raise UserError(
            f"{directory} has no checkpoints/step-….ckpt. Train with callbacks=[default,last_checkpoints], or give "
            f"ckpt=A,B."
        )
    return found


def _checked_out(checkpoints: Sequence[Path], out: Path) -> Path:
    """Return ``out``.

    Raises:
        UserError: unless all checkpoints and ``out`` are in one run directory, or if ``out`` would overwrite another
            checkpoint.
    """
    from gridlstm.training.checkpoint import load_content
    from gridlstm.training.compatibility import run_directory

    directories = [run_directory(checkpoint) for checkpoint in checkpoints]
    for checkpoint, directory in zip(checkpoints, directories, strict=True):
        if directory != directories[0]:
            raise UserError(
                f"{checkpoint} comes from another run than {checkpoints[0]}. Expected checkpoints of one run. Remove "
                f"it, or evaluate both as an ensemble: ckpt=A,B."
            )
    if out.suffix != ".ckpt" or run_directory(out) != directories[0]:
        raise UserError(
            f"out={out} must be a .ckpt file in {directories[0]}, whose config.yaml describes the network. Give, for "
            f"example, out={checkpoints[0].with_name('average.ckpt')}."
        )
    if out.exists() and "mean_of" not in load_content(out):
        raise UserError(f"out={out} is a checkpoint of the run, and would be overwritten. Give another name.")
    return out


def _symbols(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the data without the position in the training stream."""
    return {name: value for name, value in state.items() if name != "batches_seen"}


def _run(given: dict[str, Any], others: list[str]) -> None:
    checkpoints = checkpoint_paths(given["ckpt"])
    if len(checkpoints) == 1 and checkpoints[0].is_dir():
        checkpoints = last_checkpoints(checkpoints[0])
    print(average(checkpoints, given["out"].expanduser() if "out" in given else None))


def main() -> None:
    """Run the command line."""
    run_command(PARSER, _run)


if __name__ == "__main__":
    main()
