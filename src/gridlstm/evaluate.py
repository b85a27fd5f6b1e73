"""Evaluate a checkpoint: ``python -m gridlstm.evaluate ckpt=outputs/…/checkpoints/best.ckpt split=test``."""

import inspect
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridlstm.command import Parser, checkpoint_paths, number, packages, run_command
from gridlstm.config import in_shell
from gridlstm.errors import UserError
from gridlstm.files import check_different, to_json, writable
from gridlstm.options import TRANSLATION_READS, check_read_by_validation

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from gridlstm.data.base import SequenceData
    from gridlstm.training.build import Run

log = logging.getLogger(__name__)

COLDEST = 1e-4
"""Lowest temperature: logits divided by it stay far below the largest float32."""

PARSER = Parser(
    "evaluate",
    "Evaluate a checkpoint on the task it was trained for and print the metrics as JSON.",
    others="key=value",
)
PARSER.add_argument(
    "--ckpt",
    required=True,
    metavar="CHECKPOINT[,…]",
    help="a file in a run directory, such as outputs/…/checkpoints/best.ckpt. Several form an ensemble: the mean of "
    "their probabilities, on the first one's task. For the BLEU of translations: python -m gridlstm.translate "
    "split=test",
)
PARSER.add_argument(
    "--split",
    default="test",
    help="test (default); val: the whole validation split, even if the run validates on a part (val_symbols); all: for "
    "language models, the whole text, which may be another text: task.path=other.txt",
)
PARSER.add_argument(
    "--positions",
    type=Path,
    metavar="STEM",
    help="for language models: write STEM.csv and STEM.png with the loss by symbols read since the state was reset",
)
PARSER.add_argument(
    "--dynamic-rate",
    type=number,
    metavar="RATE",
    help="for language models: after each predicted window, train on it at this learning rate. Slow, because streams "
    "are read one at a time. Try 0.0001",
)
PARSER.add_argument(
    "--dynamic-decay",
    type=number,
    metavar="DECAY",
    help="with --dynamic-rate: pull the weights back to the trained ones (0). Try 0.01",
)
PARSER.add_argument(
    "--temperature", type=number, default=1.0, help="divide the logits by this number (1). Choose it with split=val"
)
PARSER.add_argument(
    "--trust", type=packages, default=[], metavar="PACKAGE[,…]",
    help="packages besides gridlstm whose code the run may use: your own models and tasks",
)  # fmt: skip


def evaluate(
    checkpoint: Path,
    split: str,
    overrides: list[str],
    positions: Path | None = None,
    dynamic_rate: float | None = None,
    dynamic_decay: float = 0.0,
    others: Sequence[Path] = (),
    temperature: float = 1.0,
    trust: Sequence[str] = (),
) -> dict[str, float]:
    """Return the metrics of a checkpoint, or of an ensemble of several checkpoints.

    Args:
        checkpoint: path of the checkpoint, inside its run directory.
        split: "val", "test", or for language models "all".
        overrides: dotted ``key=value``; the run must have the options.
        positions: path without suffix of the files with the loss by position; see
            ``gridlstm.training.callbacks.position_loss``.
        dynamic_rate, dynamic_decay: see ``gridlstm.tasks.dynamic``.
        others: checkpoints that form an ensemble with the first.
        temperature: number that divides the logits, at least ``COLDEST``.
        trust: packages whose code the run may use; see ``gridlstm.training.trust``.

    Raises:
        UserError: the checkpoint, split or option does not exist, the weights do not fit, or the networks predict
            different symbols.
    """
    if split not in ("val", "test", "all"):
        raise UserError(f"split must be val, test or all, got {split!r}.")
    if not COLDEST <= temperature < math.inf:
        raise UserError(f"temperature must be at least {COLDEST}, and finite, got {temperature}.")
    if split == "all" and dynamic_rate is not None:
        raise UserError(
            "dynamic evaluation reads the training split first, so it needs another. Give split=val or split=test."
        )
    # Imported here, so that --help does not wait for torch.
    from gridlstm.tasks.ensemble import Ensemble, TranslateTogether
    from gridlstm.tasks.translate import Translate
    from gridlstm.training.build import build
    from gridlstm.training.callbacks.position_loss import PositionLoss
    from gridlstm.training.checkpoint import (
        data_state,
        load_config,
        load_content,
        load_weights,
        warn_of_change,
        warn_of_splits,
    )
    from gridlstm.training.job import quiet
    from gridlstm.training.record import metrics

    given = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    config = load_config(checkpoint, overrides, trust)
    _refuse_unread(split, given, config)
    lengths = config.task.data.get("test_digits")
    if split == "test" and lengths and "task.digits" in given and "task.data.test_digits" not in given:
        raise UserError(
            f"task.digits={given['task.digits']} does not change this run's test, which uses task.data.test_digits="
            f"{list(lengths)}. Give task.data.test_digits=[{given['task.digits']}]."
        )
    config.trainer.enable_checkpointing = False
    if temperature != 1:
        _divide_logits(config, temperature)
    _whole_split(config, given)
    _device_at_hand(config, given)
    if split == "all" and config.task.get("max_documents"):
        log.warning("task.max_documents=%d limits the evaluation to a part of the text", config.task.max_documents)
    quiet()
    content = load_content(checkpoint)
    if positions is not None and not positions.name:
        raise UserError(f"positions={positions} is not a file name. Give positions=STEM for STEM.csv and STEM.png.")
    checkpoints = [checkpoint, *others]
    check_different(checkpoints)
    members = list(_members(checkpoints, overrides, trust)) if others else []
    run = build(config, data_state(config, content), split == "all", [member for member, _ in members])
    warn_of_change(run.data, overrides)
    if split != "all":
        warn_of_splits(run.data, config, checkpoint, overrides)
    networks = run.task.networks if isinstance(run.task, Ensemble | TranslateTogether) else (run.task,)
    for network, (_, weights) in zip(networks, members or [(config, content)], strict=True):
        load_weights(network, weights["state_dict"])
    if positions is not None or dynamic_rate is not None:
        _check_language_model(run, positions is not None and dynamic_rate is not None)
    if dynamic_rate is not None:
        return _dynamic(run, _one_stream(config, content), split, dynamic_rate, dynamic_decay)
    by_position = PositionLoss()
    if positions is not None:
        # before the evaluation, which may take hours
        writable(positions.parent, "the directory of positions").mkdir(parents=True, exist_ok=True)
        run.trainer.callbacks.append(by_position)  # type: ignore[attr-defined]  # missing from its annotations
    go = run.trainer.validate if split == "val" else run.trainer.test
    try:
        go(run.task, run.data, verbose=False)
    except SystemExit as error:  # Lightning ends this way at Ctrl-C, with the status of a failure
        raise KeyboardInterrupt from error
    if positions is not None:
        log.info("loss by position: %s", ", ".join(map(str, by_position.write(positions))))
    if isinstance(run.task, Translate):
        words = [f"ckpt={','.join(map(str, checkpoints))}", *([f"trust={','.join(trust)}"] if trust else [])]
        words += [word for word in overrides if word.lstrip("+~").startswith(TRANSLATION_READS)]
        log.info("for BLEU: python -m gridlstm.translate split=%s %s", split, " ".join(map(in_shell, words)))
    stage = "val" if split == "val" else "test"
    found = {name: value for name, value in metrics(run).items() if name.startswith(f"{stage}/")}
    return {f"{split}/{name.partition('/')[2]}": value for name, value in found.items()}


def _divide_logits(config: "DictConfig", temperature: float) -> None:
    """Set the temperature of the task.

    Raises:
        UserError: the task has no temperature.
    """
    from hydra.utils import get_object
    from omegaconf import OmegaConf

    if "temperature" not in inspect.signature(get_object(config.task.objective._target_)).parameters:
        raise UserError(f"temperature={temperature} cannot be used: this task has no temperature. Remove it.")
    OmegaConf.update(config, "task.objective.temperature", temperature, force_add=True)


def _refuse_unread(split: str, given: Mapping[str, str], config: "DictConfig") -> None:
    """Raise UserError for options that have no effect on the evaluated split."""
    from omegaconf import OmegaConf

    # Lightning evaluates the split as its validation or its test, and reads only the options of that stage.
    other, stage = ("test", "val") if split == "val" else ("val", "test")
    for key, value in given.items():
        if split == "val" and key == "task.data.test_digits":
            raise UserError(f"{key}={value} has no effect on the validation, which uses task.digits. Give split=test.")
        if split == "val":
            check_read_by_validation(key, value)
        if key in (f"trainer.limit_{other}_batches", f"task.data.num_{other}"):
            here = key.replace(f"_{other}", f"_{stage}")
            parent, _, name = here.rpartition(".")
            instead = f"Give {here}, or remove it" if name in OmegaConf.select(config, parent) else "Remove it"
            raise UserError(f"{key}={value} has no effect on split={split}. {instead}.")
        if key == "task.data.splits" and split == "all":
            raise UserError(f"{key}={value} has no effect on split=all, which is the whole text. Remove it.")
        if key == f"trainer.limit_{stage}_batches" and value.strip("0.") == "":
            raise UserError(f"{key}={value} leaves nothing to evaluate. Remove it, or give at least 1.")


def _whole_split(config: "DictConfig", given: Mapping[str, str]) -> None:
    """Remove the run's own limits on the split, except options of the command line."""
    whole = {"limit_val_batches": None, "limit_test_batches": None, "fast_dev_run": False, "overfit_batches": 0.0}
    for name, value in whole.items():
        if f"trainer.{name}" not in given and config.trainer.get(name, value) != value:
            log.info("the run had trainer.%s=%s, but the whole split is evaluated here", name, config.trainer[name])
            config.trainer[name] = value


def _device_at_hand(config: "DictConfig", given: Mapping[str, str]) -> None:
    """Evaluate a GPU run in one process if this machine has no GPU or the user chooses the CPU."""
    import torch

    if "trainer.accelerator" in given:
        if config.trainer.accelerator != "cpu":
            return
    elif torch.cuda.is_available():
        return
    elif config.trainer.accelerator in ("gpu", "cuda"):
        log.info("the run had trainer.accelerator=%s, but this machine has no GPU", config.trainer.accelerator)
        config.trainer.accelerator = "auto"
    elif config.trainer.accelerator == "auto" and config.trainer.devices not in (1, "auto"):
        log.info("the run had trainer.devices=%s, but this machine has no GPU", config.trainer.devices)
    else:
        return
    for name, value in {"devices": 1, "num_nodes": 1, "strategy": "auto"}.items():
        if f"trainer.{name}" not in given:
            config.trainer[name] = value


def _members(
    checkpoints: Sequence[Path], overrides: Sequence[str], trust: Sequence[str]
) -> Iterator[tuple["DictConfig", dict[str, Any]]]:
    """Yield configuration and content of each checkpoint of an ensemble, changed by the overrides of ``model.…`` only.

    Raises:
        UserError: a checkpoint predicts other symbols than the first.
    """
    from gridlstm.training.checkpoint import data_state, load_config, load_content, vocabulary

    first, texts = None, []
    for checkpoint in checkpoints:
        config = load_config(checkpoint, [each for each in overrides if each.startswith("model.")], trust)
        content = load_content(checkpoint)
        state = data_state(config, content)
        pair = [state[name] for name in ("source_vocabulary", "target_vocabulary") if name in state]
        found = vocabulary(config, content) or pair or config.task.data._target_
        first = first or found
        if found != first:
            raise UserError(
                f"{checkpoint} was trained on another task or text than {checkpoints[0]} and predicts other symbols. "
                f"An ensemble needs checkpoints of one task. Remove it."
            )
        texts.append((state.get("crc32"), state.get("symbols"), config.task.data.get("splits")))
        if texts[-1] != texts[0]:
            log.warning(
                "%s was trained on another text, or on other parts of it, than %s: its training text may overlap the "
                "evaluated one",
                checkpoint,
                checkpoints[0],
            )
        yield config, content


def _check_language_model(run: "Run", both: bool) -> None:
    names = "positions and dynamic_rate"
    if run.task.carried is None:
        raise UserError(f"{names} are for language models, whose state is carried. Remove them.")
    if run.trainer.world_size > 1:
        raise UserError(f"{names} need a single process. Give trainer.devices=1 trainer.strategy=auto.")
    if both:
        raise UserError(f"{names} cannot be combined. Evaluate twice, each time with one of them.")


def _one_stream(config: "DictConfig", content: dict[str, Any]) -> "SequenceData":
    """Return the data of a run in batches of one row, so that the network learns from each window before the next."""
    from gridlstm.training.build import make_data
    from gridlstm.training.checkpoint import data_state

    config = config.copy()
    config.task.data.batch_size = 1
    return make_data(config, data_state(config, content))


def _dynamic(run: "Run", stream: "SequenceData", split: str, rate: float, decay: float) -> dict[str, float]:
    from gridlstm.tasks.dynamic import DynamicEvaluation

    stage = "val" if split == "val" else "test"
    limit = getattr(run.trainer, f"limit_{stage}_batches")
    task = run.task.to(run.trainer.strategy.root_device)
    context = run.trainer.precision_plugin.forward_context
    run.data.batches_seen = 0  # the same batches of the training text for every checkpoint of a run
    evaluation = DynamicEvaluation(task, run.data.train_dataloader(), rate, decay, context)
    stream.setup("validate" if split == "val" else "test")
    loader = stream.val_dataloader() if split == "val" else stream.test_dataloader()
    windows = islice(loader, limit if type(limit) is int else None)
    return {f"{split}/{name}": value for name, value in evaluation.evaluate(windows).items()}


def _run(given: dict[str, Any], overrides: list[str]) -> None:
    first, *others = checkpoint_paths(given["ckpt"])
    if "dynamic_decay" in given and "dynamic_rate" not in given:
        raise UserError("dynamic_decay needs dynamic evaluation. Give dynamic_rate too, such as 0.0001.")
    positions = given["positions"].expanduser() if "positions" in given else None
    rate, decay = given.get("dynamic_rate"), given.get("dynamic_decay", 0.0)
    from gridlstm.training.provenance import rank

    found = evaluate(
        first, given["split"], overrides, positions, rate, decay, others, given["temperature"], given["trust"]
    )
    if rank() == 0:  # with several processes, each of them prints otherwise
        print(to_json(found, indent=2))


def main() -> None:
    """Run the command line."""
    run_command(PARSER, _run)


if __name__ == "__main__":
    main()
