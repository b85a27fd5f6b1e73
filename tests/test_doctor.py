"""The commands that a newcomer types first: the list of commands, and the doctor, which checks this machine."""

import tomllib
from pathlib import Path

import pytest
from tests.conftest import ROOT, run_python

from gridlstm import __main__ as commands
from gridlstm import doctor
from gridlstm.data.enwik8 import Enwik8


def test_the_package_lists_every_command_that_it_has() -> None:
    package = Path(commands.__file__).parent
    modules = {path.stem for path in package.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    rooms = {path.parent.name for path in package.glob("*/__main__.py")}
    assert set(commands.COMMANDS) == (modules | rooms) - {"__main__"}
    done = run_python("-m", "gridlstm", check=True)
    assert all(f"python -m gridlstm.{name} " in done.stdout for name in commands.COMMANDS)


def test_words_after_the_package_name_the_command_to_type() -> None:
    done = run_python("-m", "gridlstm", "evaluate", "ckpt=a.ckpt")
    assert done.returncode == 1
    assert "error: python -m gridlstm takes no arguments. Type python -m gridlstm.evaluate …" in done.stderr


def test_doctor_lists_the_components_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / Enwik8.name).write_text("represents the data set: only its name is checked")
    done = run_python("-m", "gridlstm.doctor", check=True, environment={"GRIDLSTM_DATA": str(tmp_path)})
    lines = {line[4:].split("  ")[0]: line for line in done.stdout.splitlines()}
    assert lines["enwik8"] == f"ok  {'enwik8':<16}  {tmp_path / 'enwik8'}"
    assert lines["text8"].startswith("--  text8 ")
    assert "task=text8" in lines["text8"]
    assert {"versions", "processor", "matrix product", "GPU", "W&B account"} <= lines.keys()
    assert done.stderr == ""


def test_doctor_knows_the_packages_of_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for extra, _ in doctor._PACKAGES.values()} == extras.keys() - {"dev", "docs"}
    named = {name.replace("_", "-"): extra for name, (extra, _) in doctor._PACKAGES.items()}
    for package in ("sacrebleu", "sentencepiece", "torchvision", "wandb-workspaces"):
        assert any(each.startswith(package) for each in extras[named[package]])


def test_folder_in_the_working_directory_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "not_installed").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "_PACKAGES", {"not_installed": ("some", "a purpose")})
    (finding,) = doctor._packages()
    assert not finding.found


def test_doctor_suggests_fixes_for_missing_compiler_and_account(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("PATH", "HOME", "XDG_CACHE_HOME"), str(tmp_path))
    account = {"NETRC": str(tmp_path / "none"), "WANDB_API_KEY": ""}
    done = run_python("-m", "gridlstm.doctor", check=True, environment=nowhere | account)
    lines = {line[4:].split("  ")[0]: line for line in done.stdout.splitlines()}
    assert lines["pointwise step"].startswith("--")
    assert "apt install gcc" in lines["pointwise step"]
    assert lines["W&B account"].startswith("--")
    assert "wandb login" in lines["W&B account"]


@pytest.mark.parametrize("name", [name for name in commands.COMMANDS if name != "train"])
def test_every_command_prints_help(name: str) -> None:
    done = run_python("-m", f"gridlstm.{name}", "--help", check=True)
    assert f"gridlstm.{name}" in done.stdout
