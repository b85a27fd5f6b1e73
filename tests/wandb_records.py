"""Read an offline W&B run back: wandb's protobuf records from the LevelDB log that holds them.

wandb 0.31 contains the classes of the records, but no longer a Python reader of the file.
"""

import struct
from pathlib import Path

from tests.conftest import wait_for
from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32768
_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = range(1, 5)


def read_back(run_file: Path) -> dict[str, list[Record]]:
    """Return the records of a finished run by kind."""
    # finish() returns shortly before wandb's service has written the last record.
    wait_for(lambda: "exit" in _records(run_file.read_bytes()))
    return _records(run_file.read_bytes())


def _records(data: bytes) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    if not data:
        return found
    assert data.startswith(b":W&B")
    at, parts = 7, b""  # the file header has seven bytes
    while at + _HEADER.size <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER.size:  # the rest of a block is too short for a record
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        if at + length > len(data):  # the record is still being written
            break
        parts = (b"" if kind in (_FULL, _FIRST) else parts) + data[at : at + length]
        at += length
        if kind in (_FULL, _LAST):
            record = Record.FromString(parts)
            found.setdefault(str(record.WhichOneof("record_type")), []).append(record)
    return found
