"""The tables of the paper as data; pages show them beside our own rows and never rank them together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from rich.console import Console
from rich.table import Table as RichTable


@dataclass(frozen=True)
class PublishedTable:
    """One published table for one model: values by method, in the order of ``metrics``.

    Args:
        criteria: whether a row meets the table's criteria (✓ or ✗), one for each of its first metrics.
        doubtful: by (method, metric), why an entry contradicts the definition of its column.
    """

    source: str
    number: str
    benchmark: str
    model: str
    metrics: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]
    printed: Mapping[str, tuple[str, ...]]
    """The same values as the paper prints them."""
    criteria: Mapping[str, tuple[bool, ...]]
    doubtful: Mapping[tuple[str, str], str]

    def passes(self, method: str, metric: str) -> bool | None:
        """The published mark of an entry; None where it has none."""
        place = self.metrics.index(metric)
        marks = self.criteria.get(method, ())
        return marks[place] if place < len(marks) else None


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    """Tables 3, 4 (three models) and 5 of Wang et al. 2025, arXiv:2410.11143."""
    text = files("unlearnbench.leaderboard").joinpath("published.json").read_text(encoding="utf-8")
    # Keep the digits as printed.
    content = json.loads(text, parse_float=str, parse_int=str)
    return tuple(
        PublishedTable(
            content["source"],
            table["table"],
            table["benchmark"],
            table["model"],
            tuple(table["metrics"]),
            {method: tuple(float(value) for value in values) for method, values in table["rows"].items()},
            _printed(table["rows"]),
            {method: tuple(marks) for method, marks in table.get("criteria", {}).items()},
            {(entry["row"], metric): entry["why"] for entry in table["doubtful"] for metric in entry["metrics"]},
        )
        for table in content["tables"]
    )


def _printed(rows: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """Values with their column's number of decimals, trailing zeros included."""
    columns = []
    for column in zip(*rows.values(), strict=True):
        plain = [text for text in column if "e" not in text.lower()]
        decimals = max(len(text.partition(".")[2]) for text in plain)
        columns.append([f"{float(text):.{decimals}f}" if text in plain else text.replace("e+", "e") for text in column])
    return dict(zip(rows, zip(*columns, strict=True), strict=True))


def published_for(benchmark: str, model: str) -> tuple[PublishedTable, ...]:
    """The published tables of a benchmark: those for this model if any, else those for other models."""
    tables = tuple(table for table in published_tables() if table.benchmark == benchmark)
    return tuple(table for table in tables if table.model == model) or tables


def print_published(as_json: bool = False) -> None:
    """Print every published table, doubtful entries marked with † and explained below."""
    if as_json:
        print(files("unlearnbench.leaderboard").joinpath("published.json").read_text(encoding="utf-8"), end="")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    for table in published_tables():
        title = f"{table.number}: {table.benchmark} · {table.model} · published, {table.source}"
        grid = RichTable(title=title, title_justify="left")
        grid.add_column("method")
        for metric in table.metrics:
            grid.add_column(metric, justify="right")
        for method, values in table.printed.items():
            cells = [_cell(table, method, metric, value) for metric, value in zip(table.metrics, values, strict=True)]
            grid.add_row(method, *cells, end_section=method == "retained")
        console.print(grid)
        for (method, metric), why in table.doubtful.items():
            console.print(f"† {method}, {metric}: {why}", style="dim")


def _cell(table: PublishedTable, method: str, metric: str, value: str) -> str:
    mark = {True: " ✓", False: " ✗", None: ""}[table.passes(method, metric)]
    return value + mark + (" †" if (method, metric) in table.doubtful else "")
