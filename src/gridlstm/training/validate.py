"""Check the options of a run before it writes anything: rules that no single component can check."""

import os
import re
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, InterpolationToMissingValueError

from gridlstm.config import CONF
from gridlstm.errors import UserError
from gridlstm.options import DEFAULTS, PRECISIONS
from gridlstm.training.legs import last_checkpoint
from gridlstm.training.published import check_report
from gridlstm.training.task_models import check_fit

STAGES = ("fit", "test")

_CHECKPOINTS = ("checkpoint", "last_checkpoint", "interruption")


def check_start(cfg: DictConfig) -> None:
    """Raise UserError if the run cannot start this way: by hand, with torchrun, with srun or on one node."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        if _several_processes(cfg):
            raise UserError(
                "every job of a sweep over distributed runs needs its own processes, or each rank would run the whole "
                "sweep. Remove hydra/launcher: its default starts them."
            )
        return
    if hydra.runtime.choices["hydra/launcher"] == "slurm":
        raise UserError("hardware=slurm submits the jobs of a sweep. Add -m, even for a sweep of one job.")
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    nodes = cfg.trainer.num_nodes
    if nodes != 1 and not (by_torchrun or "SLURM_NTASKS" in os.environ):
        raise UserError(
            f"trainer.num_nodes={nodes} needs a process on every node. Start torchrun --nnodes={nodes} --node-rank=… "
            f"--master-addr=… --nproc-per-node=… on each, or a sweep in SLURM's queue (docs/sweeps.md)."
        )
    if not by_torchrun and nodes == 1 and not _several_processes(cfg) and os.environ.get("SLURM_PROCID", "0") != "0":
        raise UserError(
            "srun has started several tasks, and only the first would record its run. Use srun --ntasks=1, or run "
            "several points as a sweep (docs/sweeps.md)."
        )
    named = any(override.startswith("hydra.run.dir=") for override in hydra.overrides.hydra)
    if by_torchrun and int(os.environ.get("WORLD_SIZE", 1)) > 1 and not named:
        raise UserError("each rank of torchrun would write to its own directory. Give all the same hydra.run.dir=…")


def _remove_replaced(cfg: DictConfig) -> None:
    """Remove abbreviations without a value, such as task.pairs, if all options that refer to them were given values."""
    for name in ("path", "name", "pairs", "test_pairs"):
        if OmegaConf.is_missing(cfg.task, name) and f"${{task.{name}}}" not in OmegaConf.to_yaml(cfg):
            with open_dict(cfg):
                del cfg.task[name]


def check(cfg: DictConfig) -> None:
    """Raise UserError for a job that cannot work with any components."""
    # These modules import torch. --help and a misspelled option should not wait for it.
    from gridlstm.training.build import check_callbacks, check_optimizer, check_task, check_types
    from gridlstm.training.match import check_match

    _check_nodes(cfg)
    _check_checkpoints(cfg)
    try:
        _remove_replaced(cfg)
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise UserError("\n".join(f"{key} has no value. Set {key}=…" for key in missing))
        OmegaConf.to_container(cfg, resolve=True)
    except InterpolationToMissingValueError:
        raise  # the command line names the missing value
    except InterpolationResolutionError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{error.full_key} has no value here ({reason}). Set {error.full_key}=…") from error
    _check_stages(cfg)
    _check_defaults()
    _check_task_options(cfg)
    check_one_value(cfg)
    check_fit(cfg)
    check_report(cast(dict[str, Any], OmegaConf.to_container(cfg.report, resolve=True)))
    if cfg.report.get("points") is not None and cfg.task.mode != "max":
        raise UserError(
            f"report.points gives samples until {cfg.task.monitor} is at least some number, so it must rise, but "
            f"task.mode={cfg.task.mode}. Remove report.points, or choose another task.monitor and task.mode=max."
        )
    matched = check_match(cfg)
    if matched and _given("model.hidden_size"):
        raise UserError("match chooses model.hidden_size, so the two cannot be combined. Remove one of them.")
    if not matched and cfg.model.get("hidden_size", 1) is None:
        raise UserError(
            f"this experiment has no width for model={cfg.run.model}. Give model.hidden_size=…, or one of "
            f"match.parameters_to and match.flops_to."
        )
    if type(cfg.seed) is not int or not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed must be a whole number from 0 to {2**32 - 1}, got {cfg.seed!r}.")
    _check_clock(cfg.trainer.max_time)
    check_types(cfg.trainer, "trainer")
    _check_trainer(cfg)
    model = cfg.model.copy()
    if matched:
        model.hidden_size = 1  # match chooses the real size later
    check_types(model, "model")
    check_optimizer(cfg)
    check_task(cfg)
    check_callbacks(cfg)


def _check_nodes(cfg: DictConfig) -> None:
    for name in ("task", "model", "optimizer", "trainer", "match", "report", "run"):
        if not isinstance(cfg[name], DictConfig):
            raise UserError(f"{name} is a group of options, got {name}={cfg[name]}. Set single options: {name}.….=…")
    for group in ("callbacks", "logger"):
        for name, node in (cfg[group] or {}).items():
            if node is not None and not isinstance(node, DictConfig):
                raise UserError(f"{group}.{name!s} must be a node of options, or null to remove it, got {node}.")


def _check_checkpoints(cfg: DictConfig) -> None:
    if missing := [name for name in _CHECKPOINTS if name not in (cfg.callbacks or {})]:
        raise UserError(
            f"the chosen callbacks lack {', '.join(missing)}, which write checkpoints and handle Ctrl-C. Use "
            f"callbacks=[default,…]. To remove one: callbacks.{missing[0]}=null."
        )
    best = cfg.callbacks.checkpoint
    if best and best.get("save_top_k", 1) != 1 and best.get("filename") == "best":
        raise UserError(
            f"callbacks.checkpoint.save_top_k={best.save_top_k} would write several checkpoints to best.ckpt. Add "
            f"callbacks.checkpoint.filename={{step}}, or keep save_top_k at 1."
        )
    if not cfg.trainer.enable_checkpointing and any(cfg.callbacks[name] for name in _CHECKPOINTS):
        raise UserError(
            "trainer.enable_checkpointing=false conflicts with callbacks that write checkpoints. Add "
            + " ".join(f"callbacks.{name}=null" for name in _CHECKPOINTS)
            + ", after which the run can test only its final weights, and cannot be resumed."
        )


def _check_clock(max_time: Any) -> None:
    if max_time is not None and not re.fullmatch(r"\d+(:\d\d){3}", str(max_time)):
        raise UserError(
            f"trainer.max_time must be days:hours:minutes:seconds, such as 00:01:30:00, or null for no limit, "
            f"got {max_time!r}."
        )
    if max_time is not None and not str(max_time).strip("0:"):
        raise UserError(f"trainer.max_time must be above 0, or null for no limit, got {max_time}.")


def _check_trainer(cfg: DictConfig) -> None:
    from gridlstm.training.build import OF_EVERY_TRAINER

    trainer = cfg.trainer
    if str(trainer.precision) not in PRECISIONS:
        raise UserError(f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {trainer.precision!r}.")
    for name in ("val_check_interval", "accumulate_grad_batches", "log_every_n_steps"):
        if type(value := trainer[name]) is int and value < 1:
            by_task = name == "val_check_interval" and _given("task.val_every")
            option = "task.val_every" if by_task else f"trainer.{name}"
            raise UserError(f"{option} must be at least 1, got {value}.")
    every, accumulated = trainer.val_check_interval, trainer.accumulate_grad_batches
    if not isinstance(every, int | float | None) and _several_processes(cfg):
        raise UserError(
            f"trainer.val_check_interval={every} uses the clock of each process: ranks would validate at different "
            f"steps and wait for each other forever. Use a number of steps, task.val_every."
        )
    if not isinstance(every, int | float | None) and accumulated > 1:
        raise UserError(
            f"trainer.val_check_interval={every} can fall inside a step of "
            f"trainer.accumulate_grad_batches={accumulated} batches, and a checkpoint cannot store half a sum of "
            f"gradients. Use a number of batches, task.val_every."
        )
    if trainer.max_steps < -1 or (trainer.max_steps == 0 and "fit" in cfg.stages):
        raise UserError(f"trainer.max_steps must be at least 1, or -1 for no end, got {trainer.max_steps}.")
    if type(every) is int and every % accumulated:
        raise UserError(
            f"trainer.val_check_interval={every} must be a multiple of trainer.accumulate_grad_batches={accumulated}: "
            f"a checkpoint cannot store half a sum of gradients. Use task.val_every, which is rounded up."
        )
    if trainer.limit_val_batches == 0 and "fit" in cfg.stages:
        raise UserError(
            f"trainer.limit_val_batches=0 leaves {cfg.task.monitor}, the score of this task, without a value. Use 1 or "
            f"more."
        )
    if trainer.limit_test_batches == 0 and "test" in cfg.stages:
        raise UserError("trainer.limit_test_batches=0 leaves nothing to test. Use stages=[fit] instead.")
    for name in OF_EVERY_TRAINER:
        if name in trainer:
            raise UserError(
                f"trainer.{name} cannot be set: the training data has no end and is already divided over the ranks. "
                f"End training with trainer.max_steps or trainer.max_time, or repeat three batches with debug=overfit."
            )
    if (clip := trainer.gradient_clip_val) is not None and not clip > 0:
        raise UserError(f"trainer.gradient_clip_val must be above 0, or null for no clipping, got {clip}.")


def _check_task_options(cfg: DictConfig) -> None:
    """Raise UserError for a number that the task's own file does not define and no component reads.

    An experiment sets options for its own task, and the command line may choose another task.
    """
    file = CONF / "task" / f"{cfg.run.task}.yaml"
    own = OmegaConf.load(file) if file.exists() else cfg.task
    for key, value in cfg.task.items():
        if key in own or not isinstance(value, int | float):
            continue
        both = (cfg, _with_another(cfg, f"task.{key}"))
        now, then = (cast(dict[str, Any], OmegaConf.to_container(each, resolve=True)) for each in both)
        then["task"][key] = value
        if now == then:
            raise UserError(
                f"task={cfg.run.task} has no option {key}, so task.{key}={value} would have no effect. Remove it, or "
                f"choose the task of experiment={cfg.run.group}."
            )


def check_one_value(cfg: DictConfig) -> None:
    """Raise UserError if an option of the data contradicts the same option of the task, which reports read."""
    for path in ("task.data", "task.data.source"):
        node = OmegaConf.select(cfg, path)
        for key, value in node.items() if isinstance(node, DictConfig) else ():
            if key in cfg.task and cfg.task[key] != value:
                raise UserError(
                    f"{path}.{key!s}={value} contradicts task.{key!s}={cfg.task[key]}. Set task.{key!s} alone: the "
                    f"data reads it."
                )


def _check_defaults() -> None:
    """Raise UserError if the command line sets the task's default of an option instead of the option."""
    for default, option in DEFAULTS.items():
        if _given(default):
            raise UserError(f"{default} is only the default of an option. Set the option itself: {option}=…")


def unused_network_options(cfg: DictConfig) -> list[tuple[str, Any]]:
    """Return the numbers of ``task.network`` that are on the command line but that the model does not read."""
    return [
        (key, value)
        for key, value in cfg.task.get("network", {}).items()
        if isinstance(value, int | float)
        and _given(f"task.network.{key}")
        and not (cfg.match.parameters_to or cfg.match.flops_to)  # matching reads them
        and not _model_reads(cfg, f"task.network.{key}")
    ]


def _model_reads(cfg: DictConfig, option: str) -> bool:
    """Return True if the model's options change with a number."""
    now, then = (OmegaConf.to_container(each.model, resolve=True) for each in (cfg, _with_another(cfg, option)))
    return bool(now != then)


def _with_another(cfg: DictConfig, option: str) -> DictConfig:
    """Return a copy of the configuration with one number changed by more than any rounding."""
    other = cfg.copy()
    OmegaConf.update(other, option, 2 * OmegaConf.select(cfg, option) + 1)
    return other


def _given(key: str) -> bool:
    """Return True if the command line sets the option."""
    lines = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(line.lstrip("+").startswith(f"{key}=") for line in lines)


def _check_stages(cfg: DictConfig) -> None:
    if isinstance(cfg.stages, str):
        raise UserError(f"stages must be a list, got {cfg.stages}. Use stages=[{cfg.stages}].")
    if not cfg.stages or [stage for stage in cfg.stages if stage not in STAGES]:
        raise UserError(f"stages must be one or more of {list(STAGES)}, got {list(cfg.stages or ())}.")
    if cfg.ckpt_path is None and "fit" not in cfg.stages:
        raise UserError("stages=[test] needs trained weights. Set ckpt_path=outputs/…/checkpoints/best.ckpt")
    if cfg.ckpt_path not in (None, "last") and not Path(cfg.ckpt_path).expanduser().is_file():
        raise UserError(f"ckpt_path={cfg.ckpt_path} is not a file. Use the path of a checkpoint, or ckpt_path=last.")
    if str(cfg.ckpt_path).endswith(".safetensors"):
        raise UserError(
            f"ckpt_path={cfg.ckpt_path} holds published weights. Start a training from them with init_from=…, or "
            f"evaluate them with python -m gridlstm.evaluate ckpt=…."
        )
    if cfg.init_from is not None and not _resumes(cfg):
        if not Path(cfg.init_from).expanduser().is_file():
            raise UserError(
                f"init_from={cfg.init_from} is not a file. Use the path of a checkpoint, such as "
                f"…/checkpoints/best.ckpt."
            )
        if cfg.ckpt_path not in (None, "last") or "fit" not in cfg.stages:
            raise UserError(
                "init_from starts a new training, but ckpt_path or stages=[test] uses an existing one. Remove one of "
                "them."
            )
    # The directory of a sweep job is not known yet.
    last_is_tested = "fit" not in cfg.stages and cfg.ckpt_path == "last" and cfg.run.dir is not None
    if last_is_tested and last_checkpoint(Path(cfg.run.dir)) is None:
        raise UserError(f"{cfg.run.dir} has no checkpoints/last.ckpt to test. Set hydra.run.dir=… or ckpt_path=….")


def _resumes(cfg: DictConfig) -> bool:
    """Return True if the run resumes one in its own directory, whose init_from has been used then."""
    if cfg.run.dir is None or cfg.ckpt_path is None:
        return False
    if cfg.ckpt_path == "last":
        return last_checkpoint(Path(cfg.run.dir)) is not None
    return Path(cfg.ckpt_path).expanduser().resolve().is_relative_to(Path(cfg.run.dir).resolve())


def _several_processes(cfg: DictConfig) -> bool:
    devices = cfg.trainer.devices
    if cfg.trainer.num_nodes > 1:
        return True
    if isinstance(devices, ListConfig):
        return len(devices) > 1
    if isinstance(devices, int) and devices >= 0:
        return devices > 1
    if cfg.trainer.strategy not in ("auto", None):  # -1 and "auto" mean all devices
        return True
    if cfg.trainer.accelerator == "cpu":
        return False
    import torch

    return torch.cuda.device_count() > 1
