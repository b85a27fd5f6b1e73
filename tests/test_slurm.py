"""Sweeps in the queue of a real SLURM, whose controller and node these tests start and end on this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PATIENCE, ROOT, TOO_MANY_LAYERS, compose, free_ports, python, run_python, wait_for

from gridlstm.multirun.process_tree import ProcessTree
from gridlstm.training.job import run_job

SMALL = [
    "logger=csv", "model.num_layers=1", "model.hidden_size=4", "task.length=2", "task.data.num_val=15",
    "task.data.num_test=15", "trainer.max_steps=4", "task.val_every=2", "trainer.log_every_n_steps=1",
    "trainer.precision=64-true",  # in float32, processes may choose kernels that round differently
]  # fmt: skip
DAEMONS_SECONDS = 180.0
"""Seconds to wait for SLURM to start before its tests are skipped."""
IN_QUEUE = ["hardware=slurm", "trainer.accelerator=cpu", "hydra.launcher.cpus_per_process=1", "hydra.sweep.dir=sweep"]

# A requeued job waits for cred_expire seconds, and is then considered every sched_interval. There is no systemd, which
# cgroups need, and no accounting.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmdParameters=config_overrides
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=6 RealMemory=1000
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=1
PartitionName=high Nodes=ALL State=UP PriorityTier=2
"""


def ask(*line: str) -> str:
    """Run a program of SLURM; return its output."""
    return subprocess.run(line, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout.strip()


def states() -> dict[str, str]:
    """Return the state of every job that SLURM knows, by number."""
    return dict(row.split() for row in ask("squeue", "--noheader", "--states=all", "--format=%A %T").splitlines())  # type: ignore[misc]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start a SLURM with one node of six CPUs, and configure SLURM's programs to use it."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"SLURM is not here ({', '.join(missing)}): apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("only root can start SLURM's daemons")
    directory = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (directory / name).mkdir()
    key = directory / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    configuration = directory / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    configuration.write_text(CONFIGURATION.format(host=host, ports=free_ports(2), directory=directory))
    files = {"socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed", "log-file": "munge.log"}
    munge = [f"--{option}={directory / name}" for option, name in files.items()]
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", *munge],
        ["slurmctld", "-D", "-f", str(configuration)],
        ["slurmd", "-D", "-f", str(configuration)],
    ]
    logs = [directory / f"{command[0]}.log" for command in commands]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(configuration))
        daemons: list[ProcessTree] = []
        try:
            for command, file in zip(commands, logs, strict=True):
                daemons.append(ProcessTree(command, os.environ, file))
                if command[0] == "munged":
                    wait_for((directory / "munge.socket").exists, DAEMONS_SECONDS)
            line = ["sinfo", "--noheader", "--partition=low", "--format=%t"]
            node = lambda: subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()  # noqa: E731
            wait_for(lambda: node() == "idle", DAEMONS_SECONDS)
        except AssertionError:
            _end(daemons)
            pytest.skip("SLURM does not start here:\n" + "\n".join(file.read_text()[-500:] for file in logs))
        yield
        subprocess.run(["scancel", "--user=root"], check=True)
        wait_for(lambda: not set(states().values()) & {"PENDING", "RUNNING", "COMPLETING"})
        _end(daemons)


def _end(daemons: list[ProcessTree]) -> None:
    for daemon in reversed(daemons):
        daemon.interrupt()
        wait_for(lambda daemon=daemon: daemon.ended() is not None)  # type: ignore[misc]
        daemon.kill()


@pytest.fixture
def start(slurm: None, tmp_path: Path, _ctrl_c: None) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a sweep in ``tmp_path``; end all sweeps and jobs after the test."""
    (tmp_path / "pause.py").write_text(PAUSE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, program: str = python()) -> subprocess.Popen[str]:
        line = [program, str(ROOT / "train.py"), "-m", *IN_QUEUE, *SMALL, *arguments]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()
    subprocess.run(["scancel", "--user=root"], check=True)


PAUSE = """
import pathlib, time, lightning as L

class Pause(L.Callback):
    'Waits before some steps, for ever if need be, until a file allows the step.'

    def on_train_batch_start(self, trainer, *_):
        step = trainer.global_step
        while step in (3, 5) and not pathlib.Path(f"go{step}").exists():
            pathlib.Path(f"waits{step}").touch()
            time.sleep(0.1)
"""
PAUSING = "+callbacks.pause={_target_: pause.Pause}"


def results(directory: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(directory.glob("sweep/*/result.json"))}


def test_points_of_two_ranks_are_jobs_and_a_failing_one_is_contained(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    sweep = start("trainer.devices=2", "model.tied=false", f"model.num_layers={TOO_MANY_LAYERS},1,2")
    said, errors = sweep.communicate(timeout=PATIENCE)
    found = results(tmp_path)
    assert [result["status"] for result in found.values()] == ["failed", "completed", "completed"], errors
    assert sweep.returncode == 1
    assert "error: 1 of 3 jobs failed." in errors
    assert "0-memorization-grid2d-s1: UserError: these sizes need more memory than is available" in errors
    assert [result["processes"] for result in list(found.values())[1:]] == [2, 2]
    assert [result["samples"] for result in list(found.values())[1:]] == [60, 60]
    numbers = [json.loads((tmp_path / "sweep" / name / "slurm.json").read_text())["job"] for name in found]
    assert [states()[number] for number in numbers] == ["FAILED", "COMPLETED", "COMPLETED"]
    assert "1-memorization-grid2d-s1 (model.num_layers=1): queued" in said

    before = states()
    again = start("trainer.devices=2", "model.tied=false", "model.num_layers=1,2")
    said, errors = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, errors
    assert "0 jobs (2 more were completed earlier)" in said
    assert states() == before, "the repeated sweep must submit nothing"


def test_requeued_and_preempted_job_resumes_bit_for_bit(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    # SLURM signals only processes that it started, so the sweep uses no process behind python().
    sweep = start(PAUSING, "trainer.max_steps=6", program=sys.executable)
    wait_for((tmp_path / "waits3").exists)
    (number,) = (state for state in states() if states()[state] == "RUNNING")
    subprocess.run(["scancel", "--signal=USR2", number], check=True)  # SLURM sends the same before a time limit
    wait_for(lambda: states()[number] != "RUNNING")
    (tmp_path / "go3").touch()
    wait_for((tmp_path / "waits5").exists)
    more_urgent = ["sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true"]
    subprocess.run(more_urgent, check=True, capture_output=True)
    wait_for(lambda: states()[number] != "RUNNING")
    (tmp_path / "go5").touch()
    _, errors = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 0, errors
    job = tmp_path / "sweep" / "0-memorization-grid2d-s1"
    assert (job / "console.log").read_text().count("run directory:") == 3, "the job must have run three times"
    assert ask("scontrol", "show", "job", number).count("Restarts=2") == 1

    names = ["run.task=memorization", "run.model=grid2d", "run.group=test", f"run.dir={tmp_path / 'whole'}"]
    assert results(tmp_path)[job.name]["score"] == run_job(
        compose(*SMALL, "trainer.max_steps=6", "hardware=cpu", *names)
    )
    assert (job / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    ends = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (job, tmp_path / "whole")]
    assert [end["global_step"] for end in ends] == [6, 6]
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][name]), name


def test_sweep_adopts_queued_jobs_and_cancels_them_on_interrupt(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    options = [
        PAUSING, "seed=1,2", "hydra.launcher.cpus_per_process=4", "hydra.launcher.mem_gb=0.25",
        "hydra.launcher.timeout_min=7", "+hydra.launcher.additional_parameters.comment=mine",
    ]  # fmt: skip
    files = [tmp_path / "sweep" / f"{n}-memorization-grid2d-s{n + 1}" / "slurm.json" for n in range(2)]
    killed = start(*options)
    wait_for(lambda: all(file.exists() for file in files))
    killed.kill()
    killed.communicate()
    before, numbers = states(), [json.loads(file.read_text())["job"] for file in files]
    again = start(*options)
    assert again.stdout is not None
    for line in again.stdout:
        if "1-memorization" in line:
            break
    assert set(states()) == set(before)
    assert [json.loads(file.read_text())["job"] for file in files] == numbers
    shown = ask("scontrol", "show", "job", numbers[0])
    for words in ("CPUs/Task=4", "MinMemoryNode=256M", "TimeLimit=00:07:00", "Comment=mine", "Requeue=1"):
        assert words in shown
    again.send_signal(signal.SIGINT)
    _, errors = again.communicate(timeout=PATIENCE)
    assert again.returncode == 128 + signal.SIGINT, errors
    wait_for(lambda: {states()[number] for number in numbers} == {"CANCELLED"})
    assert {result["status"] for result in results(tmp_path).values()} == {"interrupted"}


def test_slurm_refusal_is_reported_without_a_traceback(start: Callable[..., subprocess.Popen[str]]) -> None:
    sweep = start("hydra.launcher.partition=nowhere")
    _, errors = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 1
    assert "SLURM refuses 0-memorization-grid2d-s1: sbatch: error: invalid partition" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hardware=slurm"], "error: hardware=slurm submits the jobs of a sweep. Add -m, even for a sweep of one job."),
        (["-m", "hardware=slurm", "trainer.devices=-1"], "hardware=slurm needs the number of devices per node"),
        (["-m", "hardware=slurm", "hydra.launcher.timeout_min=0"], "hydra.launcher.timeout_min must be a whole number"),
        (
            ["-m", "hardware=slurm", "hydra.launcher.setup=module"],
            "hydra.launcher.setup must be a list of shell commands",
        ),
        (["-m", "hardware=slurm"], "error: hardware=slurm needs SLURM, but sbatch is missing here"),
    ],
)
def test_invalid_submissions_are_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run_python(str(ROOT / "train.py"), *arguments, cwd=tmp_path, environment={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
