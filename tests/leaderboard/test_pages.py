"""The pages: what they show, that they ask for nothing, and that other people's text stays text."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearnbench.errors import RecordError
from unlearnbench.leaderboard.exchange import every_eval_ever, lm_eval_results, model_card
from unlearnbench.leaderboard.exchange.latex import as_bibtex
from unlearnbench.leaderboard.precision import SHARES, Precision, formatted, precision_of
from unlearnbench.leaderboard.ranking import tables
from unlearnbench.leaderboard.render import render
from unlearnbench.leaderboard.samples import marked
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records.results import Results
from unlearnbench.records.run_folder import stored_cells
from unlearnbench.results.opening import opened
from unlearnbench.storage import read_rows, rows_as_bytes, write_sealed


def rendered(out, *sources):
    """The site of these sources in ``out``."""
    with opened(sources) as found:
        render(found, out, load_plugins())
    return out


def page_of(site, benchmark):
    return (site / "b" / f"{benchmark}.html").read_text()


HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'


class Tags(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("href", "src"):
                self.links.append(value)
            if name == "id":
                self.ids.add(value)


@pytest.fixture(scope="module")
def site(small_run, tmp_path_factory):
    run, _ = small_run
    return rendered(tmp_path_factory.mktemp("site"), run)


def test_a_benchmark_s_page_has_the_paper_s_columns_and_every_row(site):
    text = page_of(site, "tofu-forget10")
    for label in ("FQ", "MU", "F-RL", "R-RL"):
        assert re.search(rf'>{label}</a> <span role="img" aria-label="(higher|lower) is better">[↑↓]</span>', text)
    for name in ("original", "retained", "ga", "npo", "flat-tv", "flat-kl"):
        assert re.search(rf'<a href="../cells/{name}--[^"]+\.html"><bdi>{name}</bdi></a>', text)
    assert "generated, not the published data set" in text
    assert text.index("<bdi>original<") < text.index("<bdi>ga<")
    assert "own run" in text


def test_the_overview_has_the_matrix_the_sources_and_the_downloads(site, small_run):
    text = (site / "index.html").read_text()
    cells = stored_cells(small_run[0])
    (table,) = tables(cells)
    for row in (*table.references, *table.rows):
        score = SHARES(row.numbers["score"].value)
        place = f"place {row.place.range}" if row.place else "reference" if row.reference else "no place"
        assert re.search(rf"<bdi>{row.method}</bdi></a></th><td[^>]*>{score}.*?<small>{place}</small>", text), (
            row.method
        )
    assert "complete" in text
    assert "17 of 17" in text
    for link in ("data/records.json", "data/tofu-forget10.csv", "data/tofu-forget10.tex", "data/citations.bib"):
        assert f'href="{link}"' in text


def test_a_site_for_a_repository_is_small_and_lacks_no_page(site, small_run, tmp_path):
    with opened([small_run[0]]) as found:
        render(found, tmp_path / "small", load_plugins(), samples=2, records=False)
    names = [{str(file.relative_to(folder)) for file in folder.rglob("*")} for folder in (site, tmp_path / "small")]
    assert names[0] - names[1] == {"data/records.json"}
    assert "records.json" not in (tmp_path / "small" / "index.html").read_text()
    for large in (site / "cells").iterdir():
        rows = [
            text.count('<article class="sample')
            for text in (large.read_text(), (tmp_path / "small" / "cells" / large.name).read_text())
        ]
        assert rows[0] > rows[1]
        assert "2 of " in (tmp_path / "small" / "cells" / large.name).read_text()


def test_what_methods_need_is_a_table_of_facts(site, small_run):
    text = (site / "methods.html").read_text()
    for cell in stored_cells(small_run[0]):
        identity = cell.record.identity
        if identity.reference:
            assert f">{identity.method}</a>" not in text
            continue
        row = re.search(rf">{identity.method}</a></th>\n((?:<td>.*?</td>)+)", text)
        needs = identity.requires
        facts = (
            True,
            needs.retain,
            needs.template,
            needs.original == "logprobs",
            needs.original == "model",
        )
        assert re.findall("<td>(.*?)</td>", row[1])[:5] == ["✓ yes" if fact else "no" for fact in facts]


def test_every_metric_is_explained(site, small_run):
    from unlearnbench.benchmarks.plugin import unlearnbench_benchmarks

    (spec,) = (spec for spec in unlearnbench_benchmarks() if spec.name == "tofu-forget10")
    text = html.unescape((site / "metrics.html").read_text())
    for metric in spec.metrics:
        assert f'id="tofu-forget10-{metric.name}"' in text
        assert metric.definition in text
        assert metric.source in text


def test_a_method_s_page_has_its_paper_hyperparameters_and_cost(site):
    text = (site / "m" / "unlearnbench-npo.html").read_text()
    for fact in ("arXiv:2404.05868", "<dt>beta</dt>", "original’s log-probabilities", "MiB", "(enforced)"):
        assert fact in text


def test_pages_of_three_hundred_rows_are_small(small_run, tmp_path):
    """No page above 300 KB, and each row on one of them."""
    cells = stored_cells(small_run[0])
    rows = [cell for cell in cells if cell.record.identity.reference]
    for number in range(20):
        for cell in cells:
            if not cell.record.identity.reference:
                hyperparameters = {**cell.record.identity.hyperparameters, "learning_rate": 1e-5 * (number + 1)}
                identity = cell.record.identity.model_copy(update={"hyperparameters": hyperparameters})
                record = cell.record.model_copy(update={"identity": identity})
                rows.append(replace(cell, key=f"{cell.key}-{number}", record=record))
    render([Results(source="many", cells=tuple(rows))], tmp_path, load_plugins())
    pages = sorted(tmp_path.glob("b/*.html"))
    assert sum(page.read_text().count("<bdi>npo</bdi></a>") for page in pages) == 20
    large = {page.name: page.stat().st_size for page in tmp_path.rglob("*.html") if page.stat().st_size > 300_000}
    assert not large


def test_every_link_leads_somewhere_inside_the_site(site):
    for page in site.rglob("*.html"):
        tags = Tags(page.read_text())
        assert tags.tags.count("script") == 1
        for link in tags.links:
            if link.startswith("https://arxiv.org/abs/"):
                continue
            assert not re.match(r"[a-z]+:", link), link
            path, _, anchor = link.partition("#")
            assert not path or (page.parent / path).is_file(), (page, link)
            target = Tags((page.parent / path).read_text()) if path.endswith(".html") and anchor else tags
            assert not anchor or anchor in target.ids, (page, link)


def test_equal_input_gives_equal_bytes(site, small_run, tmp_path):
    rendered(tmp_path, small_run[0])
    mine = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    theirs = {path.relative_to(site): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    assert mine == theirs


def test_a_cell_s_page_shows_its_samples_beside_the_references(site):
    text = next(site.glob("cells/npo--*.html")).read_text()
    for word in ("<dt>truth</dt>", "<dt>original <small>", "<dt>retained <small>", "<bdi>npo</bdi> <small>", "SHA-256"):
        assert word in text
    assert text.count('<article class="sample') > 40
    heads = re.findall(r'<th scope="col" class="number">(\w+)</th>', text)
    assert heads == ["original", "retained", "npo", "Interval", "Rows"]
    assert re.search(r"40 of \d+ rows|\d+ of \d+ rows", text)


def test_text_of_strangers_stays_text(small_run, tmp_path, reseal):
    run, _ = small_run
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("site"))
    folder = next((tmp_path / "run" / "cells").glob("ga--*"))
    rows = [row | {"generation": HOSTILE, "prompt": HOSTILE} for row in read_rows(folder / "samples.jsonl.gz")]
    (folder / "samples.jsonl.gz").write_bytes(rows_as_bytes(rows))
    reseal(folder)
    status = next((tmp_path / "run" / "cells").glob("gd--*")) / "status.json"
    write_sealed(status, {"status": "failed", "reason": HOSTILE})
    rendered(tmp_path / "site", tmp_path / "run")
    for page in (tmp_path / "site").rglob("*.html"):
        tags = Tags(page.read_text()).tags
        assert tags.count("script") == 1, "its own"
        assert "img" not in tags
    for file in (tmp_path / "site" / "samples").glob("ga--*.js"):
        # A page parses these texts: what is not a mark of a differing word is escaped in them.
        assert set(Tags(file.read_text()).tags) <= {"mark"}
    assert "alert(1)" in next((tmp_path / "site" / "cells").glob("ga--*.html")).read_text()


def test_a_record_that_tells_less_of_its_making_has_pages_all_the_same(small_run, tmp_path, reseal):
    """All of a record's provenance is optional, and a page that cannot be made would take every other with it."""
    run = tmp_path / "run"
    shutil.copytree(small_run[0], run)
    cell = next(cell for cell in (run / "cells").iterdir() if cell.name.startswith("npo--"))

    record = json.loads((cell / "record.json").read_text())
    record["provenance"] |= {"machine": {}, "plugins": {}, "packages": {}, "recipe": {}}
    record["comparability"]["key"]["references"] = {"original": {}}
    del record["comparability"]["key"]["data_source"]
    (cell / "record.json").write_text(json.dumps(record))
    reseal(cell)
    site = rendered(tmp_path / "site", run)
    assert "not recorded" in (site / "cells" / f"{cell.name}.html").read_text()
    with opened([run]) as found:
        for reporter in (every_eval_ever, lm_eval_results, model_card):
            assert reporter.render(found, tmp_path / "exports", load_plugins())


def test_an_answer_that_rouge_knows_no_word_of_has_no_score(small_run, tmp_path, reseal):
    run = tmp_path / "run"
    shutil.copytree(small_run[0], run)
    for cell in (run / "cells").iterdir():
        rows = [row | {"truth": "猫", "generation": "犬"} for row in read_rows(cell / "samples.jsonl.gz")]
        (cell / "samples.jsonl.gz").write_bytes(rows_as_bytes(rows))
        reseal(cell)
    for page in (rendered(tmp_path / "site", run) / "cells").iterdir():
        assert "None" not in page.read_text()


def test_text_from_right_to_left_and_emoji_stay_as_they_are(small_run, tmp_path, reseal):
    from unlearnbench.storage import read_rows, rows_as_bytes

    answer = "\u05e9\u05dc\u05d5\u05dd \u202e\u0639\u0627\u0644\u0645 \U0001f469\u200d\U0001f52c \ud83d end"
    shutil.copytree(small_run[0], tmp_path / "run", ignore=shutil.ignore_patterns("site"))
    folder = next((tmp_path / "run" / "cells").glob("ga--*"))
    rows = [row | {"generation": answer, "truth": ""} for row in read_rows(folder / "samples.jsonl.gz")]
    (folder / "samples.jsonl.gz").write_bytes(rows_as_bytes(rows))
    reseal(folder)
    site = rendered(tmp_path / "site", tmp_path / "run")
    text = next((site / "cells").glob("ga--*.html")).read_text(encoding="utf-8")
    # Half of a surrogate pair is no character: a file in UTF-8 cannot hold it.
    assert f'<dd dir="auto">{answer.replace(chr(0xD83D), "?")}</dd>' in text
    (script,) = (site / "samples").glob("ga--*.js")
    assert "\\u05e9" in script.read_text(encoding="ascii")


def test_a_record_of_a_newer_schema_is_refused_and_named(small_run, tmp_path):
    shutil.copytree(small_run[0], tmp_path / "newer", ignore=shutil.ignore_patterns("site"))
    path = next((tmp_path / "newer" / "cells").glob("npo--*/record.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(RecordError, match=r"record schema 99; this unlearnbench reads up to \d+: upgrade it"):
        rendered(tmp_path / "site", small_run[0], tmp_path / "newer")
    assert not (tmp_path / "site").exists(), "nothing is half written"


def test_sources_of_two_editions_stand_in_tables_of_their_own(small_run, tmp_path):
    with opened([small_run[0]]) as first, opened([small_run[0]], "as-released") as second:
        site = render([*first, *second], tmp_path / "site", load_plugins()).parent
    text = page_of(site, "tofu-forget10")
    assert len(set(re.findall(r'<table[^>]* id="([^"]+)"', text))) == len(re.findall("<table[^>]* id=", text))
    for edition in ("paper", "as-released"):
        assert f"edition {edition}" in text


def test_a_style_sheet_serves_dark_and_narrow_screens(site):
    css = (site / "style.css").read_text()
    assert "prefers-color-scheme: dark" in css
    assert "max-width: 30rem" in css
    assert "http" not in css


def luminance(colour):
    """Relative luminance of #rrggbb, WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_text_colour_has_a_contrast_of_aa_on_both_grounds_dark_and_light(site):
    style = (site / "style.css").read_text()
    themes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{([^}]*)\}", style)]
    themes = [theme for theme in themes if theme]  # on paper only the size of letters is another
    assert len(themes) == 2, "light and dark"
    for theme in themes:
        for ground in ("page", "band"):
            for text in ("ink", "quiet", "accent", "bad", "good"):
                light, dark = sorted((luminance(theme[text]), luminance(theme[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "–"), (float("inf"), "∞"), (float("-inf"), "−∞"), (0.0, "0.0000"), (0.55, "0.5500"),
        (1.59e-24, "1.6e−24"), (1.0984e71, "1.1e71"), (43.21, "43.2"), (-3.5, "−3.5000"), (2.7e-4, "2.7e−4"),
    ],
)  # fmt: skip
def test_numbers_are_legible(value, expected):
    assert formatted(value) == expected


def test_a_column_has_one_precision_and_a_range_no_minus_beside_its_dash():
    assert [precision_of([0.5, 2.0])(value) for value in (0.5, 2.0, -0.0001)] == ["0.500", "2.000", "0.000"]
    assert [precision_of([43.2, 100.0, 0.0])(value) for value in (43.2, 100.0, 0.0)] == ["43.2", "100.0", "0.0"]
    assert [precision_of([0.03, 3e-12], powers=True)(value) for value in (0.03, 3e-12)] == ["0.030", "3.0e−12"]
    assert Precision(1).range((-7.5, -1.7)) == "−7.5 to −1.7"
    assert Precision(1).range((1.7, 7.5)) == "1.7–7.5"


def test_rows_that_may_not_be_compared_stand_in_different_tables(small_run):
    run, _ = small_run
    cells = stored_cells(run)
    other = [cell for cell in cells if cell.identity.method in ("original", "retained", "ga")]
    changed = []
    for cell in other:
        record = cell.record.in_edition("as-released")
        changed.append(replace(cell, record=record, key=cell.key + "x"))
    found = tables([*cells, *changed])
    assert [len(table.rows) for table in found] == [15, 1]
    assert found[0].comparability["edition"] != found[1].comparability["edition"]


def test_a_record_is_the_same_after_a_look_at_another_edition(small_run):
    for cell in stored_cells(small_run[0]):
        there = cell.record.in_edition("as-released")
        assert there != cell.record
        # As JSON: a missing score is NaN, which equals nothing.
        assert there.in_edition("paper").model_dump_json() == cell.record.model_dump_json()


def test_two_results_of_one_seed_are_two_rows_and_never_a_mean(small_run):
    run, _ = small_run
    cells = stored_cells(run)
    npo = next(cell for cell in cells if cell.identity.method == "npo")
    again = replace(npo, key=npo.key + "x")
    (table,) = tables([*cells, again, npo])
    rows = [row for row in table.rows if row.method == "npo"]
    assert [len(row.cells) for row in rows] == [1, 1]
    assert all(value.spread is None for row in rows for value in row.values.values())


def test_a_limit_of_one_row_is_not_the_table_s(small_run):
    run, _ = small_run
    cells = stored_cells(run)
    npo = next(cell for cell in cells if cell.identity.method == "npo")
    limits = {**npo.record.limits, "rows": 3}
    limited = replace(npo, record=npo.record.model_copy(update={"limits": limits}))
    (table,) = tables([limited if cell is npo else cell for cell in cells])
    assert "rows" not in table.limits
    assert "data" in table.limits
    assert {row.method: row.limits for row in table.rows if "rows" in row.limits} == {
        "npo": {"rows": 3, **{k: v for k, v in limits.items() if k not in table.limits and k != "rows"}}
    }


def test_a_loss_of_another_edition_is_not_ranked_with_the_rest(small_run):
    run, _ = small_run
    cells = stored_cells(run)
    ga = next(cell for cell in cells if cell.identity.method == "ga")
    identity = ga.record.identity.model_copy(update={"method_edition": "as-released"})
    changed = replace(ga, record=ga.record.model_copy(update={"identity": identity}))
    found = tables([changed if cell is ga else cell for cell in cells])
    assert [(table.loss_edition, len(table.rows)) for table in found] == [("as-released", 1), ("paper", 14)] or [
        (table.loss_edition, len(table.rows)) for table in found
    ] == [("paper", 14), ("as-released", 1)]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine; the pages are checked as text above")
def test_the_page_reads_in_a_browser_without_a_network(site, tmp_path):
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         f"--user-data-dir={tmp_path}", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom",
         (site / "b" / "tofu-forget10.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "flat-pearson" in done.stdout
    assert "<caption>" in done.stdout


def test_every_score_can_be_downloaded(site, small_run):
    cells = [cell for cell in stored_cells(small_run[0]) if cell.record]
    lines = list(csv.DictReader(io.StringIO((site / "data" / "tofu-forget10.csv").read_text())))
    assert len(lines) == sum(len(cell.record.scores) for cell in cells)
    for cell in cells:
        mine = {line["metric"]: float(line["value"]) for line in lines if line["cell"] == cell.key}
        assert mine == pytest.approx({name: entry.value for name, entry in cell.record.scores.items()}, nan_ok=True)
    latex = (site / "data" / "tofu-forget10.tex").read_text()
    assert latex.count(r"\\") == 1 + len(cells)
    assert "tofu-forget10, nano" in latex


def test_bibtex_knows_the_papers_and_keeps_what_is_bibtex_already():
    text = as_bibtex({"ga": "Jang et al. 2023, arXiv:2210.01504", "mine": "@article{x, title={Y}}", "none": "",
                      "other": "Doe_2026, arXiv:2601.00001"})  # fmt: skip
    assert "Knowledge Unlearning for Mitigating Privacy Risks" in text
    assert "@article{x, title={Y}}" in text
    assert "eprint = {2601.00001}" in text
    assert r"Doe\_2026" in text
    assert text.count("@") == 3


def test_words_that_differ_are_marked_and_all_text_is_escaped():
    assert marked("a <b> c", "a x c") == "a <mark>&lt;b&gt;</mark> c"
    assert marked("same words", "same words") == "same words"
    assert marked("", "x") == ""
    assert marked("other", "x") == "<mark>other</mark>"


@given(st.text(max_size=60), st.text(max_size=60))
def test_marking_changes_no_words(text, truth):
    shown = html.unescape(re.sub("</?mark>", "", str(marked(text, truth))))
    assert shown.split() == text.split() or "<mark>" in text


def test_a_cell_without_its_sample_file_says_so_and_the_rest_stands(small_run, tmp_path):
    shutil.copytree(small_run[0], tmp_path / "run", ignore=shutil.ignore_patterns("site"))
    next((tmp_path / "run" / "cells").glob("npo--*/samples.jsonl.gz")).unlink()
    site = rendered(tmp_path / "site", tmp_path / "run")
    assert "Samples cannot be shown" in next((site / "cells").glob("npo--*.html")).read_text()
    assert "Samples cannot be shown" not in next((site / "cells").glob("ga--*.html")).read_text()


def test_a_run_still_in_progress_is_marked_partial(small_run, tmp_path):
    shutil.copytree(small_run[0], tmp_path / "run", ignore=shutil.ignore_patterns("site"))
    shutil.rmtree(next((tmp_path / "run" / "cells").glob("npo--*")))
    site = rendered(tmp_path / "site", tmp_path / "run")
    assert "partial" in (site / "index.html").read_text()
    assert "16 of 17" in (site / "index.html").read_text()
    assert "a run that was not finished" in next((site / "cells").glob("ga--*.html")).read_text()


def test_two_submissions_of_one_name_are_two_rows_with_pages_of_their_own(small_run, tmp_path, reseal):
    for name in ("one", "two"):
        shutil.copytree(small_run[0], tmp_path / name, ignore=shutil.ignore_patterns("site"))
    path = next((tmp_path / "two" / "cells").glob("npo--*/record.json"))
    record = json.loads(path.read_text())
    record["identity"]["method_qualified"] = "elsewhere/npo"
    record["scores"]["model_utility"]["value"] = 0.25
    path.write_text(json.dumps(record))
    reseal(path.parent)
    site = rendered(tmp_path / "site", tmp_path / "one", tmp_path / "two")
    text = page_of(site, "tofu-forget10")
    assert "<bdi>unlearnbench/npo</bdi>" in text
    assert "<bdi>elsewhere/npo</bdi>" in text
    assert len(list((site / "cells").glob("npo--*.html"))) == 2
    assert len(list((site / "cells").glob("ga--*.html"))) == 1, "equal results stand once"
    assert (site / "m" / "elsewhere-npo.html").is_file()


def browsed(address, folder, *more):
    """The document as headless Chromium has it after its scripts ran, with every name resolving to nothing."""
    return subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=3000", *more,
         "--dump-dom", address],
        capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_an_address_keeps_the_order_the_filter_and_the_comparison(site, tmp_path):
    table = "tofu-forget10-nano"
    address = (site / "b" / "tofu-forget10.html").as_uri()
    state = f"{table}-rows.sort=3.descending&{table}-rows.filter=flat&{table}-rows.hide=6&{table}-all.compare=2.3"
    shown = browsed(f"{address}#{state}", tmp_path)
    assert shown.count('aria-sort="descending"') == 1
    assert "4 of 15 rows" in shown
    rows = re.findall(r'<tr>\s*<td class="number place".*?</tr>', shown, re.S)
    utility = [float(value) for row in rows for value in re.findall(r'data-value="([^"]*)"', row)[2:3]]
    assert len(utility) == 15 - shown.count('<tr hidden="">')
    assert utility == sorted(utility, reverse=True)
    assert "Show where their answers differ" in shown
    heads = re.findall(r'data-cell="[^"]+">([^<]+)</th>', shown)
    assert f"<caption>{heads[2]} and {heads[3]}</caption>" in shown


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_no_request_leaves_the_page(site, tmp_path):
    log = tmp_path / "net.json"
    browsed((site / "b" / "tofu-forget10.html").as_uri(), tmp_path / "user", f"--log-net-log={log}")
    hosts = set(re.findall(r'"url":"https?://([^/"]+)', log.read_text()))
    # The browser itself looks for updates of its own.
    strange = {host for host in hosts if not re.search(r"(google|gstatic|googleapis|gvt1)\.com$", host.split(":")[0])}
    assert not strange
    assert not any(re.search(r"google|gstatic|gvt1", page.read_text()) for page in site.rglob("*.html"))
