"""What each mechanism of the engine gives on whole evaluations: ``python tests/speed/ablation.py --out PAGE``.

All variants run in one process, one after another, in alternating order, with one thread; what counts is the time of
the processor. A round's figure is a ratio to what the whole engine took in the same round. The page is written anew
after every evaluation.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import evaluations  # noqa: E402
from evaluations import LENGTHS, Evaluation, Found, equal  # noqa: E402

from unlearnbench.engine.budgets import Mechanisms  # noqa: E402
from unlearnbench.engine.engine import Engine  # noqa: E402

MECHANISMS = {
    "prefix_trees": "Rows with one prompt share its forward pass.",
    "narrowed_head": "The output head runs at answer positions alone. Without it the chunked head is off too.",
    "chunked_head": "The output head runs over pieces of the vocabulary, and no block of logits is kept.",
    "shared_prefix": "A beginning that all prompts share is computed, kept and read once.",
    "growing_cache": "Keys and values grow within a block of memory.",
}
ON, OFF, KNOWN = "all on", "all off", "all on, the model known"
TUNED, CONTINUOUS, PLAIN = "tuned baseline", "continuous batching", "plain baseline"
ENOUGH = 1.15
"""What a mechanism should give on one evaluation at least."""
BETWEEN = 4
"""Other variants between two measurements of the whole engine."""

SETS = {
    "suite": {
        "TOFU": lambda: evaluations.tofu(evaluations.small_tofu()),
        "MUSE-News": lambda: evaluations.muse(evaluations.small_muse()),
        "the book": lambda: evaluations.book(evaluations.small_book()),
    },
    "long": {
        "TOFU": lambda: evaluations.tofu(evaluations.long_tofu()),
        "MUSE-News": lambda: evaluations.muse(evaluations.long_muse()),
        "the book": lambda: evaluations.book(evaluations.long_book()),
    },
}
TITLES = {"suite": "On the rows of the speed suite", "long": "On longer rows"}

NOTES = {
    "suite": "All rows fit one batch, and none ends early. The few-shot examples that MUSE's questions share have some "
    "40 tokens, so that `shared_prefix` has little to do.",
    "long": "The tokens are random, and some of them end a row. The lengths are set by hand, not counted in published "
    "data, and there are fewer rows than published. An evaluation that has no column was not measured.",
}

Ratios = dict[str, list[float]]


def variants(evaluation: Evaluation, plain: bool) -> dict[str, Callable[[], Found]]:
    """What is measured beside the whole engine, by name."""

    def on_engine(mechanisms: Mechanisms) -> Callable[[], Found]:
        return lambda: evaluation.measured(Engine(mechanisms=mechanisms))

    none = Mechanisms(**{field.name: False for field in fields(Mechanisms)})
    found = {name: on_engine(replace(Mechanisms(), **{name: False})) for name in MECHANISMS}
    known = Engine()
    found[KNOWN] = lambda: evaluation.measured(known)
    found |= {OFF: on_engine(none), TUNED: evaluation.tuned, CONTINUOUS: evaluation.continuous}
    return found | ({PLAIN: evaluation.plain} if plain else {})


def measured(evaluation: Evaluation, rounds: int, plain: bool) -> tuple[Ratios, float]:
    """The time of each variant, in each round, as a multiple of the whole engine's; and the seconds of the latter.

    Raises:
        AssertionError: a variant finds something else.
    """
    whole = variants(evaluation, plain)
    expected = whole[KNOWN]()
    ratios: Ratios = {name: [] for name in whole}
    seconds = []

    def timed(work: Callable[[], Found]) -> float:
        gc.collect()
        start = time.process_time()
        found = work()
        took = time.process_time() - start
        equal(found, expected)
        return took

    for number in range(rounds):
        took = {}
        all_on = [timed(lambda: evaluation.measured(Engine()))]
        for place, name in enumerate(list(whole)[:: -1 if number % 2 else 1], 1):
            took[name] = timed(whole[name])
            if place % BETWEEN == 0 or place == len(whole):
                all_on.append(timed(lambda: evaluation.measured(Engine())))
        usual = statistics.median(all_on)
        seconds.append(usual)
        for name, value in took.items():
            ratios[name].append(value / usual)
        print({name: round(values[-1], 2) for name, values in ratios.items()}, round(usual, 2), flush=True)
    return ratios, statistics.median(seconds)


def table(found: dict[str, tuple[Ratios, float]]) -> list[str]:
    """Lines of a table of medians, an evaluation a column; in brackets the least and the greatest."""
    lines = [f"| | {' | '.join(found)} |", f"|---|{'---:|' * len(found)}"]
    names = {name: f"`{name}` off" for name in MECHANISMS}
    for name in (*MECHANISMS, OFF, KNOWN, TUNED, CONTINUOUS, PLAIN):
        rows = [ratios.get(name) for ratios, _ in found.values()]
        if all(rows):
            cells = [f"{statistics.median(row):.2f} ({min(row):.2f}–{max(row):.2f})" for row in rows if row]
            lines.append(f"| {names.get(name, name)} | {' | '.join(cells)} |")
    lines.append(f"| seconds, {ON} | {' | '.join(f'{seconds:.1f}' for _, seconds in found.values())} |")
    medians = {name: [statistics.median(ratios[name]) for ratios, _ in found.values()] for name in MECHANISMS}
    few = [f"`{name}`" for name, values in medians.items() if max(values) < ENOUGH]
    return [*lines, "", f"Less than {ENOUGH} on every evaluation of this table: {', '.join(few) or 'none'}."]


def machine() -> str:
    """What the figures hold for."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return (
        f"{model}, one thread of {os.cpu_count()} cores; Python {platform.python_version()}, torch {version('torch')}, "
        f"transformers {version('transformers')}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def page(found: dict[str, dict[str, tuple[Ratios, float]]], rounds: int) -> str:
    """The page, in Markdown."""
    lines = [(HERE / "ablation.md").read_text().strip().format(machine=machine(), rounds=rounds), ""]
    lines += ["## The mechanisms", ""]
    lines += [f"- `{name}`: {what}" for name, what in MECHANISMS.items()]
    for which, of_set in found.items():
        if not of_set:
            continue
        lines += ["", f"## {TITLES[which]}", ""]
        lines += [NOTES[which], ""]
        if which == "long":
            lines += [f"- {name}: {what}." for name, what in LENGTHS.items() if name in of_set]
            lines.append("")
        lines += table(of_set)
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What each mechanism of the engine gives on whole evaluations.")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each variant (default 3)")
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), help="which rows (default both)")
    parser.add_argument("--keep", type=Path, help="a file for the figures; what it has already is not measured again")
    options = parser.parse_args(arguments)
    # With one thread, and none that waits for another, the processor's time is that of the work.
    torch.set_num_threads(1)
    kept = options.keep and options.keep.exists()
    found: dict[str, dict[str, tuple[Ratios, float]]] = json.loads(options.keep.read_text()) if kept else {}
    for which in options.sets:
        for name, make in SETS[which].items():
            if name in found.setdefault(which, {}):
                continue
            print(which, name, flush=True)
            # The plain baseline takes minutes on long rows.
            found[which][name] = measured(make(), options.rounds, plain=which == "suite")
            options.out.write_text(page(found, options.rounds), encoding="utf-8")
            if options.keep:
                options.keep.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
