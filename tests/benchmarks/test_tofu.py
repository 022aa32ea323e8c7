"""TOFU: the data's partition, the metrics by hand, published logs, and the ends of the scale."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from unlearnbench.benchmarks.tofu import generated, metric_list, metrics, tables
from unlearnbench.benchmarks.tofu.logs import read
from unlearnbench.data.sources import DataSource, read_tables
from unlearnbench.domain import Measurement
from unlearnbench.errors import DataError
from unlearnbench.plugin.registry import load_plugins

SPLITS = (("forget01", "retain99", 1), ("forget05", "retain95", 5), ("forget10", "retain90", 10))


def benchmark_spec(split):
    return load_plugins().find("benchmark", f"tofu-{split}").spec


@pytest.mark.parametrize("scale", ["full", "quick"])
@pytest.mark.parametrize("seed", [0, 1])
def test_generated_forget_and_retain_partition_the_full_table(scale, seed):
    found = generated.tables(seed, scale)
    questions = [row["question"] for row in found["full"]]
    assert len(set(questions)) == len(questions)
    for forget, retain, percent in SPLITS:
        names = tables.table_fields(forget, retain)
        tables.check({name: found[name] for name in names})
        authors = len(found["full"]) * percent // 100
        assert len(found[forget]) >= authors
    assert scale == "quick" or len(found["forget01"]) >= 20
    asked = {row["question"] for part in ("real_authors", "world_facts") for row in found[f"{part}_perturbed"]}
    assert asked <= {row["question"] for row in found["general"]}
    assert not asked & set(questions)


def test_generated_rows_have_the_real_schema():
    for row in generated.tables()["retain_perturbed"]:
        # Real rows name no author: their place in the table says whose they are.
        assert set(row) - {"author"} == {
            "question",
            "answer",
            "paraphrased_answer",
            "perturbed_answer",
            "paraphrased_question",
        }
        assert len(set(row["perturbed_answer"])) == 5
        assert row["answer"] != row["paraphrased_answer"] not in row["perturbed_answer"]


def test_the_generator_is_a_function_of_its_seed():
    assert generated.tables(3) == generated.tables(3) != generated.tables(4)


def written(folder, changes=lambda found: None, split="forget05"):
    """The generated tables of a split as files, after some damage."""
    spec = benchmark_spec(split).data
    found = generated.tables(0, "quick")
    found = {name: [dict(row) for row in found[name]] for name in spec.tables}
    changes(found)
    for name, rows in found.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return spec, DataSource("local", str(folder))


def test_a_local_folder_reads_as_the_generator_made_it(tmp_path):
    spec, source = written(tmp_path)
    assert read_tables(spec, source)["full"] == generated.tables(0, "quick")["full"]


def overlap(found):
    found["retain95"][0] = found["forget05"][0]


def drop_field(found):
    del found["forget05_perturbed"][3]["perturbed_answer"]


def swap(found):
    rows = found["forget05_perturbed"]
    rows[0], rows[1] = rows[1], rows[0]


def drop_row(found):
    found["retain95"].pop()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (overlap, "forget05 and retain95 overlap in 1 rows"),
        (drop_field, "table forget05_perturbed, row 3: field 'perturbed_answer' is missing"),
        (swap, "forget05_perturbed, row 0 is"),
        (drop_row, r"retain95 .* followed by forget05 .* is not full"),
        (lambda found: found["full"][2].update(answer=None), "table full, row 2: field 'answer' is None"),
        (lambda found: found["forget05"].clear(), "table forget05 has no rows"),
        (
            lambda found: found["forget05_perturbed"][1].update(perturbed_answer="Wrong one."),
            "field 'perturbed_answer' is 'Wrong one.', expected a list of texts",
        ),
        (lambda found: found["full"][1].update(question=["Who?"]), "field 'question' is .* expected text"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(tmp_path, damage, complaint):
    spec, source = written(tmp_path, damage)
    with pytest.raises(DataError, match=complaint):
        read_tables(spec, source)


def row(part, index=0, answer=(1.0, 4), paraphrase=(2.0, 4), perturbed=((3.0, 4), (4.0, 4)), **more):
    base = {"part": part, "index": index, "prompt": f"q{index}", "truth": "the red house", "generation": "a red house",
            "answer": list(answer), "perturbed": [list(pair) for pair in perturbed]}  # fmt: skip
    if paraphrase:
        base["paraphrase"] = list(paraphrase)
    return base | more


def test_the_truth_ratio_by_hand():
    """p(paraphrase) = e^-2; p(wrong) is the mean of e^-3 and e^-4, arithmetic or geometric."""
    found = row("forget")
    arithmetic = (math.exp(-3) + math.exp(-4)) / 2 / math.exp(-2)
    assert metrics.truth_ratio(found, "paper") == pytest.approx(arithmetic)
    assert metrics.truth_ratio(found, "as-released") == pytest.approx(math.exp(-3.5) / math.exp(-2))
    # Real authors and world facts have no paraphrase: the answer serves.
    assert metrics.truth_ratio(row("world_facts", paraphrase=None), "as-released") == pytest.approx(math.exp(-2.5))


def test_the_terms_by_hand():
    rows = [row("forget")]
    r = metrics.truth_ratio(rows[0], "paper")
    assert metrics.term_values("forget", "truth_ratio", rows, "paper") == [pytest.approx(min(r, 1 / r))]
    assert metrics.term_values("retain", "truth_ratio", rows, "paper") == [pytest.approx(max(0, 1 - r))]
    assert metrics.term_values("retain", "probability", rows, "paper") == [pytest.approx(math.exp(-1))]
    expected = math.exp(-1) / (math.exp(-1) + math.exp(-3) + math.exp(-4))
    assert metrics.term_values("world_facts", "probability", rows, "paper") == [pytest.approx(expected)]
    assert metrics.term_values("retain", "rouge", rows, "paper") == [pytest.approx(2 / 3)]


def test_what_is_memorised_and_how_fluent_it_is_by_hand():
    words = {"generation": "a red house a red house"}
    rows = [row(part, greedy=[3, 1], paraphrased="a red barn", **words) for part in metric_list.PARTS]
    # Of the retained model the wrong answers are as likely as the right ones.
    theirs = [
        row(part, answer=(1.0, 4), paraphrase=(1.0, 4), perturbed=((1.0, 4), (1.0, 4))) for part in metric_list.PARTS
    ]
    found = by_name(Measurement(tuple(rows)), Measurement(tuple(theirs)))
    assert found["forget_exact_memorisation", None].value == 3 / 4
    assert found["retain_extraction_strength", None].value == 1 / 4
    # Four trigrams, of which one occurs twice.
    assert found["forget_repetition", None].value == pytest.approx(1 / 4)
    assert found["forget_paraphrase_probability", None].value == pytest.approx(math.exp(-2))
    assert found["forget_paraphrase_rouge", None].value == pytest.approx(2 / 3)
    r = metrics.truth_ratio(rows[0], "paper")
    assert found["forget_truth_preference", "paper"].value == pytest.approx(max(0, 1 - r))
    chances = [math.exp(-loss) for loss in (1, 2, 3, 4)]
    expected = sum(0.25 * math.log(0.25 / (chance / sum(chances))) for chance in chances)
    assert found["forget_answer_kl", None].value == pytest.approx(expected)


def test_rows_that_lack_what_a_newer_metric_needs_leave_it_missing_with_a_reason():
    found = by_name(everything(), everything())
    assert found["forget_extraction_strength", None].reason == metrics.UNCOUNTED
    assert found["forget_paraphrase_rouge", None].reason == "rows lack its text"
    assert not math.isnan(found["forget_answer_kl", None].value)
    assert by_name(everything(), None)["forget_answer_kl", None].reason == "needs the retained model's values"


def everything(n=12, shift=0.0):
    """A measurement with rows in every part; likelihoods differ from row to row."""
    rows = []
    for part in metric_list.PARTS:
        for index in range(n):
            wrong = [(3.0 + 0.1 * index + shift, 4), (2.0 + 0.2 * index, 4)]
            paraphrase = (2.0 - 0.1 * index, 4) if part in ("forget", "retain") else None
            rows.append(row(part, index, (1.0 + 0.05 * index, 4), paraphrase, wrong))
    return Measurement(tuple(rows))


def by_name(unlearned, retained):
    return {(s.metric, s.edition): s for s in metrics.scores(unlearned, retained)}


def test_model_utility_is_the_harmonic_mean_of_its_nine_terms():
    found = by_name(everything(), None)
    for edition in ("paper", "as-released"):
        terms = [
            found[f"{part}_{term}", edition if term == "truth_ratio" else None].value
            for part in metric_list.UTILITY_PARTS
            for term in metric_list.TERMS
        ]
        expected = 9 / sum(1 / value for value in terms)
        assert found["model_utility", edition].value == pytest.approx(expected)
    low, high = found["model_utility", "paper"].interval
    assert low < found["model_utility", "paper"].value < high


def test_forget_quality_of_the_retained_model_is_one():
    found = by_name(everything(), everything())
    assert found["forget_quality", "paper"].value == 1.0
    assert found["forget_quality_log10", "as-released"].value == 0.0


def test_forget_quality_without_a_retained_model_is_missing_not_a_default():
    score = by_name(everything(), None)["forget_quality", "paper"]
    assert math.isnan(score.value)
    assert "retained" in score.reason


def test_different_rows_are_an_error_not_a_number():
    with pytest.raises(DataError, match="12 forget rows and the retained model on 11, of which 11 are shared"):
        by_name(everything(12), everything(11))


def test_permuting_rows_permutes_the_values_and_changes_no_score():
    rows = everything().rows
    backwards = by_name(Measurement(rows[::-1]), Measurement(everything(shift=1.0).rows[::-1]))
    forwards = by_name(Measurement(rows), everything(shift=1.0))
    for key, score in forwards.items():
        assert backwards[key].value == pytest.approx(score.value, nan_ok=True)
        assert sorted(backwards[key].per_example) == pytest.approx(sorted(score.per_example))
        assert list(backwards[key].per_example) == pytest.approx(list(score.per_example)[::-1])


@pytest.mark.parametrize("edition", ["paper", "as-released"])
def test_ratios_of_probabilities_that_no_float_holds_are_what_their_logarithms_say(edition):
    """exp(−9999) is 0 in floats, and a collapsed model's ratios are still defined: the release divides logarithms."""
    dead = [row("forget", i, (9999.0, 1), (9999.0, 1), [(9999.0 + i, 1)] * 5) for i in range(3)]
    dead += [row("world_facts", i, (9999.0, 1), None, [(9999.0, 1)] * 3) for i in range(3)]
    found = by_name(Measurement(tuple(dead)), Measurement(tuple(dead)))
    assert found["forget_probability", None].value == 0.0
    assert found["forget_truth_ratio", edition].per_example == pytest.approx([1, math.exp(-1), math.exp(-2)])
    assert found["forget_quality", edition].value == 1.0
    assert found["world_facts_probability", None].per_example == pytest.approx([0.25] * 3)
    far = [row("forget", i, (1.0, 1), (9999.0, 1), [(1.0, 1)] * 5) for i in range(3)]
    assert by_name(Measurement(tuple(far)), Measurement(tuple(dead)))["forget_truth_ratio", edition].value == 0.0


def test_a_loss_that_is_no_number_is_missing_with_a_reason():
    dead = [row("forget", i, (math.nan, 1), (math.nan, 1), [(math.nan, 1)] * 5) for i in range(3)]
    found = by_name(Measurement(tuple(dead)), Measurement(tuple(dead)))
    for name in ("forget_probability", "forget_truth_ratio", "forget_quality"):
        (score,) = {score.reason for (metric, _), score in found.items() if metric == name}
        assert "no number" in score
    assert found["model_utility", "paper"].reason


def test_an_answer_without_words_scores_nothing_and_fails_nothing():
    rows = [row("retain", 0, generation=""), row("retain", 1, generation="…!")]
    assert metrics.term_values("retain", "rouge", rows, "paper") == [0.0, 0.0]


def test_a_truth_without_words_has_no_overlap_with_anything():
    """ROUGE knows [a-z0-9] alone: of a truth in Japanese it says nothing, which is no 0."""
    rows = [
        row(part, i, truth="日本" if part == "retain" else "a b") for part in metrics.UTILITY_PARTS for i in range(2)
    ]
    found = by_name(Measurement(tuple(rows)), None)
    assert math.isnan(found["retain_rouge", None].value)
    assert found["retain_rouge", None].reason == (
        "2 of 2 truths have no word of [a-z0-9], and ROUGE compares no others"
    )
    assert math.isnan(found["retain_rouge_l", None].value)
    assert math.isfinite(found["world_facts_rouge", None].value)
    assert math.isnan(found["model_utility", "paper"].value)
    assert found["model_utility", "paper"].reason == "one of its nine terms is missing"


def test_with_forty_rows_the_p_value_takes_its_known_values():
    """D = 9/40 and 12/40 between equal samples, as printed in published tables."""
    from unlearnbench.metrics.statistics import ks_pvalue

    grid = list(range(40))
    values = [ks_pvalue(grid, [x + steps - 0.5 for x in grid]) for steps in (9, 12, 13, 14)]
    assert values == pytest.approx([0.2657, 0.0541, 0.0286, 0.0143], abs=5e-5)


# -- published logs -------------------------------------------------------------------------------------------------


def log_of(measurement):
    sections = {}
    names = {"retain": "eval_log.json", "real_authors": "eval_real_author_wo_options.json",
             "world_facts": "eval_real_world_wo_options.json", "forget": "eval_log_forget.json"}  # fmt: skip
    for part, name in names.items():
        rows = measurement.part(part)
        keys = [str(index) for index in range(len(rows))]
        columns = {
            "avg_gt_loss": [r["answer"][0] for r in rows],
            "num_token_gt": [r["answer"][1] for r in rows],
            "average_perturb_loss": [[p[0] for p in r["perturbed"]] for r in rows],
            "num_token_perturb": [[p[1] for p in r["perturbed"]] for r in rows],
            "avg_paraphrased_loss": [r.get("paraphrase", r["answer"])[0] for r in rows],
            "num_token_paraphrased": [r.get("paraphrase", r["answer"])[1] for r in rows],
            "generated_text": [[r["prompt"], r["generation"], r["truth"]] for r in rows],
        }
        sections[name] = {column: dict(zip(keys, values, strict=True)) for column, values in columns.items()}
    return sections


def broken(field, value):
    log = log_of(everything())
    log["eval_log.json"][field] = value
    return json.dumps(log)


def test_a_published_log_scores_as_its_measurement_does(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(log_of(everything())))
    (tmp_path / "b.json").write_text(json.dumps(log_of(everything(shift=2.0))))
    log = read(tmp_path / "a.json", tmp_path / "b.json", align=False)
    found = {(s.metric, s.edition): s.value for s in log.benchmark.score(log.unlearned, None, log.retained)}
    expected = {key: score.value for key, score in by_name(everything(), everything(shift=2.0)).items()}
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_log_of_lists_scores_as_one_of_mappings(tmp_path):
    """The release of NPO writes each metric as a list in row order."""
    mappings = log_of(everything())
    lists = {name: {field: list(column.values()) for field, column in section.items()}
             for name, section in mappings.items()}  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(mappings))
    (tmp_path / "b.json").write_text(json.dumps(lists))
    logs = [read(tmp_path / name, None, align=False) for name in ("a.json", "b.json")]
    assert logs[0].unlearned.rows == logs[1].unlearned.rows


def test_logs_of_different_rows_are_refused_and_can_be_aligned(tmp_path, command):
    longer, shorter = everything(12), everything(9)
    (tmp_path / "a.json").write_text(json.dumps(log_of(longer)))
    (tmp_path / "b.json").write_text(json.dumps(log_of(shorter)))
    words = ("score", "--from", "tofu-log", str(tmp_path / "a.json"), "--retained", str(tmp_path / "b.json"), "--json")
    refused = command(*words)
    assert refused.code == 4
    assert "9 are shared" in refused.err
    aligned = command(*words, "--align").json
    assert aligned["scores"]["forget_quality"]["n"] == 9
    assert aligned["scores"]["forget_quality"]["value"] == 1.0
    assert "forget rows shared by both logs: 9" in aligned["notes"]
    assert aligned["samples"]["rows"] == 12 * 3 + 9
    assert len(aligned["samples"]["sha256"]) == 64
    assert aligned["comparability"]["key"]["edition"] == "paper"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not a JSON log"),
        ("{}", "has no section 'eval_log.json'"),
        ('{"eval_log.json": {}}', "field 'avg_gt_loss' is missing"),
        ('{"eval_log.json": []}', "eval_log.json: expected metrics by name, found a list"),
        (broken("avg_gt_loss", 3), "eval_log.json: avg_gt_loss is a number, expected a value for each row"),
        (broken("avg_gt_loss", {"x": 1.0}), "avg_gt_loss has a row that is no number"),
        (broken("num_token_gt", [1]), "eval_log.json, row 1: num_token_gt has no value"),
        (broken("generated_text", [["a", "b"]] * 12), "row 0: a field is not what the release writes"),
        (broken("generated_text", [["a", "b", 3]] * 12), "row 0: generated_text is not prompt, generation and truth"),
        (broken("average_perturb_loss", [[None] * 2] * 12), "row 0: a field is not what the release writes"),
    ],
)
def test_a_damaged_log_is_one_line(tmp_path, command, content, complaint):
    (tmp_path / "a.json").write_text(content)
    done = command("score", "--from", "tofu-log", str(tmp_path / "a.json"))
    assert (done.code, done.out) == (4, "")
    assert complaint in done.err
    assert len(done.err.strip().splitlines()) == 1


ORACLE = os.environ.get("UNLEARNBENCH_ORACLE", "")


@pytest.mark.skipif(not ORACLE, reason="UNLEARNBENCH_ORACLE does not name a folder of published logs")
def test_real_published_logs_come_out_to_the_digit():
    root = Path(ORACLE)
    expected = json.loads((root / "expected.json").read_text())
    parts = {"Retain": "retain", "Real Authors": "real_authors", "Real World": "world_facts", "Forget": "forget"}
    for name, numbers in expected["tofu"].items():
        log = read(root / "logs" / "tofu" / name / "eval_log_aggregated.json", None, align=False)
        found = by_name(log.unlearned, None)
        for label, value in numbers["components_common"].items():
            part, term = label.rsplit(" ", 1)
            assert found[f"{parts[part]}_{term.lower()}", None].value == pytest.approx(value, rel=1e-9)
        for edition, kind in (("paper", "arithmetic"), ("as-released", "geometric")):
            for label, value in numbers[f"truth_ratio_{kind}"].items():
                assert found[f"{parts[label]}_truth_ratio", edition].value == pytest.approx(value, rel=1e-9)
            script = "utils.py" if kind == "arithmetic" else "aggregate_eval_stat.py"
            utility = numbers[f"model_utility_{kind} ({script})"]
            assert found["model_utility", edition].value == pytest.approx(utility, rel=1e-9)
