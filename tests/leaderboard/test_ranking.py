"""Tables: places by score with their uncertainty, and the setting that stands for a sweep."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace

import pytest

from unlearnbench.domain import CellStatus
from unlearnbench.leaderboard.exchange.latex import as_latex
from unlearnbench.leaderboard.exchange.spreadsheets import places_as_csv
from unlearnbench.leaderboard.ranking import tables
from unlearnbench.leaderboard.scatter import scatter
from unlearnbench.leaderboard.stability import stability
from unlearnbench.records.run_folder import StoredCell

FIFTEEN = ("ga gd kl po mismatch llmu dpo npo npo-rt task-vector whp flat-tv flat-js flat-pearson flat-kl").split()


def by_method(table):
    return {row.method: row for row in table.rows}


def test_doing_nothing_is_never_above_what_forgets(cells_with):
    (table,) = tables(cells_with({"gd": (0.0, 1.0), "npo": (0.6, 0.9), "ga": (0.9, 0.0), "flat-js": (0.59, 0.92)}))
    rows = by_method(table)
    assert [row.method for row in table.rows][:2] == ["npo", "flat-js"]
    assert rows["npo"].place.range == rows["flat-js"].place.range == "1–2"
    assert rows["gd"].place.range == rows["ga"].place.range == "3–4"
    assert rows["npo"].place.group == rows["flat-js"].place.group == 1
    assert table.one_seed


def test_the_references_are_the_ends_of_the_scale(cells_with):
    (table,) = tables(cells_with({"npo": (0.5, 0.5)}))
    original, retained = table.references
    assert [number.value for number in original.numbers.values()] == [0.0, 0.0, 1.0]
    assert [number.value for number in retained.numbers.values()] == [1.0, 1.0, 1.0]
    low, high = retained.numbers["score"].interval
    assert low <= 1.0 <= high
    assert original.place is retained.place is None
    assert table.rows[0].numbers["score"].value == pytest.approx(0.5)


def test_p_values_of_seeds_are_averaged_as_powers_of_ten_and_stay_below_one(cells_with):
    cells = []
    for cell, value in zip(cells_with({"npo": [(0.5, 0.5), (0.5, 0.5)]}), (0.001, 1.0, 0.25, 1.0), strict=True):
        scores = cell.record.scores
        entry = scores["forget_quality"].model_copy(update={"value": value, "interval": None})
        record = cell.record.model_copy(update={"scores": {**scores, "forget_quality": entry}})
        cells.append(replace(cell, record=record))
    (table,) = tables(cells)
    found = table.rows[0].values["forget_quality"]
    assert found.value == pytest.approx(0.5)
    low, high = found.interval
    assert low == pytest.approx(10 ** (math.log10(0.5) - math.log10(4) / math.sqrt(2)))
    assert high == 1.0


def test_references_that_cannot_be_told_apart_leave_no_place(cells_with):
    cells = cells_with({"npo": (0.5, 0.5)})
    original = next(cell for cell in cells if cell.identity.method == "original")
    same = [
        replace(cell, record=cell.record.model_copy(update={"scores": original.record.scores}))
        if cell.identity.method == "retained"
        else cell
        for cell in cells
    ]
    (table,) = tables(same)
    assert table.placed == ()
    assert "cannot be told apart" in table.unplaced


def test_a_row_ranks_by_its_own_original(cells_with):
    """Two sources with originals of their own: what each forgot, not what its original knew, decides."""
    first = cells_with({"npo": (0.5, 0.9)})
    second = [
        replace(cell, key=f"other-{cell.key}", folder=cell.folder.parent.parent / "other" / cell.key)
        for cell in cells_with({"ga": (0.5, 0.9)})
    ]
    (table,) = tables([*first, *second])
    rows = by_method(table)
    assert rows["npo"].numbers["score"].value == pytest.approx(rows["ga"].numbers["score"].value)
    alone = [cell for cell in second if cell.identity.method != "original"]
    (table,) = tables([*first, *alone])
    assert by_method(table)["ga"].place is None
    assert by_method(table)["ga"].numbers["score"].reason == "the original model's record is not here"


def test_several_runs_add_their_variance_to_that_of_rows(cells_with):
    steady = {"npo": [(0.6, 0.9)] * 3, "ga": [(0.5, 0.9)] * 3}
    shaky = {"npo": [(0.5, 0.9), (0.6, 0.9), (0.7, 0.9)], "ga": [(0.4, 0.9), (0.5, 0.9), (0.6, 0.9)]}
    (sure,), (unsure,) = tables(cells_with(steady)), tables(cells_with(shaky))
    assert [row.place.range for row in sure.rows] == ["1", "2"]
    assert [row.place.range for row in unsure.rows] == ["1–2", "1–2"]
    assert by_method(unsure)["npo"].numbers["score"].seed_variance > 0
    assert not unsure.one_seed


def test_a_row_without_its_parts_or_a_run_has_no_place_and_stands_last(cells_with):
    cells = cells_with({"npo": (0.6, 0.9), "ga": (0.5, 0.9), "gd": (0.7, 0.9)})
    gd = next(cell for cell in cells if cell.identity.method == "gd")
    blank = gd.record.scores["model_utility"].model_copy(update={"value": float("nan"), "reason": "not asked"})
    scores = {**gd.record.scores, "model_utility": blank}
    missing = replace(gd, record=gd.record.model_copy(update={"scores": scores}))
    ga = next(cell for cell in cells if cell.identity.method == "ga")
    lost = StoredCell("lost", replace(ga.identity, seed=1), CellStatus.FAILED, "out of luck", ga.folder)
    (table,) = tables([*(missing if cell is gd else cell for cell in cells), lost])
    assert [(row.method, row.place and row.place.place) for row in table.rows] == [
        ("npo", 1),
        ("gd", None),
        ("ga", None),
    ]
    assert by_method(table)["gd"].numbers["score"].reason == "model_utility is missing: not asked"


SWEEP = {
    "npo:a": (0.2, 1.0),
    "npo:b": (0.6, 0.8),
    "npo:c": (0.9, 0.1),
    "ga:a": (0.1, 1.0),
    "ga:b": (0.5, 0.7),
    "ga:c": (1.0, 0.0),
}


def test_a_sweep_is_one_row_chosen_on_validation_rows(cells_with):
    """On the reported rows npo's second setting is best, on validation rows its first: the first stands for it."""
    held_back = {**SWEEP, "npo:a": (0.9, 0.9), "ga:b": (0.8, 0.8)}
    (table,) = tables(cells_with(SWEEP, held_back))
    rows = by_method(table)
    assert table.closed
    assert {name: row.setting for name, row in rows.items()} == {"npo": "a", "ga": "b"}
    assert rows["npo"].numbers["forgetting"].value == pytest.approx(0.2)
    assert all(len(row.sweep.rows) == 3 and row.sweep.on_validation for row in rows.values())
    (table,) = tables(cells_with(SWEEP))
    assert by_method(table)["npo"].setting == "b"
    assert not by_method(table)["npo"].sweep.on_validation


def test_another_rule_chooses_another_setting(cells_with):
    cells = [
        replace(cell, record=cell.record.model_copy(update={"selection": "model_utility"}))
        if cell.identity.setting
        else cell
        for cell in cells_with(SWEEP)
    ]
    (table,) = tables(cells)
    assert by_method(table)["npo"].setting == "a"
    assert by_method(table)["npo"].sweep.rule == "model_utility"


def test_the_area_is_that_of_all_settings(cells_with):
    (table,) = tables(cells_with(SWEEP))
    area = by_method(table)["npo"].sweep.area
    assert area.value == pytest.approx(0.2 * 1.0 + 0.4 * 0.8 + 0.3 * 0.1)
    assert area.interval[0] < area.value < area.interval[1]


def test_a_setting_that_fails_is_counted_and_never_chosen(cells_with):
    cells = cells_with(SWEEP)
    best = next(cell for cell in cells if cell.identity.setting == "b" and cell.identity.method == "npo")
    lost = StoredCell(best.key, best.identity, CellStatus.DIVERGED, "loss is NaN", best.folder)
    (table,) = tables([lost if cell is best else cell for cell in cells])
    row = by_method(table)["npo"]
    assert row.setting == "a"
    assert (len(row.sweep.rows), len(row.sweep.failed)) == (3, 1)
    gone = [
        StoredCell(cell.key, cell.identity, CellStatus.FAILED, "no luck", cell.folder)
        if cell.identity.method == "npo"
        else cell
        for cell in cells
    ]
    (table,) = tables(gone)
    row = by_method(table)["npo"]
    assert row.place is None
    assert row.record is None
    assert len(row.sweep.failed) == 3


def test_while_a_study_runs_the_best_setting_so_far_stands_for_its_method(cells_with):
    """No setting has all its runs: the first one would say nothing of the method."""
    cells = cells_with(SWEEP)
    pending = [
        StoredCell(f"{cell.key}-s1", replace(cell.identity, seed=1), CellStatus.PENDING, "", cell.folder)
        for cell in cells
        if cell.identity.setting
    ]
    (table,) = tables([*cells, *pending])
    assert {name: row.setting for name, row in by_method(table).items()} == {"npo": "b", "ga": "b"}
    assert all(row.place is None for row in table.rows)
    # Of settings in two runs and in one, one of those in two.
    fewer = [cell for cell in cells if (cell.identity.method, cell.identity.setting) == ("npo", "c")]
    again = [replace(cell, key=f"{cell.key}-s1", identity=replace(cell.identity, seed=1)) for cell in fewer]
    (table,) = tables([*cells, *again, *(cell for cell in pending if cell.identity != again[0].identity)])
    assert by_method(table)["npo"].setting == "c"


def test_handed_in_settings_never_stand_with_those_of_a_sweep(cells_with):
    found = tables(cells_with({**SWEEP, "gd": (0.9, 0.9)}))
    assert sorted((table.closed, sorted(row.method for row in table.rows)) for table in found) == [
        (False, ["gd"]),
        (True, ["ga", "npo"]),
    ]


def test_ties_everywhere_share_the_first_place(cells_with):
    (table,) = tables(cells_with({"npo": (0.0, 1.0), "ga": (0.0, 1.0), "gd": (0.0, 1.0)}))
    assert {row.place.range for row in table.rows} == {"1–3"}
    assert {row.place.place for row in table.rows} == {1, 2, 3} or {row.place.place for row in table.rows} == {1}


def test_the_plot_has_every_row_its_front_and_the_settings_of_its_sweep(cells_with):
    (table,) = tables(cells_with(SWEEP))
    plot = scatter(table, table.rows, lambda row: row.method, settings=True)
    assert {point.label for point in plot.points} == {"npo", "ga"}
    assert {found.role for found in plot.references} == {"original", "retained"}
    assert {point.label for point in plot.points if point.front} == {"npo"}
    assert all(len(point.tried) == 2 and point.curve for point in plot.points)
    assert not any(point.curve or point.tried for point in scatter(table, table.rows, str).points)
    left, top, right, bottom = plot.box
    assert all(left <= point.x <= right and top <= point.y <= bottom for point in plot.points)
    across = {point.label: point.x for point in plot.points}
    assert across["ga"] < across["npo"]


def test_rows_that_lie_close_together_fill_the_plot_and_labels_never_lie_over_one_another(cells_with):
    """Fifteen rows within a hundredth of forgetting and utility, which a plot of the unit square shows as one."""
    rows = {name: (0.9 + place / 1500, 0.95 + (place * 7 % 15) / 1500) for place, name in enumerate(FIFTEEN)}
    (table,) = tables(cells_with(rows))
    plot = scatter(table, table.rows, str)
    across, up = [point.x for point in plot.points], [point.y for point in plot.points]
    assert plot.zoomed
    assert max(across) - min(across) > 50
    assert max(up) - min(up) > 50
    boxes = []
    for point in plot.points:
        left = point.text.x - {"start": 0, "middle": 3, "end": 6}[point.text.anchor] * len(point.label)
        boxes.append((left, point.text.y - 9, left + 6 * len(point.label), point.text.y))
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
    original = next(found for found in plot.references if found.role == "original")
    assert original.way == "↓"
    assert "utility 1.000, forgetting 0.000" in original.facts


def test_the_front_of_a_part_of_a_table_is_the_table_s_and_what_is_not_drawn_is_counted(cells_with):
    rows = {name: (0.5 + place / 40, 0.95 - (place % 3) / 50) for place, name in enumerate(FIFTEEN)}
    (table,) = tables(cells_with(rows))
    whole = {point.label: point.front for point in scatter(table, table.rows, str).points}
    assert 1 <= sum(whole.values()) < len(whole)
    last = scatter(table, table.rows[9:], str)
    assert {point.label: point.front for point in last.points} == {
        row.method: whole[row.method] for row in table.rows[9:]
    }
    assert last.elsewhere == 9
    assert scatter(table, table.rows, str).elsewhere == 0
    assert scatter(table, table.rows[:1], str, settings=True).elsewhere == 0


@pytest.mark.parametrize("utility", [0.0, 0.92, 0.951, 0.97, 1.0])
@pytest.mark.parametrize("forgetting", [0.0, 0.26, 0.41, 0.57, 1.0])
def test_a_reference_s_words_lie_inside_the_plot_wherever_it_is(cells_with, utility, forgetting):
    (table,) = tables(cells_with({"npo": (0.57, 0.965), "ga": (0.55, 0.988), "task-vector": (0.27, 0.997)}))
    moved = [
        replace(
            row,
            numbers={
                **row.numbers,
                "utility": replace(row.numbers["utility"], value=utility),
                "forgetting": replace(row.numbers["forgetting"], value=forgetting),
            },
        )
        for row in table.references
        if row.method == "retained"
    ]
    plot = scatter(replace(table, references=tuple(moved)), table.rows, str)
    left, top, right, bottom = plot.box
    (found,) = plot.references
    width = 6 * len(f"{found.role} {found.way}".strip())
    start = found.text.x - (width if found.text.anchor == "end" else 0)
    assert left <= start
    assert start + width <= right
    assert top <= found.text.y - 9
    assert found.text.y <= bottom


def test_a_row_without_a_score_is_left_out_of_the_plot_and_counted(cells_with):
    cells = cells_with({"npo": (0.6, 0.9), "ga": (0.5, 0.9)})
    (table,) = tables(cells)
    gone = replace(table.rows[0].numbers["score"], value=float("nan"))
    row = replace(table.rows[0], numbers={**table.rows[0].numbers, "score": gone})
    plot = scatter(table, [row, *table.rows[1:]], lambda row: row.method)
    assert plot.left_out == 1
    assert [point.label for point in plot.points] == ["ga"]
    assert scatter(table, [row], lambda row: row.method) is None


def test_places_can_be_downloaded(cells_with):
    found = tables(cells_with(SWEEP))
    lines = list(csv.DictReader(io.StringIO(places_as_csv(found))))
    rows = {line["method"]: line for line in lines}
    assert rows["original"]["place"] == ""
    assert (rows["npo"]["division"], rows["npo"]["setting"], rows["npo"]["settings_tried"]) == ("closed", "b", "3")
    assert float(rows["npo"]["score_low"]) <= float(rows["npo"]["score"]) <= float(rows["npo"]["score_high"])
    latex = as_latex(found)
    assert r"\textbf{0.686}" in latex
    assert "Place & Method & Score" in latex


# Scores by the seed of the reference model: the first row is better from one and worse from the other.
NESTED = (
    ((0, 0.8), (0, 0.9), (1, 0.2), (1, 0.3)),
    ((0, 0.5), (0, 0.5), (1, 0.5), (1, 0.5)),
)


def test_what_varies_between_runs_is_told_apart(cells_with):
    """Unlearning that varies from steady reference models; the made references vary by nothing."""
    cells = cells_with({"npo": [(0.5, 0.9), (0.6, 0.9), (0.7, 0.9)], "ga": [(0.8, 0.9), (0.4, 0.9), (0.3, 0.9)]})
    table = tables(cells)[0]
    assert stability(tables(cells_with({"npo": (0.5, 0.9)}))[0].placed, table.placed) is None
    found = stability(table.placed, table.placed)
    assert found.seeds == (0,)
    assert found.agreement is None
    assert [variation.reference for variation in found.rows] == [None, None]
    assert found.rows[0].over_runs > 0
    scores = {row.method: row.numbers["score"] for row in table.placed}
    nested = [
        replace(row, numbers={**row.numbers, "score": replace(scores[row.method], by_run=runs)})
        for row, runs in zip(table.placed, NESTED, strict=True)
    ]
    found = stability(nested, nested[:1])
    assert found.seeds == (0, 1)
    (variation,) = found.rows
    assert variation.places == (1, 2)
    assert found.agreement == pytest.approx(-1)
    assert variation.unlearning == pytest.approx(0.1 / 2**0.5)
    assert variation.reference > 0
