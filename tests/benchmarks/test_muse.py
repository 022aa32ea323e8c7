"""MUSE-News: the data, metrics by hand, published logs, and a model that remembers beside one that does not."""

from __future__ import annotations

import json
import math
import os
import zlib
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearnbench.benchmarks.muse import generated, metrics, tables
from unlearnbench.benchmarks.muse.benchmark import MuseNews
from unlearnbench.benchmarks.muse.logs import read
from unlearnbench.contracts import Context, Preparation
from unlearnbench.data.encoder import EncodedRow, Encoder
from unlearnbench.data.sources import DataSource, read_tables
from unlearnbench.domain import Measurement
from unlearnbench.engine.batch import collate
from unlearnbench.engine.engine import Engine
from unlearnbench.engine.logprobs import sequence_logprob
from unlearnbench.errors import DataError, UsageError
from unlearnbench.leaderboard.published import published_tables
from unlearnbench.metrics.statistics import auc
from unlearnbench.plugin.registry import load_plugins


@pytest.fixture
def wide_encoder(tiny_encoder):
    """Letters for most tokens, so that texts are long."""
    return Encoder(tiny_encoder.tokenizer, tiny_encoder.style, context=4096)


VARIANTS = ("muse-news", "muse-news-scal-2", "muse-news-scal-4", "muse-news-sust-3")


def spec(name="muse-news"):
    return load_plugins().find("benchmark", name).spec


def quick_tables(name="muse-news"):
    return read_tables(spec(name).data, DataSource("generated", scale="quick"))


def task_of(encoder, name="muse-news", **settings):
    chosen = spec(name)
    benchmark = MuseNews(**{"chunk_tokens": 64, **settings}, **chosen.fixed)
    preparation = Preparation(quick_tables(name), lambda corpus: encoder, pretrained=False, generated=True)
    return benchmark, benchmark.prepare(preparation)


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("scale", ["full", "quick"])
def test_generated_news_has_the_tables_of_every_variant(name, scale):
    found = read_tables(spec(name).data, DataSource("generated", scale=scale))
    assert set(found) == set(spec(name).data.tables)
    assert list(tables.overlaps(found)) == []
    asked = {row["question"] for row in found["knowmem/forget_qa"]}
    assert not asked & {row["question"] for row in found["knowmem/forget_qa_icl"]}


def test_the_studies_differ_in_what_is_forgotten_and_when(wide_encoder):
    _, plain = task_of(wide_encoder)
    _, larger = task_of(wide_encoder, "muse-news-scal-2")
    _, turns = task_of(wide_encoder, "muse-news-sust-3")
    assert len(larger.forget) > 1.5 * len(plain.forget)
    assert len(turns.earlier) == 2
    texts = [{chunk.prompt for chunk in request} for request in (*turns.earlier, turns.forget)]
    assert not texts[0] & texts[1]
    assert not texts[1] & texts[2]
    assert not plain.earlier


def test_running_text_is_cut_into_chunks_whose_every_token_is_scored(tiny_encoder):
    texts = ["Where was Ada born?", "", "Ada was born in Rome. " * 9]
    chunks = tiny_encoder.chunks(texts, 16)
    encoded = tiny_encoder.encode(chunks)
    stream = [token for row in encoded for token in row.ids]
    whole = tiny_encoder.tokenizer("\n\n".join(texts))["input_ids"]
    # A last chunk of one token has nothing to predict it from.
    assert stream == whole[: len(whole) - (len(whole) % 16 == 1)]
    assert [len(row.ids) for row in encoded[:-1]] == [16] * (len(encoded) - 1)
    assert all(row.start == 0 for row in encoded)
    rows = collate(encoded, "cpu")
    assert int(rows.scored.sum()) == len(stream) - len(encoded)


def test_another_answer_to_a_chunk_continues_its_first_half_and_is_scored_alone(tiny_encoder):
    chunk = tiny_encoder.chunks(["Ada was born in Rome. " * 9], 16)[0]
    (row,) = tiny_encoder.encode([chunk.answered("No idea.")])
    assert row.ids[:8] == chunk.prompt_ids == tiny_encoder.encode([chunk])[0].ids[:8]
    assert row.start == 8
    assert tiny_encoder.decode(row.ids[8:]).strip() == "No idea."
    assert row.ids[-1] == tiny_encoder.tokenizer.eos_token_id


def test_a_text_longer_than_the_context_is_refused(tiny_encoder):
    with pytest.raises(UsageError, match=r"text 1 \('Ada was.*has \d+ tokens; the model's context is \d+"):
        tiny_encoder.text_ids(["Ada", "Ada was " * 400])


def test_as_many_tokens_follow_as_the_model_has_positions_for_and_the_record_says_so(tiny_encoder):
    notes = []
    assert tiny_encoder.new_tokens([(1,) * 100, (1,) * 20], 200, notes) == tiny_encoder.context - 100
    assert notes == [
        f"{tiny_encoder.context - 100} new tokens at most, for which the model has positions, instead of 200"
    ]
    assert tiny_encoder.new_tokens([(1,) * 100], 50, notes) == 50
    assert len(notes) == 1
    with pytest.raises(UsageError, match=r"a prompt has 256 tokens, which fill the model's context of 256"):
        tiny_encoder.new_tokens([(1,) * 256], 1, notes)


def damaged(changes):
    found = {name: [dict(row) for row in rows] for name, rows in quick_tables().items()}
    changes(found)
    return found


def overlap_privleak(found):
    found["privleak/holdout"][0] = found["privleak/forget"][0]


def same_file_twice(found):
    found["raw/retain1"] = found["raw/forget"]


def empty_answer(found):
    found["knowmem/retain_qa"][1]["answer"] = "  "


def empty_prompt(found):
    found["verbmem/forget"][0]["prompt"] = ""


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (overlap_privleak, "privleak/forget and privleak/holdout overlap in 1 texts"),
        (lambda found: found["privleak/holdout"].pop(), "has 10 texts and privleak/holdout 9; .* the same size"),
        (same_file_twice, "of raw/forget are also in raw/retain1; these must be different texts"),
        (empty_answer, "knowmem/retain_qa, row 1: 'answer' is empty"),
        (empty_prompt, "verbmem/forget, row 0: 'prompt' is empty"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(changes, complaint):
    found = damaged(changes)
    if "10 texts" in complaint:
        complaint = complaint.replace("10", str(len(found["privleak/forget"]))).replace(
            " 9", f" {len(found['privleak/holdout'])}"
        )
    with pytest.raises(DataError, match=complaint):
        tables.check(found)


def written(folder, leave_out=(), as_texts=True):
    """The generated tables in the hub's layout: texts as a JSON array, questions as rows."""
    for name, rows in quick_tables().items():
        if name not in leave_out:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            plain = as_texts and set(rows[0]) == {"text"}
            (folder / f"{name}.json").write_text(json.dumps([row["text"] for row in rows] if plain else rows))


def test_a_local_folder_reads_as_the_generator_made_it(tmp_path):
    written(tmp_path)
    assert read_tables(spec().data, DataSource("local", str(tmp_path))) == quick_tables()


def test_what_is_missing_must_be_allowed_and_keeps_rows_out_of_rankings(tmp_path):
    written(tmp_path, leave_out=("raw/retain2", "raw/holdout"))
    (tmp_path / "raw" / "retain1.json").rename(tmp_path / "raw" / "other.json")
    with pytest.raises(DataError, match=r"raw/retain1\.json is missing; .* --allow-missing raw/retain1"):
        read_tables(spec().data, DataSource("local", str(tmp_path)))
    source = DataSource(
        "local", str(tmp_path), allow_missing=("raw/retain2", "raw/holdout"), stand_ins={"raw/retain1": "raw/other"}
    )
    found = read_tables(spec().data, source)
    assert found["raw/retain2"] == []
    assert found["raw/retain1"] == quick_tables()["raw/retain1"]
    assert source.departures(spec().data) == [
        "raw/retain1 is raw/other", "raw/retain2 is missing", "raw/holdout is missing"
    ]  # fmt: skip


@pytest.mark.parametrize("table", ["knowmem/forget_qa_icl", "privleak/holdout", "verbmem/forget"])
def test_what_is_asked_cannot_be_missing(tmp_path, table):
    written(tmp_path, leave_out=(table,))
    with pytest.raises(DataError, match=rf"{table}\.json is missing"):
        read_tables(spec().data, DataSource("local", str(tmp_path), allow_missing=("raw/retain2",)))


# -- metrics ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=12), st.lists(st.integers(0, 6), min_size=1, max_size=12)
)  # fmt: skip
def test_the_auc_is_a_count_of_pairs_with_half_for_ties(above, below):
    pairs = list(product(above, below))
    expected = sum((b < a) + 0.5 * (b == a) for a, b in pairs) / len(pairs)
    assert auc(above, below) == pytest.approx(expected, abs=1e-12)


def test_all_equal_scores_have_an_auc_of_a_half():
    assert auc([3.0] * 5, [3.0] * 7) == 0.5
    assert math.isnan(auc([], [1.0]))


def test_min_k_is_the_mean_of_the_least_likely_tokens():
    assert metrics.min_k_score([-1.0, -5.0, -2.0, -4.0, -3.0]) == pytest.approx(4.5)  # int(0.4 × 5) = 2
    assert metrics.min_k_score([-1.0, -5.0]) is None
    assert metrics.min_k_score([]) is None


@pytest.mark.parametrize(
    ("written_text", "answer"),
    [("Rome\n\nQuestion: x", "Rome"), ("Rome\nQuestion: x", "Rome"), ("Rome Question: x", "Rome "), ("Rome", "Rome"),
     ("\n\nRome", ""), ("Question: x", "")],
)  # fmt: skip
def test_a_few_shot_answer_ends_where_the_next_question_begins(written_text, answer):
    assert metrics.first_answer(written_text) == answer


def rows(overlap, forget, holdout):
    """A measurement whose texts overlap as asked and whose privleak texts have these scores."""
    found = []
    for part in ("verbmem_f", "knowmem_f", "knowmem_r"):
        found += [{"part": part, "index": 0, "prompt": "p", "truth": "a b c d", "generation": overlap[part]}]
    for part, scores in (("forget", forget), ("holdout", holdout)):
        found += [{"part": f"privleak_{part}", "index": i, "min40": value} for i, value in enumerate(scores)]
    return Measurement(tuple(found))


EQUAL = dict.fromkeys(("verbmem_f", "knowmem_f", "knowmem_r"), "a b x y")


def scored(mine, retained=None, original=None):
    return {score.metric: score for score in metrics.scores(mine, original, retained)}


def test_scores_by_hand():
    mine = rows(EQUAL, [1.0, 2.0, 5.0], [3.0, 3.0, 4.0])
    retained = rows(EQUAL, [1.0, 4.0], [2.0, 3.0])
    with pytest.raises(DataError, match="privleak_forget: the unlearned model was scored on 3 rows and the retained"):
        scored(mine, retained)
    retained = rows(EQUAL, [1.0, 4.0, 3.5], [2.0, 3.0, 4.0])
    found = scored(mine, retained)
    assert found["verbmem_f"].value == pytest.approx(50.0)
    assert found["auc"].value == pytest.approx(3 / 9)
    reference = (0 + 2.5 + 2) / 9
    assert found["privleak"].value == pytest.approx((3 / 9 - reference) / reference * 100)
    # Some resamples of so few texts have an AUC of 0 in the retained model, so there is no interval.
    assert found["privleak"].interval is None
    many = scored(rows(EQUAL, list(range(20)), list(range(1, 21))), rows(EQUAL, list(range(20)), list(range(20))))
    low, high = many["privleak"].interval
    assert low < many["privleak"].value < high


def test_the_retained_model_leaks_nothing_against_itself():
    retained = rows(EQUAL, [1.0, 4.0, 2.0] * 5, [2.0, 3.0, 1.0] * 5)
    found = scored(retained, retained)
    assert found["privleak"].value == 0.0
    assert found["privleak"].interval == (0.0, 0.0)
    assert all(score.passes is None for score in found.values())


def test_a_score_that_is_no_number_is_named_as_the_reason():
    broken, fine = rows(EQUAL, [math.nan, 1.0], [0.5, 0.2]), rows(EQUAL, [0.4, 1.0], [0.5, 0.2])
    found = scored(broken, fine)
    for name in ("auc", "privleak"):
        assert math.isnan(found[name].value)
        assert "is not a number" in found[name].reason
    assert (
        scored(fine, broken)["privleak"].reason == "the retained model's AUC: a text's Min-40 % score is not a number"
    )


def test_a_text_of_one_token_is_left_out_and_said_so():
    found = scored(rows(EQUAL, [None, 4.0], [2.0, 3.0]), rows(EQUAL, [None, 1.0], [2.0, 3.0]))
    assert found["auc"].value == 1.0
    assert found["auc"].n == 1
    assert "1 of 4 texts are too short" in found["auc"].reason
    nothing = scored(rows(EQUAL, [None], [2.0]), rows(EQUAL, [None], [2.0]))
    assert math.isnan(nothing["privleak"].value)
    assert "too short" in nothing["privleak"].reason


def test_nothing_is_divided_by_an_auc_of_zero():
    found = scored(rows(EQUAL, [1.0, 2.0], [0.0, 3.0]), rows(EQUAL, [1.0, 1.0], [2.0, 2.0]))
    assert math.isnan(found["privleak"].value)
    assert "AUC is 0" in found["privleak"].reason


@pytest.mark.parametrize("text", ["", "...", "日本語", "«»"])
def test_an_answer_without_a_latin_letter_scores_0_and_does_not_fail(text):
    found = scored(rows(dict.fromkeys(EQUAL, text), [1.0], [2.0]))
    assert found["verbmem_f"].value == found["knowmem_r"].value == 0.0


def test_the_criteria_reproduce_every_mark_of_table_5():
    (table,) = (table for table in published_tables() if table.benchmark == "muse-news")
    retained = dict(zip(table.metrics, table.rows["retained"], strict=True))
    checked = 0
    for method in table.criteria:
        mine = dict(zip(table.metrics, table.rows[method], strict=True))
        for metric in ("verbmem_f", "knowmem_f", "knowmem_r"):
            passes = mine[metric] > 0 if metric == "knowmem_r" else mine[metric] <= retained[metric]
            assert passes is table.passes(method, metric), (method, metric)
            checked += 1
    assert checked == 36
    better = rows({"verbmem_f": "x", "knowmem_f": "a b c d", "knowmem_r": ""}, [1.0], [2.0])
    base = rows(EQUAL, [1.0], [2.0])
    judged = scored(better, base, original=base)
    assert [judged[name].passes for name in ("verbmem_f", "knowmem_f", "knowmem_r")] == [True, False, False]


# -- a model ----------------------------------------------------------------------------------------------------------


def test_a_model_is_asked_as_the_protocol_says(wide_encoder, tiny_model):
    """Every likelihood and every word once more, without batches, caches or shared prefixes."""
    benchmark, task = task_of(wide_encoder, verbatim_tokens=6, answer_tokens=4, limit=2)
    model = tiny_model.float()
    measured = benchmark.measure(model, task, Context("measure", 0, Engine(), log=lambda line: None))
    found = quick_tables()
    tokenizer = wide_encoder.tokenizer

    def cleaned(ids):
        return tokenizer.clean_up_tokenization(tokenizer.decode(ids, skip_special_tokens=True))

    def continued(text, tokens):
        ids = list(tokenizer(text)["input_ids"])
        start = len(ids)
        for _ in range(tokens):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                ids.pop()
                break
        return cleaned(ids[start:])

    for row, source in zip(measured.part("verbmem_f"), found["verbmem/forget"], strict=False):
        assert row["generation"] == continued(source["prompt"], 6)
        assert row["truth"] == tokenizer.clean_up_tokenization(
            tokenizer.decode(tokenizer(source["gt"])["input_ids"][:6])
        )
    examples = "".join(
        f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in found["knowmem/retain_qa_icl"]
    )
    for row, source in zip(measured.part("knowmem_r"), found["knowmem/retain_qa"], strict=False):
        assert row["generation"] == continued(f"{examples}Question: {source['question']}\nAnswer: ", 4)
        assert row["prompt"] == source["question"]
    for row, source in zip(measured.part("privleak_holdout"), found["privleak/holdout"], strict=False):
        ids = torch.tensor([tokenizer(source["text"])["input_ids"]])
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        smallest = logp.sort().values[: int(0.4 * len(logp))]
        assert row["min40"] == pytest.approx(-smallest.mean().item(), abs=1e-5)
    assert [len(measured.part(part)) for part in ("verbmem_f", "knowmem_f", "privleak_forget")] == [2, 2, 2]


def test_a_shared_prefix_changes_no_word(tiny_model):
    shared = tuple(range(3, 45))
    prompts = [(*shared, 1), (*shared, 2, 5, 7), (*shared, 9, 9)]
    engine = Engine()
    together = engine.generate(tiny_model, prompts, 8, [])
    alone = [engine.generate(tiny_model, [prompt], 8, [])[0] for prompt in prompts]
    assert together == alone
    calls = []
    tiny_model.register_forward_pre_hook(lambda _, args, given: calls.append(tuple(given["input_ids"].shape)),
                                         with_kwargs=True)  # fmt: skip
    engine.generate(tiny_model, prompts, 1, [])
    assert calls == [(1, 42), (3, 3)]


def test_token_log_probabilities_add_up_to_the_likelihood(tiny_model, tiny_encoder):
    encoded = [EncodedRow(ids, 0) for ids in tiny_encoder.text_ids(["Ada was born in Rome.", "Where was Bo?"])]
    per_token = Engine().token_logprobs(tiny_model, encoded)
    assert [len(values) for values in per_token] == [len(row.ids) - 1 for row in encoded]
    sums = [-found.nll for found in Engine().score(tiny_model, encoded)]
    assert [sum(values) for values in per_token] == pytest.approx(sums)
    (direct,) = sequence_logprob(tiny_model, collate(encoded, "cpu"))
    assert direct.tolist() == pytest.approx(sums)


# -- published logs ---------------------------------------------------------------------------------------------------


def log_folder(folder, scores=((2.0, 1.0), (3.0, 4.0))):
    entry = {"prompt": "p", "gt": "one two", "response": "one two"}
    for part in ("verbmem_f", "knowmem_f", "knowmem_r"):
        (folder / part).mkdir(parents=True)
        (folder / part / "log.json").write_text(json.dumps([entry]))
    privleak = {name: [{"text": "", "Min-40%": value} for value in values]
                for name, values in zip(("forget", "holdout"), scores, strict=True)}  # fmt: skip
    (folder / "privleak").mkdir()
    (folder / "privleak" / "log.json").write_text(json.dumps(privleak))
    return folder


def test_a_log_folder_is_scored_by_the_command_line(tmp_path, command):
    mine = log_folder(tmp_path / "mine")
    retained = log_folder(tmp_path / "retained", scores=((2.0, 3.5), (3.0, 4.0)))
    done = command("score", "--from", "muse-log", str(mine), "--retained", str(retained), "--json")
    assert done.code == 0, done.err
    assert done.json["scores"]["verbmem_f"]["value"] == 100.0
    assert done.json["scores"]["privleak"]["value"] == -100.0
    assert done.json["samples"]["rows"] == 7
    alone = command("score", "--from", "muse-log", str(mine), "--json").json
    assert alone["scores"]["privleak"]["reason"] == "needs the retained model's values"


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda f: (f / "knowmem_r" / "log.json").unlink(), r"knowmem_r/log\.json does not exist"),
        (lambda f: (f / "verbmem_f" / "log.json").write_text('[{"prompt": "p"'), "is not a JSON log"),
        (lambda f: (f / "privleak" / "log.json").write_text('{"forget": []}'), "has no list 'holdout'"),
        (lambda f: (f / "privleak" / "log.json").write_text('{"forget": [{}], "holdout": []}'), "text 0: no Min-40%"),
        (lambda f: (f / "knowmem_f" / "log.json").write_text('[{"gt": "x"}]'), "row 0: incomplete"),
    ],
)
def test_a_log_that_cannot_be_read_is_named(tmp_path, damage, complaint):
    folder = log_folder(tmp_path / "log")
    damage(folder)
    with pytest.raises(DataError, match=complaint):
        read(folder, None, False)


ORACLE = os.environ.get("UNLEARNBENCH_ORACLE")


@pytest.mark.skipif(not ORACLE, reason="UNLEARNBENCH_ORACLE names no folder of real published logs")
@pytest.mark.parametrize("model", ["target", "retrain", "ga"])
def test_real_logs_come_to_the_published_values(model):
    logs = Path(ORACLE) / "logs" / "muse_news"
    expected = json.loads((Path(ORACLE) / "expected.json").read_text())["muse_news"][model]
    log = read(logs / model, logs / "retrain", False)
    found = {score.metric: score.value for score in log.benchmark.score(log.unlearned, None, log.retained)}
    for name in ("verbmem_f", "knowmem_f", "knowmem_r", "privleak"):
        assert found[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-9)
    assert found["auc"] == pytest.approx(expected["auc_forget_holdout_min40"], rel=1e-9)


def test_the_generator_is_a_function_of_its_seed():
    assert generated.tables(3, "quick") == generated.tables(3, "quick") != generated.tables(4, "quick")


def test_a_log_probability_that_is_no_number_makes_a_score_none_in_any_order():
    values = [-3.0, math.nan, -1.0, -2.0, -0.5]
    for shift in range(5):
        assert math.isnan(metrics.min_k_score(values[shift:] + values[:shift]))


def test_a_criterion_over_a_value_that_is_not_known_is_neither_met_nor_missed():
    def model(truth):
        rows = [{"part": part, "index": 0, "prompt": "p", "truth": truth, "generation": "a b"}
                for part in ("verbmem_f", "knowmem_f", "knowmem_r")]  # fmt: skip
        return Measurement(tuple(rows))

    judged = {score.metric: score for score in metrics.scores(model("日本"), model("x"), model("日本"))}
    for part in ("verbmem_f", "knowmem_f", "knowmem_r"):
        assert math.isnan(judged[part].value)
        assert judged[part].passes is None
        assert "ROUGE compares no others" in judged[part].reason


def attacked(forget, holdout):
    """A measurement whose texts have these losses, from which other scores for membership are made."""
    found = list(rows(EQUAL, [1.0] * len(forget), [1.0] * len(holdout)).rows)
    losses = iter([*forget, *holdout])
    texts = [
        {**row, "loss": loss, "zlib": 2 * loss, "min40pp": -loss, "greedy": [3, 1, 4]}
        for row in found
        if "min40" in row
        for loss in [next(losses)]
    ]
    return Measurement((*(row for row in found if "min40" not in row), *texts))


def test_membership_attacks_are_counts_of_pairs():
    mine, theirs = attacked([1.0, 2.0, 5.0], [3.0, 3.0, 4.0]), attacked([2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    found = scored(mine, theirs)
    # A holdout text scores below a forget text in three of nine pairs, and above where the score is turned.
    assert found["auc_loss"].value == found["auc_zlib"].value == pytest.approx(3 / 9)
    assert found["auc_min40pp"].value == pytest.approx(6 / 9)
    # Differences from the retained model's losses: -1, 0, 3 and 2, 1, 1.
    assert found["auc_reference"].value == pytest.approx(3 / 9)
    assert found["auc_gradient_norm"].reason == "gradient norms were not asked for (gradient_norms)"
    assert found["forget_exact_memorisation"].value == 3 / 4
    assert found["forget_extraction_strength"].value == 1 / 4
    assert scored(mine)["auc_reference"].reason == "needs the retained model's values"


def test_a_text_s_scores_for_membership_come_of_its_tokens():
    from unlearnbench import ReadText

    read = ReadText((-1.0, -3.0, -2.0), (True, False, True), (-2.0, -2.0, -2.0), (1.0, 1.0, 1.0))
    found = metrics.membership(read, "some text")
    assert found["loss"] == 2.0
    assert found["zlib"] == 6.0 / len(zlib.compress(b"some text"))
    assert (found["min40"], found["min40pp"]) == (3.0, 1.0)
    assert found["greedy"] == [2, 1, 3]
    nothing = metrics.membership(ReadText(), "")
    assert [nothing[name] for name in ("min40", "min40pp", "loss", "zlib")] == [None] * 4
