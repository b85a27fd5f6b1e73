"""Export a trained network as files for other people: ``python -m gridlstm.publish ckpt=…/best.ckpt out=DIRECTORY``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridlstm.command import Parser, run_command
from gridlstm.errors import UserError
from gridlstm.files import read_json, replacing, writable, write_text
from gridlstm.options import Role, leaves, role

if TYPE_CHECKING:
    from omegaconf import DictConfig

PARSER = Parser(
    "publish",
    """Export the network of a checkpoint as files for other people: model.safetensors, its configuration and a model
card, README.md. The files contain no optimizer state, no code and no path of this machine. evaluate, sample, translate
and look accept ckpt=DIRECTORY/model.safetensors wherever the directory is.""",
    others="none",
)
PARSER.add_argument("--ckpt", required=True, type=Path, metavar="CHECKPOINT", help="a file in a run directory")
PARSER.add_argument("--out", required=True, type=Path, metavar="DIRECTORY", help="directory for the files")

WEIGHTS = "model.safetensors"


def publish(checkpoint: Path, out: Path) -> list[Path]:
    """Write weights, configuration and model card of a checkpoint into ``out``; return the files.

    Raises:
        UserError: the checkpoint does not exist, its run directory lacks a file, or ``out`` cannot be written, is in
            the run directory or holds such files that are not published ones.
    """
    from omegaconf import OmegaConf
    from safetensors.torch import save

    from gridlstm.training.checkpoint import data_state, load_content, load_source
    from gridlstm.training.compatibility import run_directory
    from gridlstm.training.stored import read_config

    source = load_source(checkpoint)
    directory = run_directory(checkpoint)
    assert directory is not None, "load_source refuses it"
    content = load_content(checkpoint)
    if not (result := read_json(directory / "result.json")):
        raise UserError(
            f"{directory} has no result.json, from which the model card takes the scores. Expected a complete run "
            f"directory. Copy the file to it."
        )
    out = writable(out)
    if out.resolve().is_relative_to(directory.resolve()):
        raise UserError(
            f"out={out} is in the run directory of the checkpoint, whose config.yaml could be overwritten. Give a "
            f"directory elsewhere."
        )
    files = [out / name for name in (WEIGHTS, "config.yaml", "config_source.yaml", "README.md")]
    if (others := [file.name for file in files if file.exists()]) and not files[0].exists():
        raise UserError(f"out={out} already has its own {', '.join(others)}. Give a new directory.")
    out.mkdir(parents=True, exist_ok=True)
    config = read_config(directory / "config.yaml")
    kind, state = str(source.task.data._target_).rpartition(".")[2], data_state(source, content)
    # Copies, because safetensors refuses names that share memory, such as a read-out tied to the input.
    weights = {name: value.clone().contiguous() for name, value in content["state_dict"].items()}
    with replacing(files[0]) as file:
        file.write(save(weights, {"data": json.dumps({kind: state})}))
    write_text(files[1], OmegaConf.to_yaml(_without_places(config, config)))
    write_text(files[2], OmegaConf.to_yaml(_without_places(source, config)))
    # Weights that share memory are one parameter.
    parameters = sum({value.data_ptr(): value.numel() for value in content["state_dict"].values()}.values())
    samples = state["batches_seen"] * source.task.data.batch_size if "batches_seen" in state else None
    commands = _commands(source.task.objective._target_)
    scores = {} if "mean_of" in content else _scores(result, checkpoint.name)
    write_text(files[3], _card(result, scores, parameters, samples, content.get("mean_of", ()), commands))
    return files


def _scores(result: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """Return the scores in result.json that are those of the weights in a file of the run."""
    best = result.get("best", {})
    best_name = Path(best.get("checkpoint") or "").name
    scores = {f"best {name}": value for name, value in best.items() if name != "checkpoint" and checkpoint == best_name}
    tested = result.get("tested", best_name)  # older records tested the best weights
    return scores | (result.get("test", {}) if checkpoint == tested else {})


def _without_places(config: "DictConfig", resolved: "DictConfig") -> "DictConfig":
    """Return a configuration without paths of this machine; the path of a file becomes its name."""
    from omegaconf import OmegaConf

    config = config.copy()
    own = str(resolved.run.dir)
    for key, value in leaves(OmegaConf.to_container(config)):
        if isinstance(value, list):
            OmegaConf.update(config, key, [Path(one).name if _is_path(one) else one for one in value])
        elif isinstance(value, str) and (value == own or value.startswith(f"{own}/")):
            OmegaConf.update(config, key, "." + value.removeprefix(own))
        elif _is_path(value) and role(key) is Role.PLACE:
            OmegaConf.update(config, key, "data" if key.endswith("data_dir") else None)
        elif _is_path(value):
            OmegaConf.update(config, key, Path(value).name)
    config.run.arguments = []
    config.init_from = None
    return config


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute()


def _commands(objective: str) -> list[str]:
    """Return the commands for a network of a task, given the path of the task's class."""
    from hydra.utils import get_object

    from gridlstm.tasks.classify_image import ClassifyImage
    from gridlstm.tasks.language_model import LanguageModel
    from gridlstm.tasks.sequence import SequenceTask
    from gridlstm.tasks.translate import Translate

    commands = [f"evaluate ckpt={WEIGHTS} split=test"]
    if not objective.startswith("gridlstm."):  # its module may not be importable here
        return commands
    further = {
        SequenceTask: f"look what=gradients ckpt={WEIGHTS}",
        LanguageModel: f"sample ckpt={WEIGHTS}",
        ClassifyImage: f"look what=image ckpt={WEIGHTS}",
        Translate: f'translate ckpt={WEIGHTS} "…"',
    }
    return commands + [command for task, command in further.items() if issubclass(get_object(objective), task)]


def _card(
    result: dict[str, Any],
    scores: dict[str, Any],
    parameters: int,
    samples: int | None,
    mean_of: Sequence[int],
    commands: Sequence[str],
) -> str:
    """Return the model card: network, scores, origin and commands."""
    facts = {
        "model, task": f"{result.get('model')}, {result.get('task')}",
        "parameters": f"{parameters:,}",
        "weights": f"mean of the checkpoints of steps {', '.join(map(str, mean_of))}" if mean_of else None,
        "training samples": None if samples is None else f"{samples:,}",
        **{name: f"{value:.6g}" for name, value in scores.items() if isinstance(value, int | float)},
        "seed": result.get("seed"),
        "commit": result.get("commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items()),
        "device": result.get("device"),
    }
    lines = "\n".join(f"    python -m gridlstm.{command}" for command in commands)
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value not in (None, ""))
    return f"""# {result.get("model")} on {result.get("task")}

A network trained by gridlstm, which implements Grid Long Short-Term Memory (Kalchbrenner, Danihelka, Graves 2015,
arXiv 1507.01526).

| | |
| --- | --- |
{rows}

`config.yaml` has every option. `model.safetensors` holds the weights; its metadata holds the symbols of a text.

{lines}
"""


def main() -> None:
    """Run the command line."""
    run_command(PARSER, _run)


def _run(given: dict[str, Any], others: list[str]) -> None:
    for path in publish(given["ckpt"].expanduser(), given["out"].expanduser()):
        print(path)


if __name__ == "__main__":
    main()
