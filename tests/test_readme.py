"""Every command of the README runs, and every training command in docs/ composes."""

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict
from tests.conftest import ROOT, run_python
from tests.image_files import write_digits
from tests.sentence_files import SENTENCES

from gridlstm.config import CONF

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
SMALL = ["debug=smoke", "model.hidden_size=4", "model.num_layers=2"]


def arguments(line: str, tmp_path: Path) -> list[str]:
    """Return the arguments for python in a command of the README, changed to toy size and to existing files."""
    python, *words = shlex.split(line)
    assert python == "python"
    if words[0] == "train.py":
        small = SMALL if "match." not in line else [word for word in SMALL if "hidden_size" not in word]
        words = [str(ROOT / "train.py"), *words[1:], *small]
    if (experiment := next((word for word in words if word.startswith("experiment=")), None)) is not None:
        swept = OmegaConf.load(CONF / f"experiment/{experiment.partition('=')[2]}.yaml").hydra.sweeper.params
        words += [f"{option}={str(values).split(',')[0]}" for option, values in swept.items()]  # one point of the sweep
    if "task=enwik8" in words:
        genuine = tmp_path / "enwik8"
        genuine.write_bytes(b"<mediawiki> not the genuine file " * 2000)
        words += [
            f"task.path={genuine}", "task.data.source.size=66000", "task.data.splits=[60000,3000,3000]",
            "task.data.source.sha256=" + sha256(genuine), "task.data.batch_size=2",
        ]  # fmt: skip
    if "task=mnist" in words:
        words += [f"data_dir={write_digits(tmp_path)}", "task.data.num_val=20"]
    if "task=translation" in words:  # other pairs, because those of the task are checked by their SHA-256
        for part, language in itertools.product(("train", "test"), ("de", "en")):
            (tmp_path / f"{part}.{language}").write_text("\n".join(SENTENCES))
        words[words.index("task=translation")] = "task=parallel"
        words += [f"task.pairs={tmp_path}/train", f"task.test_pairs={tmp_path}/test", "task.data.source.num_val=2"]
        words += [f"task.data.{side}_level.size=30" for side in ("source", "target")]
    return [word.replace("task.path=README.md", f"task.path={ROOT}/README.md") for word in words]


def sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("python train.py")])
def test_training_commands_run(line: str, tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), "WANDB_MODE": "offline"}
    run_python(*arguments(line, tmp_path), cwd=tmp_path, environment=environment, check=True)
    assert list(tmp_path.glob("outputs/*/*/*/result.json")) or list(tmp_path.glob("multirun/**/result.json"))


def train(tmp_path: Path, where: str, *options: str) -> Path:
    """Train the run that the README's other commands need; return its new directory in ``where``."""
    environment = {"XDG_CACHE_HOME": str(tmp_path), "WANDB_MODE": "offline"}
    run_python(str(ROOT / "train.py"), *options, *SMALL, cwd=tmp_path, environment=environment, check=True)
    (directory,) = (tmp_path / where).iterdir()
    return directory


def follow(module: str, run: Path, cwd: Path) -> str:
    """Run the README's command of a module on a run or sweep; return its output."""
    (line,) = (line for line in COMMANDS if f"gridlstm.{module}" in line)
    return run_python(*arguments(re.sub("RUN|SWEEP", run.name, line), cwd), cwd=cwd, check=True).stdout


def test_the_commands_on_a_checkpoint_run_after_training(tmp_path: Path) -> None:
    run = train(tmp_path, "outputs/memorization/grid2d")
    assert '"test/accuracy"' in follow("evaluate", run, tmp_path)
    follow("look", run, tmp_path)
    assert (run / "look" / "gradients.png").exists()


def test_the_sampling_command_runs_after_training(tmp_path: Path) -> None:
    run = train(tmp_path, "outputs/text/grid2d", "task=text", f"task.path={ROOT}/README.md")
    printed = follow("sample", run, tmp_path)
    assert printed.startswith("The ")
    assert len(printed) >= 500


def test_the_commands_on_a_sweep_run_after_a_sweep(tmp_path: Path) -> None:
    one = ["model=grid2d", "model.tied=true", "task.network.forget_bias=2.0", "optimizer.lr=0.003", "seed=1"]
    options = ["-m", "logger=default", "experiment=paper/memorization_small", *one]
    sweep = train(tmp_path, "multirun/paper/memorization_small", *options)
    for module, file in (("report", "report.html"), ("dashboard", "workspace.json")):
        follow(module, sweep, tmp_path)
        assert (sweep / file).exists()


@pytest.mark.parametrize("line", [line for line in COMMANDS if re.fullmatch(r"python -m gridlstm(\.doctor)?", line)])
def test_commands_that_describe_run(line: str) -> None:
    assert run_python(*shlex.split(line)[1:], check=True).stdout


def documented() -> list[str]:
    """Return the training commands of the README and of docs/. Pages in docs/results/ quote commands of old commits."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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
        cfg.run = {"task": choices.task, "model": choices.model, "name": "n", "group": "g", "dir": "d"} | {"leg": 1}
    OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make")])
def test_make_targets_exist(line: str) -> None:
    subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_every_command_is_covered() -> None:
    assert all(
        re.match(
            r"make |python train.py|python -m gridlstm(\.doctor$|\.(evaluate|sample|look|report|dashboard) |$)", line
        )
        for line in COMMANDS
    )


def test_links_lead_to_existing_files() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", page.read_text())
        for target in (a or b for a, b in targets):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
