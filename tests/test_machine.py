"""Cores and memory are those of a container with limits, as versions 1 and 2 of Linux's control groups give them."""

import os
from pathlib import Path

import pytest
import torch

from gridlstm import command, machine

GIB = 1 << 30
FILES = {
    "version 2": ("0::/", {"cpu.max": "200000 100000", "memory.max": f"{GIB}"}),
    "version 2, the group around": ("0::/pod/box", {"pod/cpu.max": "250000 100000", "pod/memory.max": f"{GIB}"}),
    "version 1": (
        "4:memory:/docker/4f\n3:cpu,cpuacct:/docker/4f\n1:name=systemd:/",
        {
            "cpu/cpu.cfs_quota_us": "200000",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/docker/4f/memory.limit_in_bytes": f"{GIB}",
        },
    ),
}


def written(place: Path, groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        (place / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "root" / name).write_text(f"{text}\n")
    (place / "groups").write_text(f"{groups}\n")
    return place / "groups", place / "root"


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize("kind", FILES)
def test_limits_of_a_container_count(kind: str, tmp_path: Path, eight_cores: None) -> None:
    where = written(tmp_path, *FILES[kind])
    assert machine.cores(*where) == 2
    assert machine.memory(*where) == GIB


@pytest.mark.parametrize(
    ("cpu", "expected"), [("max 100000", 8), ("50000 100000", 1), ("9900000 100000", 8), ("", 8), ("nonsense", 8)]
)
def test_a_share_is_at_least_one_core_and_at_most_the_affinity(
    cpu: str, expected: int, tmp_path: Path, eight_cores: None
) -> None:
    assert machine.cores(*written(tmp_path, "0::/", {"cpu.max": cpu})) == expected


def test_without_limits_the_whole_machine_counts(tmp_path: Path, eight_cores: None) -> None:
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    unlimited = {
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "9" * 19,
    }
    for where in (written(tmp_path, "3:cpu:/\n4:memory:/", unlimited), (tmp_path / "none", tmp_path / "none")):
        assert machine.cores(*where) == 8
        assert machine.memory(*where) == everything


@pytest.mark.parametrize(("given", "expected"), [(None, 1), ("2", 2)])
def test_a_command_starts_no_more_threads_than_its_share(
    given: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 1)
    monkeypatch.setattr(machine, "shown_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        command.prepare()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
