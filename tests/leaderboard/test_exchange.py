"""Formats of other tools: what goes out comes back, their own readers accept it, and spreadsheets run nothing of it."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import shutil
import subprocess
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearnbench.domain import CellStatus
from unlearnbench.errors import RecordError
from unlearnbench.leaderboard.exchange import every_eval_ever, lm_eval_results, model_card, spreadsheets
from unlearnbench.leaderboard.exchange.latex import as_bibtex, as_latex, tex
from unlearnbench.leaderboard.exchange.lines import base_model, lines_of
from unlearnbench.leaderboard.exchange.reading import read_scores
from unlearnbench.leaderboard.exchange.spreadsheets import safe, unsafe
from unlearnbench.leaderboard.ranking import tables
from unlearnbench.leaderboard.render import render
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records.results import Results
from unlearnbench.records.run_folder import FinishedCell, stored_cells
from unlearnbench.results.opening import opened

RECORDS = 1000
STRANGE = (
    "=1+1", "@SUM(A1)", "-2", "+cmd|' /C calc'!A0", "'=1", "\tx", "naïve", "Ünïcödé", "猫", "🦊", "a,b", 'say "no"',
    "$x_1$ & 100 %", "{brace", "back\\slash", "a|b", "<b>", "x\ny", "null", "true", "1e5", "",
)  # fmt: skip


def text(rng, known=""):
    return rng.choice(STRANGE) if rng.random() < 0.5 else known or f"v{rng.randrange(1000)}"


def number(rng):
    return rng.choice((0.0, -0.0, 1.0, -3.25e-300, 1.7e308, 1e-12, rng.random(), rng.gauss(0, 50), math.nan, math.inf,
                       -math.inf))  # fmt: skip


@pytest.fixture(scope="module")
def cells(small_run):
    """A thousand cells with names, values and reasons of every kind, made from those of a finished run."""
    rng = random.Random(0)
    known = stored_cells(small_run[0])
    made = []
    for place in range(RECORDS):
        record = known[place % len(known)].record
        scores = {}
        for name, entry in record.scores.items():
            value = number(rng)
            low, high = sorted((rng.random(), rng.random()))
            update = {
                "value": value,
                "interval": None if rng.random() < 0.4 else (low, high),
                "n": rng.randrange(500),
                "passes": rng.choice((None, True, False)),
                "reason": text(rng) or "none" if math.isnan(value) else text(rng),
                "label": text(rng, entry.label) or "label",
                "better": rng.choice(("higher", "lower", "target")),
                "edition": rng.choice(("paper", "as-released")),
            }
            scores[name] = entry.model_copy(update=update)
        identity = record.identity.model_copy(
            update={
                "model": text(rng, "nano") or "model",
                "method": text(rng, record.identity.method) or "method",
                "seed": rng.randrange(10**6),
                "repeat": rng.randrange(9),
                "setting": text(rng),
                "attack": rng.choice(("", "", "quantise")),
            }
        )
        key = f"cell-{place}"
        changed = record.model_copy(update={"cell": key, "scores": scores, "identity": identity})
        made.append(FinishedCell(key, identity.cell, CellStatus.DONE, "", known[0].folder.parent / key, changed))
    return made


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"path": "org/name", "revision": "abc", "fingerprint": "org/name@abc"}, "org/name"),
        ({"path": "models/x", "revision": "", "fingerprint": "models/x@"}, "models/x"),
        ({"path": "org/name", "revision": "", "fingerprint": "9f" * 32}, "nano"),
        ({"path": "/data/llama", "revision": "", "fingerprint": "9f" * 32}, "nano"),
        ({"path": "", "revision": "", "fingerprint": ""}, "nano"),
        ({}, "nano"),
    ],
)
def test_a_hub_s_id_is_told_from_a_folder_by_the_record_not_by_looks(small_run, model, told):
    record = next(cell.record for cell in stored_cells(small_run[0]) if cell.record)
    provenance = {**record.provenance, "model": model}
    assert base_model(record.model_copy(update={"provenance": provenance})) == told


def lines_by_key(lines):
    return {(line.cell, line.metric): line for line in lines}


def same(one, other):
    """Whether two lines agree, a missing value being equal to itself."""
    return repr(one) == repr(other)


def assert_back(written, found, *lost):
    """Every line came back as it went, but for the fields that the format has no place for."""
    mine, theirs = lines_by_key(written), lines_by_key(found)
    assert mine.keys() == theirs.keys()
    for key, line in mine.items():
        kept = {name: getattr(theirs[key], name) for name in lost}
        assert same(replace(line, **kept), theirs[key]), key


def test_every_eval_ever_gives_back_every_field_of_a_thousand_records(cells, tmp_path):
    every_eval_ever.render([Results("made", tuple(cells))], tmp_path, load_plugins())
    written = [line for cell in cells for line in lines_of(cell.record)]
    assert len({line.cell for line in written}) == RECORDS
    assert_back(written, read_scores(tmp_path))


def test_lm_eval_s_shape_gives_back_all_that_it_has_a_place_for(cells, tmp_path):
    lm_eval_results.render([Results("made", tuple(cells))], tmp_path, load_plugins())
    written = [line for cell in cells for line in lines_of(cell.record)]
    found = read_scores(tmp_path)
    # An infinite value is no number of JSON, and the shape has no interval, no criterion and two directions.
    infinite = {(line.cell, line.metric) for line in written if math.isinf(line.value)}
    finite = [line for line in written if (line.cell, line.metric) not in infinite]
    kept = [line for line in found if (line.cell, line.metric) not in infinite]
    editions = {cell.record.cell: cell.record.edition for cell in cells}
    assert_back(finite, kept, "interval", "passes", "better", "edition")
    assert all(line.edition == editions[line.cell] for line in found)
    assert all(math.isnan(line.value) for line in found if (line.cell, line.metric) in infinite)
    better = {(line.cell, line.metric): line.better == "higher" for line in written}
    assert all((line.better == "higher") == better[line.cell, line.metric] for line in found)


def test_a_model_card_gives_back_what_was_measured(cells, tmp_path):
    model_card.render([Results("made", tuple(cells))], tmp_path, load_plugins())
    written = [line for cell in cells for line in lines_of(cell.record)]
    measured = [line for line in written if math.isfinite(line.value) and not line.attack]
    assert_back(measured, read_scores(tmp_path))


def test_csv_gives_back_every_field_and_no_cell_of_it_is_a_formula(cells, tmp_path):
    one_each = list({cell.record.identity.model: cell for cell in cells if not cell.record.identity.attack}.values())
    # A table's model is its heading, which tells apart models of one name; records of one model have one.
    found = tables(one_each)
    path = tmp_path / "scores.csv"
    path.write_text(spreadsheets.as_csv(found), encoding="utf-8", newline="")
    rows = [row for table in found for row in (*table.references, *table.rows)]
    every = [*rows, *(other for row in rows if row.sweep for other in row.sweep.rows)]
    shown = {cell.record.cell for row in every for cell in row.cells}
    assert any(row.sweep for row in rows)
    written = [line for cell in one_each if cell.record.cell in shown for line in lines_of(cell.record)]
    assert len(written) > 50
    assert_back(written, read_scores(path), "model")
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    texts = [value for row in rows for value in row if value and not _is_number(value)]
    assert not [value for value in texts if value[0] in "=+-@\t\r\n"]


def test_csv_has_every_setting_of_a_sweep(cells_with):
    found = tables(cells_with({"npo:a": (0.3, 0.9), "npo:b": (0.8, 0.9), "npo:c": (0.9, 0.1)}))
    lines = list(csv.DictReader(io.StringIO(spreadsheets.as_csv(found))))
    assert {line["setting"] for line in lines if line["method"] == "npo"} == {"a", "b", "c"}


def test_csv_that_a_spreadsheet_saved_again_is_read(cells_with, tmp_path):
    """Spreadsheets write truth values in capitals, and some in their user's language."""
    (table,) = tables(cells_with({"npo": (0.3, 0.9)}))
    path = tmp_path / "again.csv"
    lines = list(csv.DictReader(io.StringIO(spreadsheets.as_csv([table]))))[:2]
    for words, passes in ((("TRUE", "FALSE"), [True, False]), (("WAHR", "FALSCH"), None)):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, spreadsheets.HEADER)
            writer.writeheader()
            writer.writerows({**line, "passes": word} for line, word in zip(lines, words, strict=True))
        if passes:
            assert [line.passes for line in read_scores(path)] == passes
        else:
            with pytest.raises(RecordError, match="is no CSV of unlearnbench"):
                read_scores(path)


@pytest.mark.parametrize(("source", "told"), [("hub", True), ("local", True), ("generated", False)])
@pytest.mark.parametrize("reporter", [every_eval_ever, lm_eval_results, model_card])
def test_invented_rows_are_never_results_on_the_hub_s_data_set(cells_with, reporter, source, told, tmp_path):
    (cell,) = (cell for cell in cells_with({"npo": (0.3, 0.9)}) if cell.identity.method == "npo")
    key = {**cell.record.comparability.key, "data_source": source}
    kept = cell.record.comparability.model_copy(update={"key": key})
    cell = replace(cell, record=cell.record.model_copy(update={"comparability": kept}))
    reporter.render([Results("made", (cell,))], tmp_path, load_plugins())
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
    assert any("locuslab/TOFU" in text for text in texts) is told


def test_a_card_writes_a_small_p_value_as_a_power(cells_with, tmp_path):
    (cell,) = (cell for cell in cells_with({"npo": (0.3, 0.9)}) if cell.identity.method == "npo")
    entry = cell.record.scores["forget_quality"].model_copy(update={"value": 3e-9})
    scores = {**cell.record.scores, "forget_quality": entry}
    cell = replace(cell, record=cell.record.model_copy(update={"scores": scores}))
    model_card.render([Results("made", (cell,))], tmp_path, load_plugins())
    line = next(line for line in next(tmp_path.rglob("README.md")).read_text().splitlines() if line.startswith("| FQ"))
    assert "0.000" not in line
    assert "3" in line


def _is_number(value):
    try:
        float(value)
    except ValueError:
        return False
    return True


@given(st.text(max_size=12) | st.text(alphabet="'=+-@\t\r\n\0 a1", max_size=6))
def test_any_text_is_safe_in_a_spreadsheet_and_comes_back(value):
    assert unsafe(safe(value)) == value
    assert safe(value)[:1] not in tuple("=+-@\t\r\n\0")


def test_what_another_tool_wrote_is_refused_with_what_it_lacks(tmp_path):
    other = tmp_path / "results_1.json"
    other.write_text(json.dumps({"results": {"arc": {"acc,none": 0.5}}, "higher_is_better": {"arc": {"acc": True}},
                                 "config": {"model_args": {"pretrained": "x"}}}))  # fmt: skip
    with pytest.raises(RecordError, match="does not say its cell"):
        read_scores(other)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(RecordError, match="holds no JSON object"):
        read_scores(tmp_path / "x.json")


def test_two_exports_at_one_time_are_byte_identical(small_run, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    registry = load_plugins()
    for name in ("one", "two"):
        with opened([small_run[0]]) as found:
            for reporter in (every_eval_ever, lm_eval_results, model_card):
                reporter.render(found, tmp_path / name / reporter.__name__.rpartition(".")[2], registry)
    files = {name: {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*")
                    if path.is_file()} for name in ("one", "two")}  # fmt: skip
    assert files["one"] == files["two"]
    assert Counter(path.suffix for path in files["one"])[".jsonl"] == 17


def test_the_validator_of_every_eval_ever_passes_all_that_a_run_exports(small_run, tmp_path):
    core = pytest.importorskip("every_eval_ever.validator.validation_core")
    with opened([small_run[0]]) as found:
        every_eval_ever.render(found, tmp_path, load_plugins())
    files = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) == 34
    for name, path in files.items():
        told = core.validate_file(
            path, repo_path=name, available_files=set(files), run_semantic_checks=True,
            read_repo_file=lambda wanted: files[wanted].read_bytes(),
        )  # fmt: skip
        assert told.valid, (name, told.errors)
        assert not told.warnings


def test_lm_eval_prints_the_table_of_what_is_shaped_like_its_results(small_run, tmp_path):
    from lm_eval.utils import make_table

    with opened([small_run[0]]) as found:
        lm_eval_results.render(found, tmp_path, load_plugins())
    content = json.loads(next(tmp_path.glob("*--npo/results_*.json")).read_text())
    shown = make_table(content)
    assert "tofu-forget10" in shown
    assert "model_utility" in shown


def test_the_hub_reads_cards_and_eval_results(small_run, tmp_path):
    import yaml
    from huggingface_hub import ModelCard, parse_eval_result_entries

    with opened([small_run[0]]) as found:
        model_card.render(found, tmp_path, load_plugins())
    cards = sorted(tmp_path.glob("*/README.md"))
    assert len(cards) == 17
    for card in cards:
        data = ModelCard(card.read_text()).data
        assert data.model_name
        assert "unlearning" in data.tags
        entries = parse_eval_result_entries(yaml.safe_load(next(card.parent.glob(".eval_results/*.yaml")).read_text()))
        values = {result.metric_type: result.metric_value for result in data.eval_results}
        assert {entry.task_id.rpartition("/")[2]: entry.value for entry in entries} == values


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_croissant_describes_the_columns_that_it_reads_back(small_run, tmp_path):
    mlc = pytest.importorskip("mlcroissant")
    with opened([small_run[0]]) as found:
        render(found, tmp_path, load_plugins())
    dataset = mlc.Dataset(jsonld=str(tmp_path / "data" / "croissant.json"))
    rows = list(dataset.records(record_set="tofu-forget10"))
    with (tmp_path / "data" / "tofu-forget10.csv").open(newline="") as file:
        known = list(csv.DictReader(file))
    assert len(rows) == len(known) > 100
    for row, line in zip(rows, known, strict=True):
        assert row["tofu-forget10/cell"].decode() == line["cell"]
        assert row["tofu-forget10/n"] == int(line["n"])
        value = row["tofu-forget10/value"]
        known_value = float(line["value"])
        assert value is None if math.isnan(known_value) else value == known_value


HOSTILE_TEX = [
    "a & b_c % $x$ #1 {y} \\input{/etc/passwd} ~ ^ <>|\"'",
    "naïve Ünïcödé Žižek Łódź",
    "猫 🦊 ﷽",
    "a\nb\x07c",
    "ﬁ ② Ⅷ",
    "µ ° ½ ŋ ą",
]


def test_text_for_latex_has_no_letter_that_is_a_command_or_is_not_there():
    for words in HOSTILE_TEX:
        written = tex(words)
        assert "\\input" not in written
        assert not any(letter in written for letter in "猫🦊﷽ŋą\x07\n")
    assert tex("naïve Łódź") == "naïve Łódź"
    assert tex("ﬁ Ⅷ ą 猫") == "fi VIII a [U+732B]"
    balance = tex("{brace")
    assert balance.count("{") == balance.count("}")


def test_bibtex_keys_are_distinct_and_broken_entries_become_notes():
    text = as_bibtex({"a-b": "One 2020", "ab": "Two 2021", "c": "@misc{x, title={open}", "d": "@misc{y, title={t}}"})
    assert text.count("@misc{ab,") == 1
    assert "@misc{abx2," in text
    assert "@misc{y, title={t}}" in text
    assert "note = {@misc" in text


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX on this machine")
def test_tables_and_citations_of_any_text_compile(cells, tmp_path):
    found = tables([cell for cell in cells if not cell.record.identity.attack][:60])
    citations = {f"name {place}": words for place, words in enumerate(HOSTILE_TEX)}
    (tmp_path / "own.bib").write_text(as_bibtex(citations))
    (tmp_path / "own.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\nocite{*}\n"
        + as_latex(found)
        + "\n".join(tex(words) + "\\par" for words in HOSTILE_TEX)
        + "\\bibliographystyle{plain}\\bibliography{own}\\end{document}\n"
    )
    latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "own.tex"]
    for command in (latex, ["bibtex", "own"], latex):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
