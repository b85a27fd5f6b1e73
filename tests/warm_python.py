"""A Python that has already imported torch: a command under test starts in a tenth of a second instead of 6 seconds.

``WarmPython().start()`` returns a program, warm_client.py, that takes the arguments of ``python``. The program asks the
server below, which has already imported the libraries of the commands, to fork. The forked child adopts the arguments,
environment, working directory and streams of the command. The program passes its signals to the child and exits with
the child's status; if the program is killed, the server kills the child. In the child, ``sys.executable`` is the
program, so sweeps and ranks start just as fast.

Use it for tests of what a command does. A test of the process itself (its imports, limits, parents, memory) starts its
own Python.
"""

import array
import atexit
import builtins
import gc
import importlib
import json
import os
import runpy
import selectors
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

_NUMBER = struct.Struct("i")
_CLIENT = Path(__file__).with_name("warm_client.py")
_IMPORTS = ("lightning.pytorch", "torch._dynamo", "wandb", "matplotlib.pyplot", "gridlstm.training.job")
_READ_ONCE = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "MALLOC_", "GLIBC_", "LD_", "LC_", "LANG", "MPL")
"""Variables that Python and libraries read at startup: if one differs from the server's, a real Python is started."""


class WarmPython:
    """Owner of the server. The server imports the libraries at the first request."""

    def start(self) -> str:
        """Start the server; return the program to start instead of ``sys.executable``."""
        self._directory = tempfile.TemporaryDirectory(prefix="warm-python-")
        address, program = Path(self._directory.name) / "socket", Path(self._directory.name) / "python"
        words = [sys.executable, "-IS", str(_CLIENT), str(address)]
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        program.chmod(0o755)
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(address), str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that a terminal's Ctrl-C reaches only the clients
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"listening\n"
        return str(program)

    def stop(self) -> None:
        """End the server and the processes that it has forked."""
        self._server.communicate()  # closes its stdin, at which it ends
        self._directory.cleanup()


def _serve(address: str) -> tuple[dict[str, Any], list[int]]:
    """Answer requests until stdin ends; return, in each forked child, its request and its three streams."""
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(address)
        listener.listen(64)
        print("listening", flush=True)
        selector.register(sys.stdin, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        imported = False
        children: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor that signals their end
        while True:
            (key, _), *_ = selector.select()
            if key.fileobj is sys.stdin:
                for pid, _ in children.values():
                    _kill(pid)
                sys.exit()
            elif key.fileobj is listener:
                connection, _ = listener.accept()
                request, streams = _receive(connection)
                if not _can_fork(request):
                    _tell(connection, 0)
                    _close(streams)
                    connection.close()
                    continue
                if not imported:
                    _import()
                    imported = True
                pid = os.fork()
                if pid == 0:
                    _close(children)
                    for _, other in children.values():
                        other.close()
                    connection.close()
                    return request, streams
                _close(streams)
                _tell(connection, pid)
                descriptor = os.pidfd_open(pid)
                children[descriptor] = pid, connection
                selector.register(descriptor, selectors.EVENT_READ)
                selector.register(connection, selectors.EVENT_READ, pid)
            elif isinstance(key.fileobj, int):
                pid, connection = children.pop(key.fileobj)
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if connection in selector.get_map():
                    selector.unregister(connection)
                    _tell(connection, status)
                connection.close()
            else:  # the client was killed
                selector.unregister(key.fileobj)
                _kill(key.data)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a request and its three streams; the request is {} if its client has been killed meanwhile."""
    message, ancillary, _, _ = connection.recvmsg(_NUMBER.size, socket.CMSG_SPACE(3 * _NUMBER.size))
    streams = array.array("i", ancillary[0][2] if ancillary else b"")
    with connection.makefile("rb") as file:
        content = file.read(*_NUMBER.unpack(message)) if message else b""
    return json.loads(content) if content.endswith(b"}") else {}, list(streams)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _tell(connection: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # the client was killed, which the selector reports too
        connection.sendall(_NUMBER.pack(number))


def _can_fork(request: dict[str, Any]) -> bool:
    """Return True if a forked child behaves like a new Python: it runs code, and the startup variables are equal."""
    first = next((word for word in request.get("arguments", []) if word != "-u"), "-")
    if first.startswith("-") and first not in ("-m", "-c"):
        return False
    environment = request["environment"]
    names = {name for name in (*environment, *os.environ) if name.startswith(_READ_ONCE)} - {"PYTHONPATH"}
    return all(environment.get(name) == os.environ.get(name) for name in names)


def _import() -> None:
    from gridlstm.command import prepare

    prepare()
    for name in _IMPORTS:
        importlib.import_module(name)
    _build()
    gc.collect()
    gc.freeze()  # keeps the children's memory pages shared


def _build() -> None:
    """Build a job once: parsers learn grammars, Hydra finds its plugins, and all modules of a run are imported."""
    from gridlstm.config import compose
    from gridlstm.training.build import build
    from gridlstm.training.validate import check

    with tempfile.TemporaryDirectory() as directory:
        names = ["run.task=memorization", "run.model=grid2d", "run.group=adhoc", f"run.dir={directory}"]
        config = compose("logger=csv", "hardware=cpu", *names)
        check(config)
        build(config)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _become(request: dict[str, Any], streams: list[int], program: str) -> None:
    """Turn this forked process into the requested one."""
    os.setpgid(0, 0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    base = [path for path in sys.path[1:] if path not in _python_path(os.environ)]
    os.chdir(request["directory"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
    sys.executable, sys.orig_argv = program, [program, *request["arguments"]]
    sys.modules["numpy"].random.seed()
    # All children share the directory for temporary files that W&B makes when it is imported: none may remove it.
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False
    atexit.unregister(sys.modules["wandb.sdk.data_types._private"].MEDIA_TMP.cleanup)
    arguments = request["arguments"]
    if arguments[0] == "-u":  # torchrun starts its ranks with it
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        arguments = arguments[1:]
    first, *arguments = arguments
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    directory = os.path.dirname(os.path.abspath(first)) if not first.startswith("-") else os.getcwd()
    sys.path[:] = [directory, *_python_path(os.environ), *base]
    if first == "-m":
        sys.argv = ["-m", *arguments[1:]]
        runpy._run_module_as_main(arguments[0])  # type: ignore[attr-defined]
    elif first == "-c":
        sys.argv = ["-c", *arguments[1:]]
        exec(arguments[0], main.__dict__)
    else:
        sys.argv = [first, *arguments]
        main.__dict__["__file__"] = first
        exec(compile(Path(first).read_bytes(), first, "exec"), main.__dict__)


def _python_path(environment: Any) -> list[str]:
    return [os.path.abspath(path) for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]


def _end(run: Callable[[], None]) -> None:
    """Run a command and exit as Python does, but without tearing down every imported module, which takes a second."""
    status = 0
    try:
        run()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, BrokenPipeError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    _end(partial(_become, *_serve(sys.argv[1]), sys.argv[2]))
