"""The client of warm_python.py: a bare Python that represents the process that the server forks for it."""

import json
import os
import signal
import socket
import struct
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


NUMBER = struct.Struct("i")


def receive(connection: socket.socket) -> int:
    """Receive the next number."""
    message = connection.recv(NUMBER.size, socket.MSG_WAITALL)
    if not message:
        sys.exit("the server of warm_python.py has ended")
    return int(*NUMBER.unpack(message))


def main(address: str, arguments: list[str]) -> None:
    """Ask the server to run a command; exit with its status."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    umask = os.umask(0)
    os.umask(umask)
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "umask": umask,
        "ignored": [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN],
    }
    content = json.dumps(request).encode()
    socket.send_fds(connection, [NUMBER.pack(len(content))], [0, 1, 2])
    connection.sendall(content)
    pid = receive(connection)
    if not pid:
        os.execv(sys.executable, [sys.executable, *arguments])
    for number in PASSED_ON:
        if number not in request["ignored"]:
            signal.signal(number, lambda number, _: os.kill(pid, number))
    status = receive(connection)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


main(sys.argv[1], sys.argv[2:])
