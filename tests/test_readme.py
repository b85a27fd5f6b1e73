"""Every command of the README runs, and every training command of docs/ composes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from gridlstm.compose import CONF

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line.strip()
]
SMALL = ["debug=smoke", "model.hidden_size=4", "model.num_layers=2"]


def command(line: str, tmp_path: Path) -> list[str]:
    """The README's command at toy size, on files that are there."""
    words = shlex.split(line)
    assert words[0] == "python"
    words[0] = sys.executable
    if "train.py" in words:
        words += SMALL
        words[1] = str(ROOT / "train.py")
    if "task=enwik8" in words:
        genuine = tmp_path / "enwik8"
        genuine.write_bytes(b"<mediawiki> not the genuine file " * 2000)
        words += [
            f"task.path={genuine}", "task.data.size=66000", "task.data.splits=[60000,3000,3000]",
            "task.data.sha256=" + sha256(genuine), "task.data.batch_size=2",
        ]  # fmt: skip
    return [word.replace("task.path=README.md", f"task.path={ROOT}/README.md") for word in words]


def sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("python train.py")])
def test_training_commands_run(line: str, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "WANDB_MODE": "offline"}
    subprocess.run(command(line, tmp_path), cwd=tmp_path, env=environment, check=True, timeout=600)
    assert list(tmp_path.glob("outputs/*/*/*/result.json")) or list(tmp_path.glob("multirun/adhoc/*/*/result.json"))


def test_the_commands_on_a_checkpoint_run_on_what_training_leaves(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "train.py"), *SMALL], cwd=tmp_path, check=True, timeout=300)
    (run,) = (tmp_path / "outputs" / "memorization" / "grid2d").iterdir()
    (line,) = (line for line in COMMANDS if "gridlstm.evaluate" in line)
    words = command(line.replace("RUN", run.name), tmp_path)
    done = subprocess.run(words, cwd=tmp_path, check=True, timeout=300, capture_output=True, text=True)
    assert '"test/accuracy"' in done.stdout
    (line,) = (line for line in COMMANDS if "gridlstm.look" in line)
    subprocess.run(command(line.replace("RUN", run.name), tmp_path), cwd=tmp_path, check=True, timeout=300)
    assert (run / "look" / "gradients.png").exists()


def test_the_sampling_command_runs_on_what_training_leaves(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "WANDB_MODE": "offline"}
    text = ["task=text", f"task.path={ROOT}/README.md"]
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *text, *SMALL], cwd=tmp_path, env=environment, check=True, timeout=300
    )
    (run,) = (tmp_path / "outputs" / "text" / "grid2d").iterdir()
    (line,) = (line for line in COMMANDS if "gridlstm.sample" in line)
    words = command(line.replace("RUN", run.name), tmp_path)
    done = subprocess.run(words, cwd=tmp_path, check=True, timeout=300, capture_output=True)
    assert done.stdout.startswith(b"The ")
    assert len(done.stdout.decode()) >= 500


def test_the_report_commands_run_on_what_a_sweep_leaves(tmp_path: Path) -> None:
    environment = {**os.environ, "WANDB_MODE": "offline"}
    sweep = [sys.executable, str(ROOT / "train.py"), "-m", "seed=1", *SMALL, "logger=default"]
    subprocess.run(sweep, cwd=tmp_path, env=environment, check=True, timeout=300)
    (directory,) = (tmp_path / "multirun" / "adhoc").iterdir()
    for module, file in (("report", "report.html"), ("dashboard", "workspace.json")):
        (line,) = (line for line in COMMANDS if f"gridlstm.{module}" in line)
        subprocess.run(command(line.replace("RUN", directory.name), tmp_path), cwd=tmp_path, check=True, timeout=300)
        assert (directory / file).exists()


def documented() -> list[str]:
    """Training commands in the text and the blocks of the README and of docs/, but for what was run long ago."""
    pages = [ROOT / "README.md", *(page for page in (ROOT / "docs").glob("*.md") if page.name != "results.md")]
    found = []
    for page in pages:
        text = page.read_text().replace("\\\n", " ")
        found += re.findall(r"`(python train\.py [^`]*)`", text)
        found += re.findall(r"^(?:OMP_NUM_THREADS=1 )?(python train\.py [^#\n]*)", text, re.MULTILINE)
    return sorted({" ".join(line.split()) for line in found if "…" not in line and " --" not in line})


@pytest.mark.parametrize("line", documented())
def test_documented_training_commands_compose(line: str) -> None:
    words = [word for word in shlex.split(line)[2:] if word != "-m"]
    overrides = OverridesParser.create().parse_overrides(words)
    first = [
        f"{override.input_line.split('=')[0]}={next(iter(override.sweep_string_iterator()))}"
        if override.is_sweep_override() and override.is_discrete_sweep()
        else str(override.input_line)
        for override in overrides
        if not override.is_sweep_override() or override.is_discrete_sweep()
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", first, return_hydra_config=True)
    choices = cfg.hydra.runtime.choices
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.run = {"task": choices.task, "model": choices.model, "name": "n", "group": "g", "dir": "d"}
    OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make")])
def test_make_targets_exist(line: str) -> None:
    subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_every_command_is_covered() -> None:
    assert all(
        re.match(r"make |python train.py|python -m gridlstm\.(evaluate|sample|look|report|dashboard) ", line)
        for line in COMMANDS
    )


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        targets = re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", page.read_text())
        for target in (a or b for a, b in targets):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_group_choice_is_in_the_readme() -> None:
    for group in ("model", "task", "hardware", "optimizer", "scheduler", "logger", "debug", "transform"):
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"`{path.stem}`" in README, f"the README does not name {group}={path.stem}"
