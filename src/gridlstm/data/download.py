"""Get files from the network and from zip archives; verify size and SHA-256 before a file gets its name."""

import hashlib
import http.client
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from gridlstm.errors import UserError
from gridlstm.files import replacing

CHUNK = 1 << 18
"""Bytes read at a time."""
TIMEOUT = 30.0
"""Seconds to wait for a silent server."""


def fetch(url: str, destination: Path, size: int, sha256: str | None) -> None:
    """Download a file over HTTP(S), with a progress bar on stderr.

    Always start from the first byte, because a partial download cannot be verified.

    Args:
        url: address of the file.
        destination: gets the complete, verified file or nothing; ``<destination>.part`` holds the partial file.
        size: expected size in bytes.
        sha256: expected SHA-256 in hexadecimal; None if it is unknown.

    Raises:
        UserError: no connection, timeout, HTTP error status, wrong size or checksum, directory not writable, disk full.
    """
    _store(_received(url, size, destination.name), destination, size, sha256, url)


def unzip_member(archive: Path, member: str, destination: Path, size: int, sha256: str | None) -> None:
    """Unpack one member of a zip archive.

    Args:
        archive: path of the archive.
        member: name of the member.
        destination: gets the complete, verified member or nothing; ``<destination>.part`` holds the partial one.
        size: expected size of the unpacked member in bytes.
        sha256: expected SHA-256 of the unpacked member in hexadecimal; None if it is unknown.

    Raises:
        UserError: damaged archive, no such member, wrong size or checksum, directory not writable, disk full.
    """
    _store(_unpacked(archive, member), destination, size, sha256, f"{archive}, member {member}")


def _store(chunks: Generator[bytes, None, None], destination: Path, size: int, sha256: str | None, origin: str) -> None:
    digest = hashlib.sha256()
    received = 0
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with closing(chunks), replacing(destination) as file:
            for chunk in chunks:
                received += len(chunk)
                if received > size:
                    raise UserError(f"{origin}: more than the expected {size:,} bytes, so it is another file.")
                digest.update(chunk)
                file.write(chunk)
            if received < size:
                raise UserError(
                    f"{origin}: ended after {received:,} of {size:,} expected bytes. The connection was cut, or it is "
                    f"another file. Run again."
                )
            if sha256 is not None and digest.hexdigest() != sha256:
                raise UserError(
                    f"{origin}: the SHA-256 is {digest.hexdigest()}, expected {sha256}. The file is damaged or another "
                    f"file, and was removed."
                )
    except OSError as error:
        raise UserError(
            f"cannot write {destination}: {error.strerror}. Free space there, make it writable, or choose another "
            f"directory with data_dir=..."
        ) from error


def _received(url: str, size: int, name: str) -> Generator[bytes, None, None]:
    # Errors of the caller do not pass through here: the clauses below catch network errors only.
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "gridlstm"})
    except ValueError as error:
        raise UserError(f"{url}: {error}. Expected http://... or https://...") from error
    try:
        with (
            urllib.request.urlopen(request, timeout=TIMEOUT) as response,
            tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, desc=name) as bar,
        ):
            while chunk := response.read(CHUNK):
                bar.update(len(chunk))
                yield chunk
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answered {error.code} {error.reason}.") from error
    except TimeoutError as error:
        raise UserError(f"{url}: no answer for {TIMEOUT:g} seconds. Check the network and run again.") from error
    except urllib.error.URLError as error:
        raise UserError(f"{url}: cannot be reached: {error.reason}. Check the network and run again.") from error
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url}: the transfer failed: {error!r}. Run again.") from error


def _unpacked(archive: Path, member: str) -> Generator[bytes, None, None]:
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except KeyError as error:
        raise UserError(f"{archive} has no member {member}. Replace the archive.") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        # zipfile raises RuntimeError for an encrypted member.
        raise UserError(f"{archive} does not unpack: {error}. It is truncated or damaged: replace it.") from error
