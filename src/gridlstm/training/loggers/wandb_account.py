"""Find the W&B account and the W&B run of a directory, without importing W&B or torch."""

import configparser
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
"""Hosts whose keys wandb 0.31 uses for W&B's own server: the host of its login, and of earlier versions."""

_RUN_ID = "wandb/run-id"


def logged_in() -> bool:
    """Return True if `wandb login` has stored a key or WANDB_API_KEY holds one; no server is contacted.

    Raises:
        UserError: the file of keys is damaged.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = _server()
    hosts = [urlsplit(server).netloc] if server else _HOSTS
    try:
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        keys = netrc.netrc(path)
    except (OSError, RuntimeError):  # the file does not exist or is not readable, or there is no home directory
        return False
    except netrc.NetrcParseError as error:
        raise UserError(f"cannot read the API key from {path}: {error}. Repair the file or use logger=csv.") from error
    return any(keys.authenticators(host) is not None for host in hosts)


def _server() -> str | None:
    """Return the address of a W&B server of one's own: of WANDB_BASE_URL, or of `wandb login --host=…`."""
    if given := os.environ.get("WANDB_BASE_URL"):
        return given
    settings = configparser.ConfigParser(interpolation=None)
    try:
        home = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
        settings.read(home / "settings", encoding="utf-8")
    except (OSError, RuntimeError, ValueError, configparser.Error):  # wandb itself says what is wrong with it
        return None
    return settings.get("default", "base_url", fallback=None)


def unreachable() -> str | None:
    """Return the reason why W&B's server cannot be reached, or None if it can; nodes of many clusters cannot reach it.

    wandb itself would try for a minute and a half. Behind a proxy, return None without a test.
    """
    server = urlsplit(_server() or f"https://{_HOSTS[-1]}")
    if not server.hostname or getproxies().get(server.scheme):
        return None
    try:
        socket.create_connection((server.hostname, server.port or (80 if server.scheme == "http" else 443)), 10).close()
    except OSError as error:
        return f"W&B cannot be reached at {server.netloc} ({error})"
    return None


def known_run_id(directory: Path) -> str | None:
    """Return the id of the W&B run of a directory, or None."""
    file = directory / _RUN_ID
    return file.read_text().strip() if file.exists() else None


def run_id(directory: Path, goes_on: bool) -> str:
    """Return the id of a directory's W&B run: the stored one if the run continues, else a new one, which is stored.

    The id is stored in a file because a directory may move, and directories on two machines may have the same path.
    """
    if goes_on and (known := known_run_id(directory)):
        return known
    new = secrets.token_hex(6)
    write_text(directory / _RUN_ID, f"{new}\n")
    return new
