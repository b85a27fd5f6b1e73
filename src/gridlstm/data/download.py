"""Files from the network and from zip archives, verified by size and SHA-256 before they get their name."""

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
"""Seconds that a server may be silent."""


def fetch(url: str, destination: Path, size: int, sha256: str | None) -> None:
    """Downloads a file over HTTP(S), with a progress bar on stderr.

    Always starts from the first byte: what an interrupted download left could not be verified.

    Args:
        destination: gets the file, whole and verified, or nothing; ``<destination>.part`` while it arrives.
        size: expected, in bytes.
        sha256: expected, in hexadecimal; None where it is not known.

    Raises:
        UserError: no connection, timeout, HTTP error status, wrong size or checksum, directory not writable, disk full.
    """
    _store(_received(url, size, destination.name), destination, size, sha256, url)


def unzip_member(archive: Path, member: str, destination: Path, size: int, sha256: str | None) -> None:
    """Unpacks one member of a zip archive.

    Args:
        destination: gets the member, whole and verified, or nothing; ``<destination>.part`` while it is unpacked.
        size: of the unpacked member, expected, in bytes.
        sha256: of the unpacked member, expected, in hexadecimal; None where it is not known.

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
                    raise UserError(f"{origin}: longer than the {size:,} bytes expected, so it is another file.")
                digest.update(chunk)
                file.write(chunk)
            if received < size:
                raise UserError(
                    f"{origin}: ended after {received:,} of the {size:,} bytes expected: the connection was cut, or it "
                    f"is another file. Run again."
                )
            if sha256 is not None and digest.hexdigest() != sha256:
                raise UserError(
                    f"{origin}: the SHA-256 is {digest.hexdigest()}, expected {sha256}: damaged on the way, or another "
                    f"file. It was removed."
                )
    except OSError as error:
        raise UserError(
            f"cannot write {destination}: {error.strerror}. Make room there, make it writable, or choose another "
            f"directory with data_dir=..."
        ) from error


def _received(url: str, size: int, name: str) -> Generator[bytes, None, None]:
    # The caller's own errors do not pass through here: what is caught below is the network's.
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
        raise UserError(f"{archive} holds no member {member}.") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        # RuntimeError is zipfile's for an encrypted member.
        raise UserError(f"{archive} does not unpack: {error}. Truncated or damaged: replace it.") from error
