"""A forgotten book: BLEU beside sacrebleu, excerpts, lm-eval on a model in memory, and what overflows."""

from __future__ import annotations

import json
import math
import random
import shutil

import pytest
import sacrebleu

from unlearnbench.benchmarks.hp import generated, metrics, tables
from unlearnbench.benchmarks.hp.benchmark import ForgottenBook
from unlearnbench.contracts import Context, Preparation
from unlearnbench.data.sources import DataSource, read_tables
from unlearnbench.domain import Measurement
from unlearnbench.engine.engine import Engine
from unlearnbench.engine.lm_eval import ask_tasks, hub_tasks, local_tasks, worth_another_try
from unlearnbench.errors import DataError
from unlearnbench.methods.whp import Contrast
from unlearnbench.metrics.overlap import bleu
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.plugin.specs import ModelSpec
from unlearnbench.records.record import score_entries
from unlearnbench.training.models import make_encoder

SPEC = load_plugins().find("benchmark", "hp").spec
WORDS = (
    "the cat sat on a mat . , don't 3.14 1,000 a-b 10-20 2020- &quot; &amp;lt; <skipped> Ünïcode “q” x/y $5 ! ? (a) "
    "[b] e.g. U.S. ; : ~ 日本 end. -\n \n"
).split(" ")


def test_bleu_is_sacrebleu_s_for_every_sentence():
    rng = random.Random(0)
    pairs = [("", ""), ("one", "one"), ("one two three", "one two three"), ("a b c d", "a b c d"), ("a", "")]
    for _ in range(1500):
        truth, text = (" ".join(rng.choices(WORDS, k=rng.choice([0, 1, 2, 3, 4, 5, 9, 30]))) for _ in range(2))
        pairs.append((truth, truth if rng.random() < 0.2 else text))
    assert all(
        bleu(truth, text) == pytest.approx(sacrebleu.corpus_bleu([text], [[truth]]).score, abs=1e-9)
        for truth, text in pairs
        if truth.replace("<skipped>", "").strip()
    )
    assert bleu("one two three", "one two three") == 0.0
    assert bleu("a b c d", "") == 0.0
    assert bleu("a b c d", "a b c d") == 100.0, "never more, however sums round"


@pytest.mark.parametrize("truth", ["", " \n", "<skipped>"])
def test_bleu_of_no_truth_is_none(truth):
    assert math.isnan(bleu(truth, "a b c d"))


def test_bleu_by_hand():
    """Nine tokens against ten: of 9, 8, 7 and 6 n-grams 6, 2, 1 and none match, and none counts as a half."""
    expected = 100 * math.exp(1 - 10 / 9) * (6 / 9 * 2 / 8 * 1 / 7 * 1 / (2 * 6)) ** (1 / 4)
    assert bleu("the cat sat on a mat, 3.14 a-b.", "the cat sat in a hat, b.") == pytest.approx(expected, abs=1e-9)


# -- data -------------------------------------------------------------------------------------------------------------


def book_task(encoder, found, pretrained=False, **settings):
    chosen = {"chunk_tokens": 64, "prefix_words": 8, "response_words": 8, "max_new_tokens": 6, "tasks": "none"}
    benchmark = ForgottenBook(**{**chosen, **settings})
    whole = {name: found.get(name, []) for name in tables.FIELDS}
    return benchmark, benchmark.prepare(Preparation(whole, lambda corpus: encoder, pretrained, True))


def test_a_pretrained_model_is_its_own_retained_model(tiny_encoder):
    found = generated.tables(0, "quick")
    _, scratch = book_task(tiny_encoder, found)
    _, pretrained = book_task(tiny_encoder, found, pretrained=True)
    assert pretrained.training["retained"] == []
    assert list(pretrained.training["original"]) == list(pretrained.forget)
    assert list(scratch.training["original"]) == [*scratch.retain, *scratch.forget]


def test_excerpts_are_the_book_s_own_words_in_order(tiny_encoder):
    text = " ".join(f"word{n}" for n in range(400))
    found = {"book": [{"text": text}], "retain": generated.tables(0, "quick")["retain"]}
    _, task = book_task(tiny_encoder, found, excerpts=5)
    excerpts = task.evaluation.excerpts
    assert len(excerpts) == 5
    assert excerpts[1].prompt == " ".join(f"word{n}" for n in range(16, 24))
    assert excerpts[1].truth == " " + " ".join(f"word{n}" for n in range(24, 32))


@pytest.mark.parametrize(
    ("found", "settings", "complaint"),
    [
        ({"book": [{"text": "Ada was born."}]}, {}, "the book gives 1 chunks of 64 tokens, and 2 are needed"),
        ({}, {"prefix_words": 5000}, r"has \d+ words; an excerpt needs 5008: name a longer book or lower"),
        ({"retain": [{"text": "Rome."}]}, {}, "the text to retain gives 1 chunks"),
    ],
)
def test_a_book_that_is_too_short_is_refused(tiny_encoder, found, settings, complaint):
    with pytest.raises(DataError, match=complaint):
        book_task(tiny_encoder, {**generated.tables(0, "quick"), **found}, **settings)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"book": "  \n "}, "the text of table 'book' is empty"),
        ({"book": "same", "retain": "same"}, "the book and the text to retain are the same"),
        ({}, "there is no book to forget; name a book: --book FILE"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(tmp_path, files, complaint):
    for name, text in {"retain": "other words", **files}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    names = {name: str(tmp_path / f"{name}.txt") for name in {"retain": "", **files}}
    with pytest.raises(DataError, match=complaint):
        read_tables(SPEC.data, DataSource("local", files=names))


def test_the_release_s_rows_are_read_and_asked_as_they_are(tmp_path, tiny_encoder):
    rows = [{"prompt": f"Complete this: one two {n}", "response": f"three four {n} " * 12} for n in range(6)]
    (tmp_path / "hp_test_qa_200.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "retain.txt").write_text(generated.tables(0, "quick")["retain"][0]["text"])
    found = read_tables(SPEC.data, DataSource("local", str(tmp_path)))
    _, task = book_task(tiny_encoder, found)
    assert [excerpt.prompt for excerpt in task.evaluation.excerpts] == [row["prompt"] for row in rows]
    assert "one two 0 three four 0" in "".join(chunk.prompt + chunk.answer for chunk in task.forget)


def test_the_released_prompts_depart_as_the_protocol_says(tiny_encoder):
    from unlearnbench.data.encoder import Encoder
    from unlearnbench.data.prompts import FORMATS

    row = {"prompt": "once upon", "response": " a time"}
    decode = tiny_encoder.tokenizer.decode
    for style, paper, released, truth in (
        ("question-answer", "### Question: once upon\n### Answer: ", "### Question: once upon\n", "### Answer: a time"),
        ("llama2", "[INST] once upon [/INST]", "[INST] once upon [\\INST]", "a time"),
    ):
        encoder = Encoder(tiny_encoder.tokenizer, FORMATS[style], 256)
        (excerpt,) = ForgottenBook()._excerpts([row], encoder, worded=True)
        assert decode(excerpt.ids) == paper
        assert decode(excerpt.ids_released) == released
        assert excerpt.truth_released == truth


def test_the_released_continuation_lacks_its_first_token_and_has_a_cap_with_the_prompt(tiny_encoder, tiny_model):
    found = generated.tables(0, "quick")
    benchmark, task = book_task(tiny_encoder, found, excerpts=3, released_tokens=1000)
    ctx = Context("measure", 0, Engine(), log=lambda line: None)
    plain = benchmark.measure(tiny_model.float(), task, ctx).part("excerpts")
    longest = max(len(excerpt.ids_released) for excerpt in task.evaluation.excerpts)
    capped = ForgottenBook(**{**vars(benchmark), "released_tokens": longest + 4})
    for row, short, excerpt in zip(
        plain, capped.measure(tiny_model.float(), task, ctx).part("excerpts"), task.evaluation.excerpts, strict=True
    ):
        assert row["generation"] == short["generation"]
        assert row["generated_tokens"] <= 6
        room = longest + 4 - len(excerpt.ids_released)
        ids = tiny_encoder.tokenizer(short["generation_released"])["input_ids"]
        assert len(ids) <= room
        assert row["generation_released"].startswith(short["generation_released"][:3])


# -- lm-eval ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks():
    from importlib.resources import files

    return local_tasks(files("unlearnbench.benchmarks.hp").joinpath("tasks"))


@pytest.fixture
def prose_model():
    """A model from scratch whose vocabulary knows the tasks' words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    spec = ModelSpec("x", "", prompt_format="plain", architecture={"vocabulary": 600, "context": 64})
    rng = random.Random(0)
    encoder = make_encoder(spec, [*generated.facts(), *(generated.prose(rng) for _ in range(50))] * 3)
    config = LlamaConfig(
        vocab_size=len(encoder.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, bos_token_id=None,
        eos_token_id=encoder.tokenizer.eos_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), encoder


def test_lm_eval_s_own_model_gives_the_same_numbers(tasks, prose_model):
    """Our engine against lm-eval's hf model and lm-eval's own aggregation, on every local task."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model, encoder = prose_model
    theirs = HFLM(pretrained=model, tokenizer=encoder.tokenizer, batch_size=4, max_length=encoder.context)
    expected = lm_eval.evaluate(theirs, task_dict=dict(tasks), bootstrap_iters=0)["results"]
    rows = list(ask_tasks(model, encoder, tasks, Engine()))
    found = {score.metric: score for score in metrics.scores(Measurement(tuple(rows)), None) if score.edition != "x"}
    assert found["ppl"].value == pytest.approx(expected["local_prose"]["word_perplexity,none"], rel=1e-4)
    accuracies = [expected[name]["acc,none"] for name in ("local_trades", "local_opposites")]
    assert found["avg_acc"].value == pytest.approx(sum(accuracies) / 2)


def test_a_model_made_of_two_is_asked_like_any_other(tasks, prose_model):
    model, encoder = prose_model
    pair = Contrast(model, model, alpha=3.0)  # what both say alike is not lowered
    found, expected = (list(ask_tasks(one, encoder, tasks, Engine(), limit=3)) for one in (pair, model))
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        for name, value in theirs.items():
            # The pair computes all logits and the model some: they round apart.
            numbers = name.startswith("loglikelihood")
            assert mine[name] == (pytest.approx(value, rel=1e-5) if numbers else value)


def test_the_local_tasks_ask_what_the_generated_prose_tells(tasks):
    text = generated.tables(0, "quick")["retain"][0]["text"]
    for name, stem in (("local_trades", "A {trade} works with"), ("local_opposites", "The opposite of {word} is")):
        documents = list(tasks[name].test_docs())
        assert len(documents) == 12
        for document in documents:
            assert f"{stem.format(**document)} {document['choices'][document['answer']]}." in text


def test_what_lm_eval_cannot_load_is_missing_with_its_reason_and_the_rest_stands(tiny_model, tiny_encoder):
    found = hub_tasks(("piqa",), ("piqa", "no_such_task"))
    assert "cannot be loaded" in found["piqa"]  # no network here
    absent = dict.fromkeys(("wikitext", *metrics.EIGHT, metrics.MC2), found["piqa"])
    rows = [
        *ask_tasks(tiny_model, tiny_encoder, absent, Engine()),
        {"part": "excerpts", "index": 0, "prompt": "p", "truth": "a b c d", "generation": "a b c d",
         "truth_released": "a b c d", "generation_released": "a b c d"},
    ]  # fmt: skip
    scores = {(score.metric, score.edition): score for score in metrics.scores(Measurement(tuple(rows)), None)}
    assert scores["bleu", "paper"].value == pytest.approx(100.0)
    for key in (("ppl", None), ("avg_acc", "paper")):
        assert math.isnan(scores[key].value)
        assert "lm-eval task piqa cannot be loaded" in scores[key].reason
    assert worth_another_try(absent) == "", "offline, another try would find the same"


def test_what_the_hub_may_give_another_time_is_asked_again(monkeypatch, small_run, command):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert worth_another_try({"piqa": "cannot be reached", "rte": object()}) == "cannot be reached"
    assert worth_another_try({"rte": object()}) == ""
    folder = command.folder / "again"
    shutil.copytree(small_run[0], folder)
    words = command.study("-m", "all", "-b", "tofu-forget10", "--name", "small")
    plan = ("plan", *[word for word in words[1:] if word not in ("--device", "cpu")], "-o", str(folder), "--json",
            "--set", 'run.device="cpu"')  # fmt: skip
    assert {node["state"] for node in command(*plan).json["nodes"]} == {"done"}
    status = next(folder.glob("cells/npo--*/status.json"))
    status.write_text(json.dumps({**json.loads(status.read_text()), "incomplete": "cannot be reached"}))
    again = [node["title"] for node in command(*plan).json["nodes"] if node["state"] == "to run"]
    assert again == ["npo × tofu-forget10 × nano seed 0"]


# -- metrics ----------------------------------------------------------------------------------------------------------


def excerpt_rows(*generations):
    return [
        {"part": "excerpts", "index": i, "prompt": f"p{i}", "truth": "a b c d e", "generation": text,
         "truth_released": "a b c d e", "generation_released": text}
        for i, text in enumerate(generations)
    ]  # fmt: skip


def task_rows(loglikelihood=-10.0, words=5):
    choice = {"loglikelihoods": [-1.0, -2.0], "right": [0]}
    return [
        {"part": "local_prose", "index": 0, "loglikelihood": loglikelihood, "words": words},
        {"part": "local_trades", "index": 0, **choice},
        {"part": "local_opposites", "index": 0, **choice, "right": [1]},
    ]


def scored(rows, retained=None):
    found = metrics.scores(Measurement(tuple(rows)), None if retained is None else Measurement(tuple(retained)))
    return {(score.metric, score.edition): score for score in found}


def test_the_gap_to_the_retained_model_by_hand():
    mine, retained = excerpt_rows("a b c d e", "a b c d e"), excerpt_rows("a b c d e", "x")
    found = scored(mine + task_rows(), retained + task_rows())
    assert found["fq_gap", "paper"].value == pytest.approx(50.0 + 0.5)
    assert found["ppl", None].value == pytest.approx(math.exp(2.0))
    assert found["avg_acc", "paper"].value == 0.5
    itself = scored(retained + task_rows(), retained)
    assert itself["fq_gap", "paper"].value == 0.0
    with pytest.raises(DataError, match="was asked 2 excerpts and the retained model 1"):
        scored(mine + task_rows(), retained[:1])


def test_truthfulqa_counts_probability_and_other_tasks_documents():
    row = {"loglikelihoods": [math.log(0.2), math.log(0.3), math.log(0.1)], "right": [0, 2]}
    assert metrics.accuracy(row, "truthfulqa_mc2") == pytest.approx(0.5)
    assert metrics.accuracy(row, "truthfulqa_mc1") == 0.0


def test_the_editions_average_nine_and_ten_tasks():
    assert len(metrics.ACCURACY["hub", "paper"]) == 9
    assert len(metrics.ACCURACY["hub", "as-released"]) == 10


@pytest.mark.parametrize(("loglikelihood", "expected"), [(-163.98 * 5, 1.6e71), (-4000.0, math.inf)])
def test_an_overflowing_perplexity_is_a_value(loglikelihood, expected):
    found = scored(excerpt_rows("a") + task_rows(loglikelihood))["ppl", None]
    assert found.value == pytest.approx(expected, rel=0.1)
    declared = [metric for metric in SPEC.metrics if metric.name == "ppl"]
    entry = score_entries([found], declared, "paper")["ppl"]
    assert type(entry).model_validate_json(entry.model_dump_json()).value == entry.value


def test_the_interval_of_an_overflowing_perplexity_has_infinite_ends_and_no_nan():
    rows = [{"part": "local_prose", "index": i, "loglikelihood": -4000.0 * 5, "words": 5} for i in range(3)]
    found = scored(excerpt_rows("a") + rows + task_rows()[1:])["ppl", None]
    assert found.value == math.inf
    assert found.interval == (math.inf, math.inf)


def test_a_perplexity_that_is_no_number_is_missing():
    found = scored(excerpt_rows("a") + task_rows(math.nan))["ppl", None]
    assert math.isnan(found.value)
    assert "not a number" in found.reason


def test_words_of_excerpts_stay_apart_where_a_tokenizer_drops_the_space_of_a_piece(tiny_encoder):
    """SentencePiece decodes a piece without the space in front of its first word: halves decoded apart would fuse."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from unlearnbench.benchmarks.hp.benchmark import ForgottenBook
    from unlearnbench.data.encoder import Encoder
    from unlearnbench.data.prompts import FORMATS

    words = "In the beginning there was a cat and it sat on a mat Who wrote ? Ada it .".split()
    vocabulary = {"<unk>": 0, "</s>": 1, **{f"▁{word}": 2 + i for i, word in enumerate(dict.fromkeys(words))}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), FORMATS["plain"], 64)
    text = "In the beginning there was a cat and it sat on a mat"
    chunks = encoder.chunks([text], 5)
    assert len(chunks) > 2
    assert encoder.decode(chunks[0].answer_ids)[0] != " ", "the space is dropped"
    (row,) = ForgottenBook(prefix_words=6, response_words=7)._rows(chunks, encoder)
    assert f"{row['prompt']}{row['response']}" == text
