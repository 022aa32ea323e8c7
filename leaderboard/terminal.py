"""Prints the leaderboard's tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from unlearnbench.domain import NUMBERS, CellStatus
from unlearnbench.errors import printable
from unlearnbench.records.meta_evaluation import Area, MetaEvaluation
from unlearnbench.records.run_folder import StoredCell

from .precision import SHARES
from .ranking import ARROWS, Table, tables
from .robustness import unexpected
from .rows import TableRow
from .trust import by_benchmark
from .verdict import unlearning_time


def print_tables(cells: Iterable[StoredCell]) -> None:
    """Print one table per benchmark: places and scores, then the paper's columns, references above."""
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
        tabled = not cell.identity.attack and (cell.identity.benchmark, cell.identity.model) in known
        if cell.record is None and unexpected(cell) and not tabled:
            console.print(plain(f"{cell.identity}: {cell.ending}"[:300], style="red"))
    pending = sum(cell.status == CellStatus.PENDING for cell in every)
    if pending:
        console.print(f"{pending} of {len(every)} cells are not run yet; 'unlearnbench run' with their study goes on")


def _rich(table: Table) -> RichTable:
    title = f"{table.benchmark} · {table.model}" + (" · generated data" if "data" in table.limits else "")
    if table.loss_edition not in ("", "paper"):
        title += f" · losses {table.loss_edition}"
    grid = RichTable(title=plain(title), title_justify="left", caption=plain(_caption(table)))
    grid.add_column("place", justify="right")
    grid.add_column("method")
    for heading in NUMBERS.values():
        grid.add_column(heading, justify="right")
    if table.attacks:
        grid.add_column("Robust", justify="right")
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
    if table.unplaced:
        return f"no places: {table.unplaced}"
    marks = "; ✓ ✗ the paper's criteria" if any(metric.criterion for metric in table.metrics) else ""
    seeds = "; one seed" if table.one_seed else ""
    return f"** cannot be told from the best, * from the best of the rest; references are not ranked{marks}{seeds}"


def _cells(row: TableRow, table: Table) -> list[Text]:
    place = plain(row.place.range if row.place else "")
    name = plain(row.method, style="italic" if row.reference else "")
    if not row.record:
        first = row.failures[0]
        return [place, name, plain(first.ending[:100], style="red")]
    group = row.place.group if row.place else 0
    mark, style = {1: ("**", "bold"), 2: ("*", "underline")}.get(group, ("", ""))
    numbers = [SHARES(number.value) for number in row.numbers.values()]
    values = [plain(mark + numbers[0], style=style), *map(plain, numbers[1:])]
    if table.attacks:
        attack, robust = row.robust or ("", None)
        values.append(plain(f"{SHARES(robust.value)} {attack}".strip() if robust else "–"))
    for column in table.headline:
        value = row.values[column]
        written = table.precisions[column]
        spread = f" ± {written(value.spread)}" if value.spread is not None else ""
        judged = {True: " ✓", False: " ✗", None: ""}[value.passes]
        values.append(plain(f"{written(value.value)}{spread}{judged}"))
    return [place, name, *values, plain("" if row.reference else unlearning_time(row.record))]


def plain(text: str, **style: Any) -> Text:
    """Untrusted text as a rich Text, without markup and control characters."""
    return Text(printable(text), **style)


def print_trust(found: MetaEvaluation) -> None:
    """Print how far each metric can be trusted, the most first, a table for each benchmark."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for (benchmark, model), metrics in by_benchmark(found).items():
        grid = RichTable(title=plain(f"{benchmark} · {model} · {metrics[0].pairs} pairs"), title_justify="left")
        for heading in ("metric", "faithfulness", "under attack", "worst attack"):
            grid.add_column(heading, justify="left" if heading in ("metric", "worst attack") else "right")
        for metric in metrics:
            attack, worst = metric.robustness or ("", None)
            grid.add_row(plain(metric.label), _area(metric.faithfulness), _area(worst), plain(attack))
        console.print(grid)


def _area(area: Area | None) -> Text:
    return plain("–" if area is None else f"{area.value:.2f} ({area.low:.2f}–{area.high:.2f})")
