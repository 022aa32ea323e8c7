"""Reads an untrusted bundle: accepts fixed names and bounded sizes, and imports nothing from it."""

from __future__ import annotations

import gzip
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..domain import CellStatus
from ..errors import UNPRINTABLE, BundleError
from ..records.manifest import BUNDLE_SCHEMA, MANIFEST, BundledCell, Manifest
from ..records.record import SAMPLES, Record, read_record
from ..records.run_folder import RECORD, STUDY, FinishedCell, StoredCell
from ..storage import file_digest, read_toml

KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,199}")
# Far above a study of every method on every benchmark, far below the capacity of a machine.
ENTRIES = 50_000
CELLS = 20_000
LARGEST = {MANIFEST: 2**23, STUDY: 2**16, RECORD: 2**21, SAMPLES: 2**25}
TOTAL = 2**32
# Limits of a sample file: before parsing, bytes in all and of a line; then rows, their parts, and values.
UNZIPPED = 2**26
LINE = 2**20
ROWS = 200_000
PARTS = 100
VALUES = 2_000_000
TEXT = 50_000
DEPTH = 32


@dataclass(frozen=True)
class Bundle:
    """An unpacked bundle: ``folder`` holds its files under checked names."""

    path: Path
    folder: Path
    manifest: Manifest

    def cells(self, edition: str = "") -> Iterator[StoredCell]:
        """Every cell of the manifest, with its record in the edition asked for (the bundle's own by default)."""
        for cell in self.manifest.cells:
            folder = self.folder / "cells" / cell.key
            if cell.status == CellStatus.DONE:
                record = _own_record(folder, cell).in_edition(edition or self.manifest.edition)
                yield FinishedCell(cell.key, cell.identity, cell.status, cell.reason, folder, record)
            else:
                yield StoredCell(cell.key, cell.identity, cell.status, cell.reason, folder)

    def study(self) -> dict[str, Any]:
        """The study file's tables. Raises BundleError where it is not TOML."""
        try:
            return read_toml(self.folder / STUDY)
        except (ValueError, OSError) as error:
            raise BundleError(f"{self.path}: {STUDY} is not TOML ({error})") from error


def unpacked(path: Path, folder: Path) -> Bundle:
    """Unpack an untrusted bundle into an empty folder.

    Accepts only names that a bundle may have, counts bytes while it reads them and checks hashes; refuses links,
    duplicate names and anything else.

    Raises:
        BundleError: the bundle breaks a rule; names the rule and the place.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _unpack(path, archive, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        raise BundleError(f"{path} is not a readable bundle ({type(error).__name__}: {_plain(error)})") from error
    manifest = _manifest(path, folder)
    _compare(path, folder, manifest)
    return Bundle(path, folder, manifest)


def _unpack(path: Path, archive: zipfile.ZipFile, folder: Path) -> None:
    entries = archive.infolist()
    if len(entries) > ENTRIES:
        raise BundleError(f"{path} has {len(entries)} entries; at most {ENTRIES} are read")
    seen: set[str] = set()
    left = TOTAL
    for entry in entries:
        name = entry.filename
        limit = _limit(path, name)
        if stat.S_ISLNK(entry.external_attr >> 16) or entry.is_dir():
            raise BundleError(f"{path}: {_shown(name)} is a link or a folder; a bundle holds plain files")
        if entry.flag_bits & 1:
            raise BundleError(f"{path}: {_shown(name)} is encrypted")
        # Two names that differ in case alone are one file on some systems.
        if name.casefold() in seen:
            raise BundleError(f"{path}: {_shown(name)} is there twice")
        seen.add(name.casefold())
        # The sizes that the archive claims are not trusted: reading stops one byte after the limit.
        with archive.open(entry) as file:
            content = file.read(min(limit, left) + 1)
        if len(content) > limit:
            raise BundleError(f"{path}: {_shown(name)} has more than {limit} bytes")
        left -= len(content)
        if left < 0:
            raise BundleError(f"{path} unpacks to more than {TOTAL} bytes")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _limit(path: Path, name: str) -> int:
    """The most bytes that a file of this name may have. Raises BundleError for a name that no bundle has."""
    if name in (MANIFEST, STUDY):
        return LARGEST[name]
    parts = name.split("/")
    if len(parts) == 3 and parts[0] == "cells" and KEY.fullmatch(parts[1]) and parts[2] in (RECORD, SAMPLES):
        return LARGEST[parts[2]]
    raise BundleError(
        f"{path}: {_shown(name)} is no name in a bundle, which holds {MANIFEST}, {STUDY} and cells/KEY/{RECORD} with "
        f"{SAMPLES}"
    )


def _manifest(path: Path, folder: Path) -> Manifest:
    file = folder / MANIFEST
    if not file.is_file():
        raise BundleError(f"{path} has no {MANIFEST}; make bundles with: unlearnbench bundle RUN -o FILE")
    raw = strict_json(file.read_bytes(), f"{path}: {MANIFEST}")
    _refuse_controls(raw, f"{path}: {MANIFEST}")
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > BUNDLE_SCHEMA:
        raise BundleError(
            f"{path} has bundle schema {version}; this unlearnbench reads up to {BUNDLE_SCHEMA}: upgrade it"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {MANIFEST}: {_plain(where)}: {_plain(first['msg'])}") from error
    for what, text in _texts(manifest):
        if any(not letter.isprintable() and letter != "\n" for letter in text):
            raise BundleError(f"{path}: {MANIFEST}: {what} has control characters: {_shown(text)}")
    keys = [cell.key for cell in manifest.cells]
    if len(keys) > CELLS:
        raise BundleError(f"{path}: {MANIFEST} has {len(keys)} cells; at most {CELLS} are read")
    for key in keys:
        if not KEY.fullmatch(key):
            raise BundleError(f"{path}: {MANIFEST}: {_shown(key)} is no key of a cell")
    if len({key.casefold() for key in keys}) < len(keys):
        raise BundleError(f"{path}: {MANIFEST}: two cells have the same key")
    return manifest


def _texts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "study", manifest.study
    yield "unlearnbench", manifest.unlearnbench
    yield from manifest.submission.model_dump().items()
    for cell in manifest.cells:
        for name in ("method", "benchmark", "model", "status"):
            yield f"{name} of {cell.key[:80]}", getattr(cell, name)
    for plugin in manifest.plugins:
        for name, text in plugin.items():
            yield "plugins", name + text


def _compare(path: Path, folder: Path, manifest: Manifest) -> None:
    """Check files against the manifest: none missing, none extra, hashes equal, every finished cell complete."""
    there = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {MANIFEST}
    listed = set(manifest.files)
    for name in sorted(listed - there)[:1]:
        raise BundleError(f"{path}: {_shown(name)} is in the manifest and not in the bundle")
    for name in sorted(there - listed)[:1]:
        raise BundleError(f"{path}: {_shown(name)} is in the bundle and not in the manifest")
    if STUDY not in there:
        raise BundleError(f"{path} has no {STUDY}")
    for name, fact in manifest.files.items():
        actual = file_digest(folder / name)
        if actual != fact.sha256:
            raise BundleError(f"{path}: {name} has the hash {actual[:12]}…, the manifest says {fact.sha256[:12]}…")
    finished = {cell.key for cell in manifest.cells if cell.status == CellStatus.DONE}
    if not finished:
        raise BundleError(f"{path} holds no finished cell")
    complete = {f"cells/{key}/{name}" for key in finished for name in (RECORD, SAMPLES)}
    for name in sorted(complete ^ (there - {STUDY}))[:1]:
        what = "is missing" if name in complete else "belongs to no finished cell of the manifest"
        raise BundleError(f"{path}: {name} {what}")


def _own_record(folder: Path, cell: BundledCell) -> Record:
    """The record of a bundled cell, checked against the manifest.

    Raises:
        BundleError: the record belongs to another cell, or names files outside the bundle.
        RecordError: the file holds no record.
    """
    _refuse_controls(strict_json((folder / RECORD).read_bytes(), f"{cell.key}/{RECORD}"), cell.key)
    record = read_record(folder / RECORD)
    if record.cell != cell.key or record.identity.cell != cell.identity:
        raise BundleError(f"{cell.key}: its record is of {_shown(record.cell)}, {_shown(str(record.identity.cell))}")
    for key in record.samples.references.values():
        if not KEY.fullmatch(key):
            raise BundleError(f"{cell.key}: {_shown(key)} is no key of a cell")
    if record.samples.file != SAMPLES:
        raise BundleError(f"{cell.key}: its samples are in {_shown(record.samples.file)}, expected {SAMPLES}")
    texts = (record.identity.method, record.identity.benchmark, record.identity.model, *record.limits, *record.notes)
    for text in (*texts, *record.unranked, *(entry.reason for entry in record.scores.values())):
        if any(not letter.isprintable() for letter in text) or len(text) > 2000:
            raise BundleError(f"{cell.key}: {_shown(text)} is too long or has control characters")
    return record


def bundled_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an untrusted sample file, within bounds of size, depth and length of texts.

    Raises:
        BundleError: the file is not gzipped JSON lines of objects, or too large.
    """
    where = f"{path.parent.name}/{path.name}"
    rows: list[dict[str, Any]] = []
    parts: set[str] = set()
    values = 0
    for number, line in enumerate(_lines(path, where)):
        if not line:
            continue
        row = strict_json(line, f"{where}, row {number}")
        if not isinstance(row, dict):
            raise BundleError(f"{where}, row {number} is no object")
        values += _values_of(row)
        parts.add(str(row.get("part", ""))[:TEXT])
        for much, most, what in (
            (len(rows) + 1, ROWS, "rows"),
            (len(parts), PARTS, "parts"),
            (values, VALUES, "values"),
        ):
            if much > most:
                raise BundleError(f"{where} has more than {most} {what}")
        if type(row.get("index", 0)) is not int:
            raise BundleError(f"{where}, row {number}: its index is {_shown(repr(row['index']))}, expected a number")
        for name, value in row.items():
            if isinstance(value, str) and len(value) > TEXT:
                raise BundleError(f"{where}, row {number}: {_shown(name)} has {len(value)} letters, at most {TEXT}")
        rows.append(row)
    return rows


def _lines(path: Path, where: str) -> Iterator[bytes]:
    """Yield the lines of a gzip file. Raises BundleError beyond ``LINE``, ``UNZIPPED`` or ``ROWS``."""
    total = count = 0
    try:
        with gzip.open(path) as file:
            while line := file.readline(LINE + 1):
                total, count = total + len(line), count + 1
                if len(line) > LINE:
                    raise BundleError(f"{where}, row {count - 1} has more than {LINE} bytes")
                if total > UNZIPPED:
                    raise BundleError(f"{where} unpacks to more than {UNZIPPED} bytes")
                if count > ROWS:
                    raise BundleError(f"{where} has more than {ROWS} lines")
                yield line.rstrip(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise BundleError(f"{where} is not a gzip file ({_plain(error)})") from error


def _values_of(value: Any) -> int:
    """The number of values in a JSON value of bounded depth, itself included."""
    return 1 + sum(map(_values_of, _children(value)))


def strict_json(content: bytes, where: str) -> Any:
    """Parse JSON of bounded depth without NaN, infinities and duplicate names.

    Raises:
        BundleError: the content is anything else.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            raise ValueError("a name is given twice in one object")
        return members

    try:
        value = json.loads(content.decode("utf-8", "surrogatepass"), parse_constant=refuse, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not JSON ({_plain(error)})") from error
    level = [value]
    for _ in range(DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return value
    raise BundleError(f"{where} is nested more than {DEPTH} deep")


def _refuse_controls(value: Any, where: str) -> None:
    """Raise BundleError where a text or key in a JSON value holds control characters."""
    if isinstance(value, str) and UNPRINTABLE.search(value):
        raise BundleError(f"{where}: {_shown(value)} has control characters")
    if isinstance(value, dict):
        for key in value:
            _refuse_controls(key, where)
    for child in _children(value):
        _refuse_controls(child, where)


def _children(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()


def _plain(error: object) -> str:
    return _shown(str(error))[1:-1]


def _shown(text: str) -> str:
    """Untrusted text for an error message: one short line of ASCII."""
    return ascii(text[:80])
