"""Reads an offline W&B run back: wandb's own protobuf records, out of the LevelDB log that holds them.

wandb 0.31 ships the records' classes but no longer a reader of the file for Python.
"""

import struct
from pathlib import Path

from tests.conftest import wait_for
from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32768
_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = range(1, 5)


def read_back(run_file: Path) -> dict[str, list[Record]]:
    """The records of one run that has ended, by kind."""
    # finish() returns a moment before wandb's service has written the end.
    wait_for(lambda: "exit" in _records(run_file.read_bytes()))
    return _records(run_file.read_bytes())


def _records(data: bytes) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    if not data:
        return found
    assert data.startswith(b":W&B")
    at, parts = 7, b""  # seven bytes say what file this is
    while at + _HEADER.size <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER.size:  # the rest of a block is too short for a record
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        if at + length > len(data):  # being written
            break
        parts = (b"" if kind in (_FULL, _FIRST) else parts) + data[at : at + length]
        at += length
        if kind in (_FULL, _LAST):
            record = Record.FromString(parts)
            found.setdefault(str(record.WhichOneof("record_type")), []).append(record)
    return found
