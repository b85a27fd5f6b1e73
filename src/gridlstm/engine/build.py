"""Compilation of the engine's C and C++ sources with the machine's compiler, once, into the user's cache."""

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gridlstm.files import cache_directory

HERE = Path(__file__).parent


class NotBuiltError(Exception):
    """The compiler is missing or failed. The message says why."""


def load(
    name: str, compilers: Sequence[str], sources: Sequence[Path], flags: Sequence[str], headers: Sequence[Path] = ()
) -> ctypes.CDLL:
    """Load the library of these sources, from the cache after the first time (a build takes seconds).

    Args:
        name: first part of the library's file name.
        compilers: commands; the first that is installed is used.
        sources: files to compile.
        flags: passed after the sources, so that they may include libraries.
        headers: other files that the result depends on.

    Raises:
        NotBuiltError: if the compiler, a home directory or disk space for the result is missing.
    """
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        raise NotBuiltError(f"no compiler found ({' or '.join(compilers)})")
    try:
        parts = [path.read_bytes() for path in (*headers, *sources)] + [" ".join(flags).encode(), _processor().encode()]
        key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
        built = cache_directory() / f"{name}-{key}.so"
        if (library := _intact(built)) is None:
            built.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Built elsewhere and renamed, so that processes that start together never load half a file.
            with tempfile.TemporaryDirectory(dir=built.parent) as directory:
                fresh = Path(directory) / built.name
                command = [compiler, "-shared", "-fPIC", "-o", str(fresh), *map(str, sources), *flags]
                subprocess.run(command, check=True, capture_output=True, text=True)
                fresh.replace(built)
            library = ctypes.CDLL(str(built))
        return library
    except subprocess.CalledProcessError as error:
        raise NotBuiltError(next(iter(error.stderr.strip().splitlines()[-1:]), str(error))) from error
    except OSError as error:  # also without a home directory
        raise NotBuiltError(str(error)) from error


def _intact(built: Path) -> ctypes.CDLL | None:
    """Return a library of the cache; None if it is not there or damaged, as after a full disk or a crash."""
    try:
        return ctypes.CDLL(str(built)) if built.exists() else None
    except OSError:
        return None


def _processor() -> str:
    """Return the processor's model and flags, on which -march=native depends: machines may share a home directory."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    kinds = ("model", "flags", "Features", "CPU ")  # for x86 and ARM
    return "".join(sorted({line for line in cpuinfo.read_text().splitlines() if line.startswith(kinds)}))
