"""The tables of a benchmark, from the hub, from a folder in the hub's layout, or from a generator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from .errors import DataError
from .sources import source_digest
from .specs import DataSpec, resolve
from .storage import digest, file_digest

Row = dict[str, Any]
Tables = Mapping[str, list[Row]]
SOURCES = ("hub", "local", "generated")


@dataclass(frozen=True)
class DataSource:
    """Where to read from. ``seed`` is the generator's; ``dir`` is for ``local``."""

    kind: Literal["hub", "local", "generated"]
    dir: str = ""
    seed: int = 0
    scale: str = "full"


def pinned(spec: DataSpec, source: DataSource) -> DataSpec:
    """The spec with the hub's branch replaced by its commit, so that every cell reads the same rows.

    Raises:
        DataError: the hub cannot be asked.
    """
    return (
        replace(spec, revision=hub_commit("dataset", spec.hub, spec.revision))
        if source.kind == "hub" and spec.hub
        else spec
    )


def fingerprints(spec: DataSpec, source: DataSource) -> dict[str, str]:
    """One identity per table, known without reading the hub: file hash, commit, or generator and seed.

    Raises:
        DataError: the folder or one of its files is missing, or the benchmark has no such source.
    """
    if source.kind == "local":
        return {name: file_digest(_file(source.dir, name)) for name in spec.tables}
    if source.kind == "generated":
        if not spec.generator:
            raise DataError("this benchmark has no generated data; name --data-dir or use the hub")
        identity = digest([_generator_digest(spec.generator), source.seed, source.scale])
        return {name: f"generated:{identity[:16]}:{name}" for name in spec.tables}
    if not spec.hub:
        raise DataError("this benchmark has no hub data set; name --data-dir or use generated data")
    return {name: f"{spec.hub}@{spec.revision}:{name}" for name in spec.tables}


def read_tables(spec: DataSpec, source: DataSource) -> dict[str, list[Row]]:
    """Every table of the benchmark, each row checked for its fields, the whole checked by ``spec.check``.

    Raises:
        DataError: names the table, the row and the field.
    """
    if source.kind == "generated":
        tables = resolve(spec.generator, "generator")(seed=source.seed, scale=source.scale)
    elif source.kind == "local":
        tables = {name: _parsed(_file(source.dir, name)) for name in spec.tables}
    else:
        tables = {name: _from_hub(spec, name) for name in spec.tables}
    for name, fields in spec.tables.items():
        _check_fields(name, tables[name], fields)
    if spec.check:
        resolve(spec.check, "benchmark")(tables)
    return {name: tables[name] for name in tables}


def _check_fields(table: str, rows: list[Row], fields: tuple[str, ...]) -> None:
    if not rows:
        raise DataError(f"table {table} has no rows")
    for number, row in enumerate(rows):
        for field in fields:
            name = field.removesuffix("[]")
            if name not in row:
                raise DataError(f"table {table}, row {number}: field {name!r} is missing (found: {', '.join(row)})")
            value = row[name]
            texts = value if isinstance(value, list) and field.endswith("[]") else [value]
            listed = isinstance(value, list) == field.endswith("[]")
            if not listed or not texts or not all(isinstance(text, str) for text in texts):
                wanted = "a list of texts" if field.endswith("[]") else "text"
                raise DataError(f"table {table}, row {number}: field {name!r} is {value!r:.80}, expected {wanted}")


def _file(folder: str, table: str) -> Path:
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"data folder {folder!r} does not exist; give --data-dir a folder with {table}.json")
    for suffix in (".json", ".jsonl"):
        path = root / f"{table}{suffix}"
        if path.is_file():
            return path
    raise DataError(f"{root / table}.json is missing; the folder needs one JSON-lines file per table")


def _parsed(path: Path) -> list[Row]:
    """JSON lines, or one JSON array."""
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise DataError(f"{path}: not JSON lines ({error})") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: expected an object, got {type(row).__name__}")
    return rows  # type: ignore[no-any-return]


def _from_hub(spec: DataSpec, table: str) -> list[Row]:
    from datasets import load_dataset

    try:
        return list(load_dataset(spec.hub, table, split="train", revision=spec.revision or None))
    except Exception as error:
        raise DataError(
            f"cannot read {spec.hub} ({table}) from the hub: {type(error).__name__}: {error}; "
            "give --data-dir a folder in the hub's layout"
        ) from error


@cache
def _generator_digest(target: str) -> str:
    return source_digest(target)


@cache
def hub_commit(kind: Literal["dataset", "model"], repository: str, revision: str) -> str:
    """The commit that a hub revision stands for; offline, the revision as it was given.

    Raises:
        DataError: the hub cannot be asked, or has no such repository or revision.
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
