"""Hashes of the published data sets' rows, by which ``verify`` checks submissions without the data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files


def published(benchmark: str) -> Mapping[str, Mapping[str, Sequence[str]]] | None:
    """By part: the fields that identify a row, and a hash of them for each row; None for an unknown benchmark."""
    row_hashes = _row_hashes()
    named = row_hashes["benchmarks"].get(benchmark)
    return None if named is None else {part: row_hashes["parts"][key] for part, key in named.items()}


@cache
def _row_hashes() -> dict[str, dict[str, dict[str, str]]]:
    text = files("unlearnbench.benchmarks").joinpath("published_rows.json").read_text(encoding="utf-8")
    hashes: dict[str, dict[str, dict[str, str]]] = json.loads(text)
    return hashes
