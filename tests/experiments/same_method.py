"""Compares methods with themselves under other seeds, and counts how often one of the two is called better.

    unlearnbench run tests/experiments/same_method.toml -o RUN
    python tests/experiments/same_method.py RUN

Prints a table in Markdown. Both sides of a comparison are runs of one method from the same reference models, so that
nothing but a seed differs, and every "better" is false.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from unlearnbench.leaderboard.numbers import numbers_of, places_of, pooled
from unlearnbench.plugin.registry import Registry, load_plugins
from unlearnbench.records.balance import References
from unlearnbench.records.gates import Gate
from unlearnbench.records.results import Results
from unlearnbench.records.run_folder import FinishedCell
from unlearnbench.results.comparison import compare, judged
from unlearnbench.results.opening import opened

# Reference models, and runs from each, on either side.
DESIGNS = ((1, 1), (1, 3), (3, 1), (3, 2), (5, 1))
COMPARISONS = 1000
GATE = Gate(metric="score", max_drop=0.0, confidence=0.95)

Side = Sequence[FinishedCell]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--comparisons", type=int, default=COMPARISONS)
    asked = parser.parse_args()
    registry = load_plugins()
    with opened([asked.run]) as (results,):
        print("| reference models | runs from each | comparisons | places | compare | gate |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: |")
        for models, runs in DESIGNS:
            found = np.asarray(list(_verdicts(results, models, runs, asked.comparisons, registry)))
            shares = " | ".join(f"{share:.1%}" for share in found.mean(axis=0))
            print(f"| {models} | {runs} | {len(found)} | {shares} |")


def _verdicts(
    results: Results, models: int, runs: int, comparisons: int, registry: Registry
) -> Iterator[tuple[bool, bool, bool]]:
    """Whether places, ``compare`` and the gate call one side better, for comparisons that take turns of pairings."""
    rng = random.Random(f"{models} {runs}")
    by_pairing: dict[tuple[str, str], dict[int, list[FinishedCell]]] = {}
    for cell in results.finished:
        if not cell.record.identity.reference:
            own = by_pairing.setdefault((cell.identity.method, cell.identity.benchmark), {})
            own.setdefault(cell.identity.seed, []).append(cell)
    references = References(results.cells)
    pairings = list(by_pairing.values())
    for number in range(comparisons):
        cells = pairings[number % len(pairings)]
        seeds = rng.sample(sorted(cells), models)
        drawn = [rng.sample(cells[seed], 2 * runs) for seed in seeds]
        sides = [cell for own in drawn for cell in own[:runs]], [cell for own in drawn for cell in own[runs:]]
        yield _placed_apart(sides, references), *_compared(sides, results, registry)


def _placed_apart(sides: tuple[Side, Side], references: References) -> bool:
    found = places_of(pooled([numbers_of(side, references)["score"] for side in sides]))
    return {place.group for place in found} == {1, 2}


def _compared(sides: tuple[Side, Side], results: Results, registry: Registry) -> tuple[bool, bool]:
    """Whether the interval of the score's difference leaves 0 out, and whether the gate trips."""
    wanted = {(cell.identity.benchmark, cell.identity.seed) for cell in sides[0]}
    shared = [
        cell
        for cell, benchmark_and_seed in ((c, (c.identity.benchmark, c.identity.seed)) for c in results.finished)
        if cell.record.identity.reference and benchmark_and_seed in wanted
    ]
    # Scores need no samples: a source without a folder skips those of other metrics.
    before, after = (
        Results(name, (*shared, *(_as_run(cell, side) for cell in side)), folder=None)
        for name, side in zip(("one", "other"), sides, strict=True)
    )
    comparison = compare(before, after, registry)
    method = sides[0][0].identity.method
    pairs = [*comparison.means, *comparison.pairs]
    pair = next(pair for pair in pairs if pair.identity.method == method)
    change = next(change for change in pair.metrics if change.metric == "score")
    assert change.interval is not None
    low, high = change.interval
    return low > 0 or high < 0, judged(comparison, [_on(GATE, method)])[0].tripped


def _on(gate: Gate, method: str) -> Gate:
    return gate.model_copy(update={"method": method})


def _as_run(cell: FinishedCell, side: Side) -> FinishedCell:
    """The cell under the identity of the run with its number, which the other side shares."""
    number = [other.key for other in side if other.identity.seed == cell.identity.seed].index(cell.key)
    return replace(cell, identity=replace(cell.identity, repeat=number))


if __name__ == "__main__":
    main()
