"""The tables of a benchmark, from the hub, from a folder in the hub's layout, or from a generator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from ..plugin.specs import DataSpec, resolve
from ..storage import digest, file_digest

Row = dict[str, Any]
Tables = Mapping[str, list[Row]]
SOURCES = ("hub", "local", "generated")


@dataclass(frozen=True)
class DataSource:
    """Where to read from. ``seed`` is the generator's; ``dir`` and ``files`` are for ``local``.

    Args:
        files: tables in files of their own: JSON lines, a JSON array, or plain text (one row).
        allow_missing: tables that may be absent; they are then empty.
        stand_ins: tables of the folder that take the place of others.
    """

    kind: Literal["hub", "local", "generated"]
    dir: str = ""
    seed: int = 0
    scale: str = "full"
    files: Mapping[str, str] = field(default_factory=dict)
    allow_missing: tuple[str, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    def departures(self, spec: DataSpec) -> list[str]:
        """How this source differs from the benchmark's own data, in words; rows with any departure are not ranked."""
        absent = [name for name in spec.tables if name in self.allow_missing and self._path(name) is None]
        swapped = [f"{name} is {other}" for name, other in self.stand_ins.items() if name in spec.tables]
        return [*swapped, *(f"{name} is missing" for name in absent if name not in self.stand_ins)]

    def path(self, spec: DataSpec, table: str) -> Path | None:
        """The file of a table; None where the table is absent and may be, or comes from the hub.

        Raises:
            DataError: the folder, a named file, or a required table does not exist.
        """
        file = self._path(table)
        if file or table in spec.optional or table in spec.hub_tables:
            return file
        if not self.dir:
            raise DataError(f"no file for table {table!r}; name --data-dir, or --set data.files.{table}=FILE")
        if table in self.allow_missing:
            return None
        hint = "the folder needs one JSON-lines file per table"
        if table in spec.may_be_missing:
            hint = f"if the run may do without it, --allow-missing {table}; such rows are not ranked"
        raise DataError(f"{Path(self.dir) / table}.json is missing; {hint}")

    def all_local(self, spec: DataSpec) -> bool:
        """Whether the benchmark needs no table from the hub."""
        return self.kind == "local" and not any(self._path(table) is None for table in spec.hub_tables)

    def _path(self, table: str) -> Path | None:
        if table in self.files:
            path = Path(self.files[table]).expanduser()
            if not path.is_file():
                raise DataError(f"data.files.{table} = {str(path)!r}: no such file")
            return path
        if not self.dir:
            return None
        root = Path(self.dir)
        if not root.is_dir():
            raise DataError(f"data folder {self.dir!r} does not exist; give --data-dir a folder with {table}.json")
        name = self.stand_ins.get(table, table)
        for suffix in (".json", ".jsonl", ".txt"):
            if (root / f"{name}{suffix}").is_file():
                return root / f"{name}{suffix}"
        if table in self.stand_ins:
            raise DataError(f"{root / name}.json, the stand-in for {table}, does not exist")
        return None


def pinned(spec: DataSpec, source: DataSource) -> DataSpec:
    """The spec with the hub's branches replaced by their commits, so that every cell reads the same rows.

    Raises:
        DataError: the hub cannot be reached.
    """
    if source.kind == "hub" and spec.hub:
        spec = replace(spec, revision=hub_commit("dataset", spec.hub, spec.revision))
    if source.kind == "generated" or source.all_local(spec):
        return spec
    return replace(spec, hub_tables={table: _pinned_table(where) for table, where in spec.hub_tables.items()})


def _pinned_table(where: str) -> str:
    repository, colon, rest = where.partition(":")
    name, _, revision = repository.partition("@")
    return f"{name}@{hub_commit('dataset', name, revision)}{colon}{rest}"


def fingerprints(spec: DataSpec, source: DataSource) -> dict[str, str]:
    """One identity per table, computed without the hub: file hash, commit, or hash of generated rows.

    Raises:
        DataError: the folder or one of its files is missing, or the benchmark has no such source.
    """
    if source.kind == "local":
        return {name: _local_identity(spec, source, name) for name in spec.tables}
    if source.kind == "generated":
        if not spec.generator:
            raise DataError("this benchmark has no generated data; name --data-dir or use the hub")
        return _generated_fingerprints(spec.generator, source.seed, source.scale, tuple(spec.tables))
    if not spec.hub:
        raise DataError(f"this benchmark has no hub data set; {spec.remedy or 'name --data-dir or use generated data'}")
    return {name: spec.hub_tables.get(name) or f"{spec.hub}@{spec.revision}:{name}" for name in spec.tables}


def _local_identity(spec: DataSpec, source: DataSource, table: str) -> str:
    path = source.path(spec, table)
    if path:
        return file_digest(path)
    return spec.hub_tables.get(table, "absent")


def read_tables(spec: DataSpec, source: DataSource) -> dict[str, list[Row]]:
    """Read every table of the benchmark; check each row's fields, then all tables with ``spec.check``.

    Raises:
        DataError: a table cannot be read or breaks a rule; names the table, the row and the field.
    """
    if source.kind == "generated":
        tables = resolve(spec.generator, "generator")(seed=source.seed, scale=source.scale)
    elif source.kind == "local":
        tables = {name: _local(spec, source, name) for name in spec.tables}
    else:
        tables = {name: _from_hub(spec, name) for name in spec.tables if name not in spec.optional}
    absent = {*spec.optional, *(source.allow_missing if source.kind == "local" else ())}
    for name, fields in spec.tables.items():
        tables.setdefault(name, [])
        if tables[name] or name not in absent:
            _check_fields(name, tables[name], fields)
    if spec.check:
        resolve(spec.check, "benchmark")(tables)
    return {name: tables[name] for name in spec.tables}


def _check_fields(table: str, rows: list[Row], fields: tuple[str, ...]) -> None:
    if not rows:
        raise DataError(f"table {table} has no rows")
    for number, row in enumerate(rows):
        for wanted in fields:
            name = wanted.removesuffix("[]")
            if name not in row:
                raise DataError(f"table {table}, row {number}: field {name!r} is missing (found: {', '.join(row)})")
            value = row[name]
            texts = value if isinstance(value, list) and wanted.endswith("[]") else [value]
            listed = isinstance(value, list) == wanted.endswith("[]")
            if not listed or not texts or not all(isinstance(text, str) for text in texts):
                kind = "a list of texts" if wanted.endswith("[]") else "text"
                raise DataError(f"table {table}, row {number}: field {name!r} is {value!r:.80}, expected {kind}")


def _local(spec: DataSpec, source: DataSource, table: str) -> list[Row]:
    path = source.path(spec, table)
    if path:
        return _parsed(path)
    return _from_hub(spec, table) if table in spec.hub_tables else []


def _parsed(path: Path) -> list[Row]:
    """JSON lines, one JSON array (of objects, or of texts), or plain text as one row."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix not in (".json", ".jsonl"):
            return [{"text": text}]
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it in that encoding") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON lines ({error})") from error
    rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: expected an object, got {type(row).__name__}")
    return rows


def _from_hub(spec: DataSpec, table: str) -> list[Row]:
    from datasets import load_dataset

    elsewhere = spec.hub_tables.get(table)
    try:
        if elsewhere:
            repository, config, split, column, count = elsewhere.split(":")
            name, _, revision = repository.partition("@")
            # Streaming: these data sets are far larger than the rows taken from them.
            rows = load_dataset(name, config, split=split, revision=revision or None, streaming=True).take(int(count))
            return [{"text": row[column]} for row in rows]
        config, _, split = table.partition("/")
        return list(load_dataset(spec.hub, config, split=split or "train", revision=spec.revision or None))
    except Exception as error:
        raise DataError(
            f"cannot read {elsewhere or spec.hub} ({table}) from the hub: {type(error).__name__}: {error}; "
            + (
                f"name a file instead: --set data.files.{table}=FILE"
                if elsewhere
                else "give --data-dir a folder in the hub's layout"
            )
        ) from error


@cache
def _generated_fingerprints(generator: str, seed: int, scale: str, names: tuple[str, ...]) -> dict[str, str]:
    """Hash the rows, not the generator's code, so that edits which keep the rows keep the fingerprints."""
    tables = resolve(generator, "generator")(seed=seed, scale=scale)
    return {name: f"generated:{digest(tables.get(name, []))[:16]}:{name}" for name in names}


@cache
def hub_commit(kind: Literal["dataset", "model"], repository: str, revision: str) -> str:
    """The commit that a hub revision stands for; offline, the given revision or ``main``.

    Raises:
        DataError: the hub cannot be reached, or has no such repository or revision.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return revision or "main"
    try:
        return str(HfApi().repo_info(repository, revision=revision or None, repo_type=kind).sha)
    except Exception as error:
        raise DataError(
            f"cannot reach {kind} {repository} on the hub ({type(error).__name__}: {error}); "
            "name a local folder instead, or set HF_HUB_OFFLINE=1 to use the local cache"
        ) from error
