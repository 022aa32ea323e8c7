"""What rows come to in words, and what a reader is told of two of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from unlearnbench.leaderboard.curve import curve
from unlearnbench.leaderboard.numbers import Number
from unlearnbench.leaderboard.pairs import paired, pairs
from unlearnbench.leaderboard.ranking import tables
from unlearnbench.leaderboard.samples import kept_words, shown_parts
from unlearnbench.leaderboard.site import Site
from unlearnbench.leaderboard.verdict import answering, fails, unlearning_cost, verdict
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records.results import Results


@pytest.mark.parametrize(
    ("numbers", "words", "failed"),
    [
        ((0.0, 1.0), "did not forget; utility kept", True),
        ((1.0, 1.0), "forgot; utility kept", False),
        ((0.6, 0.8), "forgot 60 %; utility 80 %", False),
        ((0.6, 0.2), "forgot 60 %; utility lost", True),
    ],
)
def test_a_verdict_follows_the_intervals(cells_with, numbers, words, failed):
    (table,) = tables(cells_with({"npo": numbers}))
    assert verdict(table.rows[0]) == words
    assert fails(table.rows[0]) is failed
    assert [verdict(row) for row in table.references] == ["", ""]


def test_an_interval_that_says_nothing_lets_nothing_be_said(cells_with):
    """Two seeds may leave a range from nearly nothing to all: it reaches 1, and nobody knows."""
    (table,) = tables(cells_with({"npo": (0.6, 0.8)}))
    numbers = table.rows[0].numbers
    for low, words in ((0.2, "forgot 60 %; utility 80 %"), (0.55, "forgot; utility kept")):
        wide = {name: replace(numbers[name], interval=(low, 1.0)) for name in ("forgetting", "utility")}
        assert verdict(replace(table.rows[0], numbers={**numbers, **wide})) == words


def test_what_was_not_measured_is_said_so(cells_with):
    (table,) = tables(cells_with({"npo": (0.6, 0.8)}))
    missing = Number(math.nan, "nothing to measure")
    row = replace(table.rows[0], numbers={**table.rows[0].numbers, "forgetting": missing})
    assert verdict(row) == "forgetting not measured; utility 80 %"


@pytest.mark.parametrize("device", ["cpu", "NVIDIA H200"])
def test_a_model_that_answers_through_two_costs_twice_the_original_s_time(cells_with, device):
    (table,) = tables(cells_with({"whp": (0.6, 0.8)}))

    def timed(row, seconds, load):
        """A row of whose seconds others used some: on a CPU they show in the clock's, not in the processor's."""
        clock, own = (seconds * load, seconds) if device == "cpu" else (seconds, seconds * load)
        update = {"seconds": {"scoring": clock}, "cpu_seconds": {"measure": own}}
        cost = row.record.cost.model_copy(update=update)
        provenance = {**row.record.provenance, "device": device}
        cell = replace(row.cells[0], record=row.record.model_copy(update={"cost": cost, "provenance": provenance}))
        return replace(row, cells=(cell,))

    references = [timed(row, 2.0, load=1.0) for row in table.references]
    assert answering(timed(table.rows[0], 4.0, load=6.0), references) == 2.0
    assert answering(timed(table.rows[0], 4.0, load=6.0), []) is None


@pytest.mark.parametrize(
    ("device", "own", "clock", "words"),
    [
        ("cpu", 7.25, 2405.4, "7.2 s of processor time on CPU"),
        ("cpu", 288.3, 1279.8, "288 s of processor time on CPU"),
        ("cpu", 1385.0, 2405.4, "23 min of processor time on CPU"),
        ("NVIDIA H200", 0.1, 9000.0, "2.5 h on NVIDIA H200"),
    ],
)
def test_a_row_says_what_unlearning_took_and_not_what_other_work_added(cells_with, device, own, clock, words):
    (table,) = tables(cells_with({"npo": (0.6, 0.8)}))
    record = table.rows[0].record
    cost = record.cost.model_copy(update={"seconds": {"unlearn": clock}, "cpu_seconds": {"unlearn": own}})
    provenance = {**record.provenance, "device": device, "machine": {"processor": "CPU"}}
    assert unlearning_cost(record.model_copy(update={"cost": cost, "provenance": provenance})) == words


def test_answering_time_is_held_against_the_original_of_the_same_run(cells_with):
    """A run on another machine has originals of the same seeds, and another clock."""
    (table,) = tables(cells_with({"whp": (0.6, 0.8)}))

    def timed(cell, seconds, run):
        cost = cell.record.cost.model_copy(
            update={"cpu_seconds": {"measure": seconds}, "seconds": {"scoring": seconds}}
        )
        return replace(cell, folder=Path(run) / cell.key, record=cell.record.model_copy(update={"cost": cost}))

    original = next(row for row in table.references if row.method == "original")
    both = replace(original, cells=(timed(original.cells[0], 2.0, "fast"), timed(original.cells[0], 200.0, "slow")))
    mine = replace(table.rows[0], cells=(timed(table.rows[0].cells[0], 300.0, "slow"),))
    assert answering(mine, [both]) == 1.5


def test_a_paired_difference_leaves_out_what_both_rows_share(cells_with):
    (table,) = tables(cells_with({"npo": (0.6, 0.9), "gd": (0.62, 0.9), "kl": (0.3, 0.9)}))
    rows = {row.method: row.numbers["forgetting"] for row in table.rows}
    difference, low, high = paired(rows["npo"], rows["gd"])
    assert difference == pytest.approx(0.02, abs=1e-3)
    apart = math.hypot(*(rows[name].interval[1] - rows[name].interval[0] for name in ("npo", "gd")))
    assert high - low < apart, "what rows share cancels"
    assert paired(rows["kl"], rows["npo"])[1] > 0
    found = pairs(table.rows)
    assert len(found) == 3
    assert all(len(each) == 3 for each in found.values())


def test_methods_stand_in_the_order_of_their_mean_score(cells_with):
    cells = cells_with({"gd": (0.5, 0.9), "npo": (0.8, 0.9), "ga": (0.2, 0.9)})
    site = Site([Results(source="made", cells=tuple(cells))], load_plugins())
    assert [row.name for row in site.matrix] == ["original", "retained", "npo", "gd", "ga"]
    assert [row.reference for row in site.matrix] == [True, True, False, False, False]
    assert [len(row.cells) for row in site.matrix] == [1] * 5


def test_samples_that_differ_most_from_the_references_come_first():
    def rows(*answers):
        return {("forget", n): {"index": n, "truth": "the red fox", "generation": a} for n, a in enumerate(answers)}

    mine = rows("the red fox", "nothing", "the red")
    others = {"original": rows("the red fox", "the red fox", "the red fox"), "retained": rows("", "", "the red fox")}
    parts, totals = shown_parts(mine, others, 40, "public", forget=["forget"])
    assert [row.number for row in parts["forget"]] == [0, 1, 2]
    assert [round(row.difference, 2) for row in parts["forget"]] == [1.0, 1.0, 0.67]
    assert totals == {"forget": 3}
    assert parts["forget"][0].scores == {"": 1.0, "original": 1.0, "retained": 0.0}


def test_where_something_is_to_be_forgotten_the_marks_are_on_what_is_left_of_it():
    assert kept_words("a red hen", "the red fox") == 'a <mark class="kept">red</mark> hen'
    parts, _ = shown_parts(
        {("forget", 0): {"truth": "red fox", "generation": "hen"}}, {}, 40, "public", forget=["forget"]
    )
    assert parts["forget"][0].mine == "hen"
    parts, _ = shown_parts(
        {("retain", 0): {"truth": "red fox", "generation": "hen"}}, {}, 40, "public", forget=["forget"]
    )
    assert parts["retain"][0].mine == "<mark>hen</mark>"


def test_a_curve_has_the_first_the_last_and_the_least_loss_and_stays_in_its_box():
    drawn = curve([3.0, 2.0, 0.5, 1.0])
    assert (drawn.steps, drawn.first, drawn.last, drawn.low, drawn.low_step) == (4, 3.0, 1.0, 0.5, 3)
    points = [tuple(map(float, point.split(","))) for point in drawn.points.split()]
    left, top, right, bottom = drawn.box
    assert all(left <= x <= right and top <= y <= bottom for x, y in points)
    assert len(curve([float(step) for step in range(10_000)]).points.split()) <= 301
    assert curve([1.0]) is None
    assert curve([math.nan, math.inf, 1.0]) is None
    assert curve([2.0, 2.0]).points.split()[0].endswith(f"{(top + bottom) / 2:.1f}")
