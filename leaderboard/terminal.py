"""Prints the leaderboard's tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from unlearnbench.errors import printable
from unlearnbench.records.run_folder import StoredCell

from .ranking import ARROWS, Table, TableRow, formatted, tables


def print_tables(cells: Iterable[StoredCell]) -> None:
    """Print one table per benchmark: the paper's columns, the best two marked, references above."""
    console = Console()
    if not console.is_terminal:
        # Piped output goes to programs, which need a fixed width.
        console = Console(width=160)
    every = list(cells)
    shown = tables(every)
    for table in shown:
        console.print(_rich(table))
    # A pairing of benchmark and model without any score has no table.
    known = {(table.benchmark, table.model) for table in shown}
    for cell in every:
        if cell.record is None and (cell.identity.benchmark, cell.identity.model) not in known:
            console.print(plain(f"{cell.identity}: {cell.status}: {cell.reason}"[:300], style="red"))


def _rich(table: Table) -> RichTable:
    title = f"{table.benchmark} · {table.model}" + (" · generated data" if "data" in table.limits else "")
    if table.loss_edition not in ("", "paper"):
        title += f" · losses {table.loss_edition}"
    grid = RichTable(title=plain(title), title_justify="left", caption=plain(_caption(table)))
    grid.add_column("method")
    for name in table.headline:
        metric = table.metric(name)
        grid.add_column(plain(f"{metric.label} {ARROWS[metric.better]}"), justify="right")
    grid.add_column("unlearn", justify="right")
    for place, row in enumerate((*table.references, *table.rows)):
        grid.add_row(*_cells(row, table), end_section=place == len(table.references) - 1)
    return grid


def _caption(table: Table) -> str:
    if table.unranked:
        return f"not ranked: {'; '.join(table.unranked)}"
    marks = "; ✓ ✗ the paper's criteria" if any(metric.criterion for metric in table.metrics) else ""
    return f"** best, * second best; references are not ranked{marks}"


def _cells(row: TableRow, table: Table) -> list[Text]:
    name = plain(row.method, style="italic" if row.reference else "")
    if not row.record:
        first = row.failures[0]
        return [name, plain(f"{first.status}: {first.reason}"[:100], style="red")]
    values = []
    for column in table.headline:
        value = row.values[column]
        mark = {1: "**", 2: "*"}.get(value.rank, "")
        spread = f" ± {formatted(value.spread)}" if value.spread is not None else ""
        style = {1: "bold", 2: "underline"}.get(value.rank, "")
        judged = {True: " ✓", False: " ✗", None: ""}[value.passes]
        values.append(plain(f"{mark}{formatted(value.value)}{spread}{judged}", style=style))
    seconds = row.record.cost.seconds.get("unlearn", 0.0)
    return [name, *values, plain("" if row.reference else f"{seconds:.1f} s")]


def plain(text: str, **style: Any) -> Text:
    """Untrusted text as a rich Text, without markup and control characters."""
    return Text(printable(text), **style)
