"""Writes a comparison of two runs for a terminal, as Markdown for a job summary, as JUnit XML and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table as RichTable

from unlearnbench.records.comparison import Comparison, Difference, LoneCell, MeanPair, Pair
from unlearnbench.records.recomputation import agree

from .precision import formatted
from .terminal import plain

HEADER = ("metric", "baseline", "candidate", "difference", "95 % interval")
DIFFERENCE = tuple("edition baseline candidate difference interval worsening paired reason".split())
UNITS = {"peak_memory_bytes": (2**20, "MiB")}


def print_comparison(comparison: Comparison) -> None:
    """Print the changes, one table per pairing with its costs below, and the findings of gates."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    same = [pair for pair in comparison.pairs if not _changed(pair)]
    for found in _tables(comparison):
        if not _changed(found):
            continue
        grid = RichTable(title=plain(found.title), title_justify="left")
        for place, name in enumerate(HEADER):
            grid.add_column(name, justify="right" if place else "left")
        for cells in (*_metric_rows(_changed(found)), *_cost_rows(found)):
            grid.add_row(*(plain(cell) for cell in cells))
        console.print(grid)
    for pair in same:
        console.print(plain(f"{pair.title}: all {len(pair.metrics)} metrics as before"))
    for line in (*remarks(comparison), *gate_lines(comparison)):
        console.print(plain(line))


def _tables(comparison: Comparison) -> list[Pair | MeanPair]:
    """Means over runs first, then every run."""
    return [*comparison.means, *comparison.pairs]


def _changed(pair: Pair | MeanPair) -> list[Difference]:
    return [change for change in pair.metrics if not agree(change.baseline, change.candidate)]


def _metric_rows(metrics: Sequence[Difference]) -> Iterator[tuple[str, ...]]:
    for change in metrics:
        yield (
            change.label,
            formatted(change.baseline),
            formatted(change.candidate),
            _signed(change.difference),
            _bounds(change),
        )


def _cost_rows(pair: Pair | MeanPair) -> Iterator[tuple[str, ...]]:
    for name, (base, new) in pair.costs.items() if isinstance(pair, Pair) else ():
        if base is None or new is None:
            continue
        size, unit = UNITS.get(name, (1, "s" if name.endswith("seconds") else ""))
        ratio = f"× {new / base:.2f}" if base else ""
        label = name.replace("_seconds", "").replace("_bytes", "").replace("_", " ")
        yield (label, *(f"{value / size:.6g} {unit}".strip() for value in (base, new)), ratio, "")


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.4g}" if value else "0"


def _bounds(change: Difference) -> str:
    if math.isnan(change.difference):
        return change.reason[:60]
    if change.interval is None:
        return ""
    low, high = change.interval
    return f"{_signed(low)} to {_signed(high)}{'' if change.paired else ' (not paired)'}"


def remarks(comparison: Comparison) -> list[str]:
    """Remarks on cells on one side only, and on the intervals."""
    lines = [
        f"only in {comparison.baseline}: {cell.identity.pairing} ({cell.status})" for cell in comparison.only_baseline
    ]
    lines += [f"only in {comparison.candidate}: {cell.identity.pairing}" for cell in comparison.only_candidate]
    return [*lines, *(f"note: {note}" for note in comparison.notes)]


def gate_lines(comparison: Comparison) -> list[str]:
    """One line for each gate that tripped, and one with the counts."""
    findings, tripped = comparison.findings, comparison.tripped
    lines = [f"TRIPPED {finding.title}: {finding.message} [{finding.gate}]" for finding in tripped]
    if findings:
        lines.append(f"gates: {len(tripped)} of {len(findings)} checks tripped")
    return lines


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison as JSON-able values."""
    return {
        "baseline": comparison.baseline,
        "candidate": comparison.candidate,
        "pairs": [
            {
                **asdict(pair.identity),
                "metrics": _metrics(pair),
                "costs": {name: {"baseline": base, "candidate": new} for name, (base, new) in pair.costs.items()},
            }
            for pair in comparison.pairs
        ],
        "means": [{**asdict(mean.identity), "runs": mean.runs, "metrics": _metrics(mean)} for mean in comparison.means],
        "only_baseline": [_lone(cell) for cell in comparison.only_baseline],
        "only_candidate": [_lone(cell) for cell in comparison.only_candidate],
        "notes": list(comparison.notes),
        "gates": [
            {"gate": str(finding.gate), "title": finding.title, "tripped": finding.tripped, "message": finding.message}
            for finding in comparison.findings
        ],
    }


def _metrics(pair: Pair | MeanPair) -> dict[str, dict[str, Any]]:
    return {change.metric: {name: getattr(change, name) for name in DIFFERENCE} for change in pair.metrics}


def _lone(cell: LoneCell) -> dict[str, Any]:
    return {**asdict(cell.identity), "status": cell.status}


def as_markdown(comparison: Comparison) -> str:
    """Markdown for a job summary or a pull request: gates first, then every pairing in a fold."""
    findings, tripped = comparison.findings, comparison.tripped
    lines = ["# unlearnbench: candidate against baseline", ""]
    if findings:
        verdict = f"**{len(tripped)} of {len(findings)} checks tripped**" if tripped else "all gates hold"
        lines += [f"{verdict} ({len(findings)} checks)" if not tripped else verdict, ""]
    lines += [f"- {_escaped(f'{finding.title}: {finding.message}')}" for finding in tripped]
    lines += ["", *(f"- {_escaped(line)}" for line in remarks(comparison)), ""]
    for pair in _tables(comparison):
        lines += [
            f"<details><summary>{_escaped(pair.title)}</summary>",
            "",
            f"| {' | '.join(HEADER)} |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {' | '.join(_escaped(cell) for cell in cells)} |"
            for cells in (*_metric_rows(pair.metrics), *_cost_rows(pair))
        ]
        lines += ["", "</details>", ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text without characters that mean something in Markdown or HTML."""
    for letter, name in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "\\|"),
        ("`", "&#96;"),
        ("*", "\\*"),
        ("[", "\\["),
    ):
        text = text.replace(letter, name)
    return " ".join(text.split())


def as_junit(comparison: Comparison) -> str:
    """JUnit XML with a test case for every finding of a gate."""
    counts = {"tests": str(len(comparison.findings)), "failures": str(len(comparison.tripped))}
    suite = ElementTree.Element("testsuite", {"name": "unlearnbench gates", **counts})
    for finding in comparison.findings:
        case = ElementTree.SubElement(suite, "testcase", classname=_xml(str(finding.gate)), name=_xml(finding.title))
        if finding.tripped:
            ElementTree.SubElement(case, "failure", message=_xml(finding.message)).text = _xml(
                f"{finding.message}\n{comparison.baseline} → {comparison.candidate}"
            )
    root = ElementTree.Element("testsuites")
    root.append(suite)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Text without the control characters that XML cannot hold."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)
