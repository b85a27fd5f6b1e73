"""The installed wheel works in a user's project with its own configuration."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.conftest import PATIENCE, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    (path,) = directory.glob("*.whl")
    return path


def test_the_wheel_carries_configuration_launcher_and_kernel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"gridlstm/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert conf <= names
    assert {
        "hydra_plugins/gridlstm_launcher/process_launcher.py",
        "gridlstm/engine/fused.c",
        "gridlstm/engine/fused.h",
        "gridlstm/engine/fused_chain.c",
        "gridlstm/engine/fused_dropout.c",
        "gridlstm/engine/fused_layer_norm.c",
        "gridlstm/engine/onednn.cpp",
        "gridlstm/train.py",
        "gridlstm/report/page.html",
    } <= names
    assert not any("tests" in name or name.startswith(("hydra_plugins/__init__", "multirun")) for name in names)


def test_installed_wheel_trains_a_users_model(wheel: Path, tmp_path: Path) -> None:
    """The example of docs/extending.md runs with only the wheel, in a directory outside the repository."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    project = tmp_path / "project"
    text = (ROOT / "docs" / "extending.md").read_text()
    files = {"my_models.py": "python", "my_conf/model/mean.yaml": "yaml", "my_conf/task/echo.yaml": "yaml"}
    for name, language in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        block = text.split(f"`{name}`", 1)[1].split(f"```{language}\n", 1)[1].split("```", 1)[0]
        (project / name).write_text(block)
    small = ["trainer.max_steps=20", "task.val_every=10", "logger=csv", "hydra.run.dir=out"]
    done = subprocess.run(
        [sys.executable, "-m", "gridlstm.train", "--config-dir", "my_conf", "model=mean", "task=echo", *small],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "echo-mean-s1" in done.stderr
    assert (project / "out" / "result.json").exists()
