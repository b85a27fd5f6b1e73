"""The Python that starts the commands of other tests behaves like a plain Python."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import PATIENCE, python, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems use a plain Python")


def outcome(program: str, *arguments: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [program, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        input="some input",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.rpartition("\n  File")[2].partition("\n")[2]


SEEN = """
import __main__, os, sys
print(sys.argv, __name__, __main__.__spec__ is not None, sys.stdin.read(), os.getcwd(), os.environ["MINE"])
print(sys.path[:2], os.path.basename(getattr(__main__, "__file__", "")), file=sys.stderr)
"""


@pytest.mark.parametrize("how", [["mine.py"], ["-m", "mine"], ["-u", "mine.py"]])
def test_program_sees_the_same_environment_as_in_python(tmp_path: Path, how: list[str]) -> None:
    (tmp_path / "mine.py").write_text(SEEN)
    path = {"MINE": "1", "PYTHONPATH": str(tmp_path / "nowhere")}
    found = outcome(python(), *how, "a b", "", cwd=tmp_path, **path)
    assert found == outcome(sys.executable, *how, "a b", "", cwd=tmp_path, **path)
    assert found[0] == 0


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(3)",
        "import sys; sys.exit('one sentence')",
        "import sys; sys.exit()",
        "1 / 0",
        "import os; os.abort()",
        "import os; os.kill(os.getpid(), 15)",
        "import atexit; atexit.register(print, 'at the end'); print('before')",
        "import threading; threading.Timer(0.1, print, ['late']).start()",
        "import signal; print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))",
        "import sys; sys.stdout.write('no line')",
    ],
)
def test_program_exits_as_in_plain_python(tmp_path: Path, code: str) -> None:
    assert outcome(python(), "-c", code, cwd=tmp_path) == outcome(sys.executable, "-c", code, cwd=tmp_path)


def test_warm_python_respects_startup_environment_variables(tmp_path: Path) -> None:
    code = "import torch; print(torch.get_num_threads())"
    for threads in ("1", "2"):
        assert outcome(python(), "-c", code, cwd=tmp_path, OMP_NUM_THREADS=threads)[1] == f"{threads}\n"


WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
pathlib.Path("ready").write_text(str(__import__("os").getpid()))
while True: time.sleep(0.01)
"""


def test_signals_reach_the_program_and_a_kill_ends_it(tmp_path: Path) -> None:
    for number, status in ((signal.SIGTERM, 7), (signal.SIGKILL, -signal.SIGKILL)):
        process = subprocess.Popen([python(), "-c", WAITS], cwd=tmp_path)
        wait_for(lambda: (tmp_path / "ready").exists() and (tmp_path / "ready").read_text() != "")
        pid = int((tmp_path / "ready").read_text())
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE) == status
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]
        (tmp_path / "ready").unlink()


def test_programs_that_a_program_starts_are_warm_too(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(\"torch\" in sys.modules)'])"
    )
    assert outcome(python(), "-c", code, cwd=tmp_path)[1] == "True\n"
