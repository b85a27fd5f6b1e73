"""Whether there is a W&B account, and which W&B run belongs to a directory: what needs neither W&B nor torch."""

import netrc
import os
import secrets
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from gridlstm.errors import UserError
from gridlstm.files import write_text

_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
"""Whose keys wandb 0.31 takes for W&B's own server: that of its login, and that of earlier versions."""

_RUN_ID = "wandb/run-id"


def logged_in() -> bool:
    """Whether `wandb login` has stored a key, or WANDB_API_KEY holds one; asks no server.

    Raises:
        UserError: the file of keys is damaged.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    server = os.environ.get("WANDB_BASE_URL")
    hosts = [urlsplit(server).netloc] if server else _HOSTS
    try:
        keys = netrc.netrc(path)
    except OSError:  # there is none, or none for us
        return False
    except netrc.NetrcParseError as error:
        raise UserError(f"cannot read the API key from {path}: {error}. Mend the file or use logger=csv.") from error
    return any(keys.authenticators(host) is not None for host in hosts)


def unreachable() -> str | None:
    """Why the server of W&B cannot be reached from here, as from the nodes of many a cluster; None where it can.

    Tried here because wandb itself tries for a minute and a half. Behind a proxy nothing is tried.
    """
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or f"https://{_HOSTS[-1]}")
    if not server.hostname or getproxies().get(server.scheme):
        return None
    try:
        socket.create_connection((server.hostname, server.port or (80 if server.scheme == "http" else 443)), 10).close()
    except OSError as error:
        return f"W&B cannot be reached at {server.netloc} ({error})"
    return None


def known_run_id(directory: Path) -> str | None:
    """The id of the W&B run of a directory; None where it has none."""
    file = directory / _RUN_ID
    return file.read_text().strip() if file.exists() else None


def run_id(directory: Path, goes_on: bool) -> str:
    """The id of a directory's W&B run: the old one if there is one and it goes on, else a new one, which is kept.

    Kept in a file, because a directory may move, and directories on two machines may have the same path.
    """
    if goes_on and (known := known_run_id(directory)):
        return known
    new = secrets.token_hex(6)
    write_text(directory / _RUN_ID, f"{new}\n")
    return new
