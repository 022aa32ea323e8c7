"""Files that are either whole or absent: JSON and compressed rows, written by rename."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import math
import os
import tempfile
import tomllib
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from .errors import RecordError, StorageError, UsageError

DEPTH = 32
"""How deeply tables of a study may be nested."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write atomically: temporary file beside it, fsync, rename.

    Raises:
        StorageError: the disk is full, over quota or read-only; the old file stays unchanged.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise as_storage_error(error, path) from error


def shared_modes(folder: Path) -> None:
    """Give a temporary folder and its files, which only their owner can read, the modes that the umask allows."""
    mask = _umask()
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def as_storage_error(error: OSError, path: Path) -> Exception:
    """A HarnessError with a remedy where the disk or its permissions are at fault; else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return StorageError(f"cannot write {path}: {error.strerror}; free some space and run the command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return UsageError(f"cannot write {path}: {error.strerror}; choose another place, or make it writable")
    return error


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON (sorted keys, non-finite numbers as strings) atomically."""
    write_bytes(path, (json.dumps(finite(value), indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path, remedy: str) -> Any:
    """Parse a file that ``write_json`` wrote. Raises RecordError with ``remedy`` where it is absent or broken."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not valid JSON ({error}); {remedy}") from error


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON that holds its own hash, by which ``read_sealed`` detects damage."""
    write_json(path, {**value, "sha256": digest(value)})


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """Read what ``write_sealed`` wrote. Raises RecordError with ``remedy`` where it is absent, broken or changed."""
    value = read_json(path, remedy)
    try:
        whole = isinstance(value, dict) and value.pop("sha256", None) == digest(value)
    except RecursionError:
        whole = False
    if not whole:
        raise RecordError(f"{path} is not what was written there (its hash differs); {remedy}")
    content: dict[str, Any] = value
    return content


def read_toml(path: Path | Traversable) -> dict[str, Any]:
    """Read the tables of a TOML file; skips a leading byte-order mark.

    Raises:
        ValueError: it is not TOML, is nested too deeply, or holds a date, which no study has.
        OSError: it cannot be read.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        _refuse_odd(content, 0)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return content


def _refuse_odd(value: Any, depth: int) -> None:
    if depth > DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            _refuse_odd(item, depth + 1)
    elif not isinstance(value, str | int | float | bool):
        raise ValueError(f"{value} is a date or time; put it in quotes")


def rows_as_bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON lines, gzipped without a time stamp, so that equal rows give equal bytes."""
    text = "".join(json.dumps(finite(row), sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    return gzip.compress(text.encode("utf-8", "surrogatepass"), compresslevel=6, mtime=0)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a sample file. Raises RecordError where it is absent, truncated or not JSON lines."""
    try:
        text = gzip.decompress(path.read_bytes()).decode("utf-8", "surrogatepass")
        rows = [json.loads(line) for line in text.split("\n") if line]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a row is no object")
        return rows
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; run the study again to make it") from None
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise RecordError(f"{path} cannot be read ({error}); run the study again to make it again") from error


PLAIN = frozenset((str, int, bool, type(None)))


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by strings that ``float`` reads back."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    # Asked of every value of a plan of thousands of cells: what most are is told without a call.
    if isinstance(value, dict | Mapping):
        return {str(key): item if type(item) in PLAIN else finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [item if type(item) in PLAIN else finite(item) for item in value]
    return value


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form, as 64 hex digits."""
    text = json.dumps(finite(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    total = hashlib.sha256()
    # hashlib.file_digest makes room for 256 KiB first, of which most of the thousands of files here fill a hundredth.
    with path.open("rb", buffering=0) as file:
        while block := file.read(2**16):
            total.update(block)
    return total.hexdigest()


def known_digest(path: Path) -> str:
    """``file_digest``, cached in the process until the file's inode, size or time changes."""
    facts = path.stat()
    return _digest_of(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@cache
def _digest_of(path: Path, inode: int, size: int, modified: int) -> str:
    return file_digest(path)
