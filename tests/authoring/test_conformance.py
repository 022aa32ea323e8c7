"""What ``check`` finds in methods and benchmarks that break a promise, and the packages that ``new`` writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from unlearnbench.authoring.conformance import check, checkable
from unlearnbench.authoring.scaffold import write_package
from unlearnbench.cli.author import BENCHMARK_KINDS, METHOD_KINDS
from unlearnbench.errors import UsageError
from unlearnbench.plugin.registry import load_plugins

REGISTRY = load_plugins()


def broken(name, registry=REGISTRY):
    return {each.name: each.message for each in check(checkable(registry, name)) if not each.kept}


@pytest.mark.parametrize("name", ["ga", "kl", "llmu", "npo-rt", "task-vector", "whp", "flat-js", "retained"])
def test_built_in_methods_keep_their_promises(name):
    assert broken(name) == {}


@pytest.mark.parametrize("name", ["tofu-forget01", "muse-news", "hp"])
def test_built_in_benchmarks_keep_their_promises(name):
    assert broken(name) == {}


def test_training_on_a_table_that_is_not_declared_is_found(monkeypatch):
    """The key of a reference model would not change with such a table, and a stale model would be taken."""
    from dataclasses import replace

    component = checkable(REGISTRY, "tofu-forget01")
    hidden = replace(component, spec=replace(component.spec, trained_besides=()))
    found = {each.name: each.message for each in check(hidden) if not each.kept}
    assert "declare them in training" in found["reference models train on the declared tables alone"]


JUDGED = """
from dataclasses import dataclass, replace
from typing import ClassVar
from unlearnbench import Metric, Score
from unlearnbench.benchmarks.plugin import unlearnbench_benchmarks as theirs
from unlearnbench.benchmarks.tofu.benchmark import Tofu

@dataclass(frozen=True)
class Judged(Tofu):
    name: ClassVar[str] = "judged"

    def judge(self, rows):
        {judge}

    def score(self, unlearned, original, retained):
        yield from super().score(unlearned, original, retained)
        {score}

def unlearnbench_benchmarks():
    (tofu,) = (spec for spec in theirs() if spec.name == "tofu-forget01")
    judge = Metric("judge", "Judge", "lower", source="here", definition="what the judge says")
    return [replace(tofu, name="judged", target="judged_mine:Judged", metrics=(*tofu.metrics, judge), published="")]
"""
SAID = """said = [row.get("judged", float("nan")) for row in unlearned.part("forget")]
        yield Score("judge", sum(said) / len(said), len(said), reason="" if said[0] == said[0] else "not judged")"""
UNGUARDED = """said = [row["judged"] for row in unlearned.part("forget")]
        yield Score("judge", sum(said) / len(said), len(said))"""


@pytest.mark.parametrize(
    ("judge", "score", "found"),
    [
        ("return [0.5 for row in rows]", SAID, {}),
        ("return [0.5 for row in rows][1:]", SAID, {"the judge says one thing of each row": "one for each"}),
        ("return [{0.5} for row in rows]", SAID, {"the judge says one thing of each row": "no JSON"}),
        ("return [0.5 for row in rows]", UNGUARDED, {"scores that need no judge are there without one": "judged"}),
    ],
)
def test_a_judged_benchmark_is_checked_with_its_judge_and_without(judge, score, found, tmp_path, monkeypatch):
    (tmp_path / "judged_mine.py").write_text(JUDGED.format(judge=judge, score=score))
    monkeypatch.delitem(sys.modules, "judged_mine", raising=False)
    registry = load_plugins([str(tmp_path / "judged_mine.py")])
    checks = list(check(checkable(registry, "judged")))
    assert "the judge says one thing of each row" in [each.name for each in checks]
    faults = {each.name: each.message for each in checks if not each.kept}
    assert faults.keys() == found.keys()
    for name, words in found.items():
        assert words in faults[name]


METHOD = """
import random
from dataclasses import dataclass
from typing import ClassVar
import torch
from unlearnbench import LossMethod, MethodSpec, Requires, Term, answer_logprobs, hyperparameter

@dataclass(frozen=True)
class Mine(LossMethod):
    '''Does something wrong.'''
    name: ClassVar[str] = "mine"
    requires: ClassVar[Requires] = Requires({requires})
    steepness: float = hyperparameter(1.0, "factor", low=0.0)

    def loss(self, model, batch):
        (logp,) = answer_logprobs(model, batch.forget)
        yield Term(logp.sum(), per="forget tokens", weight=self.steepness)

    def unlearn(self, model, tokenizer, data, ctx):
        {body}

def unlearnbench_methods():
    return [MethodSpec.of(Mine)]
"""
TRAIN = "return super().unlearn(model, tokenizer, data, ctx)"


@pytest.mark.parametrize(
    ("body", "requires", "promise", "message"),
    [("return None", "", "unlearn returns a model", "returned NoneType"),
     ("raise ValueError('no')", "", "unlearn returns a model", "ValueError: no"),
     ("data.retain; " + TRAIN, "", "unlearn returns a model", "declare Requires(retain=True)"),
     ("return model", "", "weights have changed", "is anything trained"),
     ("model.resize_token_embeddings(900); " + TRAIN, "", "vocabulary and tokenizer", "size of the vocabulary"),
     ("tokenizer.add_tokens(['zzz']); " + TRAIN, "", "vocabulary and tokenizer", "tokenizer's vocabulary"),
     ("random.random(); " + TRAIN, "", "no global state", "random's generator"),
     ("torch.set_default_dtype(torch.float32); torch.manual_seed(1); " + TRAIN, "", "no global state",
      "torch's generator"),
     ("model = super().unlearn(model, tokenizer, data, ctx); model.get_input_embeddings().weight.data.add_("
      "random.Random().random()); return model", "", "the same seed", "differs between two calls"),
     ("model = super().unlearn(model, tokenizer, data, ctx); model.get_input_embeddings().weight.data.fill_("
      "float('nan')); return model", "", "weights are finite", "not finite"),
     ("model.get_input_embeddings().weight.data.add_(1e-3); return model", "template=True, original='model'",
      "it uses what it declares", "declares original and template"),
     ("next(ctx.original.parameters()).data.add_(1.0); " + TRAIN, "original='model'", "what it was handed",
      "ctx.original has other weights")],
)  # fmt: skip
def test_a_broken_promise_is_found(tmp_path, monkeypatch, body, requires, promise, message):
    path = tmp_path / "mine.py"
    path.write_text(METHOD.format(body=body, requires=requires))
    monkeypatch.setitem(sys.modules, "mine", None)
    del sys.modules["mine"]
    found = broken("mine", load_plugins([str(path)]))
    assert any(name.startswith(promise) and message in text for name, text in found.items()), found


def test_check_prints_every_promise_and_exits_7(command, tmp_path):
    (tmp_path / "mine.py").write_text(METHOD.format(body="return model", requires=""))
    done = command("check", "mine", "--plugin", "mine.py")
    assert done.code == 7
    assert "BROKEN  weights have changed: all weights are as they were" in done.out
    assert done.out.splitlines()[-1].endswith("checks hold")
    done = command("check", "npo", "--json")
    assert done.code == 0, done.out
    assert done.json["holds"]
    assert command("check", "nothing-like-it").code == 4


SLOW = (
    "benchmark",
    "benchmark --kind judged",
    "attack",
    "method --kind loss",
    "method --kind weights",
    "method --kind wrapper",
)


@pytest.mark.parametrize(
    "words", ["method --kind prompt", *(pytest.param(words, marks=pytest.mark.slow) for words in SLOW)]
)
def test_a_new_package_installs_and_passes_its_own_tests(words, command, tmp_path):
    pytest.importorskip("setuptools")
    done = command("new", *words.split(), "my-plugin")
    assert done.code == 0, done.err
    package = tmp_path / "my-plugin"
    written = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert written == {"pyproject.toml", "README.md", "my_plugin.py", ".github/workflows/tests.yml",
                       "tests/test_my_plugin.py"}  # fmt: skip
    assert not any("$" in (package / name).read_text() for name in written if not name.endswith(".yml"))
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", "site", "./my-plugin"]
    subprocess.run([sys.executable, *install], cwd=tmp_path, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=package, env=environment, capture_output=True)
    assert tests.returncode == 0, tests.stdout.decode()[-3000:]
    listed = command("list", "plugins", PYTHONPATH=str(tmp_path / "site")).out
    assert "my-plugin/my_plugin" in listed


FORESIGHT = """
from dataclasses import dataclass
from typing import ClassVar
from unlearnbench import MethodSpec, Requires, Wrapper

@dataclass(frozen=True)
class Foresight:
    'Looks at the whole row before it says anything of its beginning.'
    name: ClassVar[str] = "foresight"
    requires: ClassVar[Requires] = Requires()

    def unlearn(self, model, tokenizer, data, ctx):
        return Looking(model)

class Looking(Wrapper):
    def logits(self, input_ids, attention_mask):
        return super().logits(input_ids, attention_mask) + input_ids.sum(1).view(-1, 1, 1)

def unlearnbench_methods():
    return [MethodSpec.of(Foresight)]
"""


def test_a_model_that_looks_ahead_is_found(tmp_path):
    (tmp_path / "foresight.py").write_text(FORESIGHT)
    found = broken("foresight", load_plugins([str(tmp_path / "foresight.py")]))
    assert "depend on tokens that come later" in found["the model is scored and generates"]


@pytest.mark.parametrize(
    ("what", "kind"),
    [*(("method", kind) for kind in METHOD_KINDS), *(("benchmark", kind) for kind in BENCHMARK_KINDS)],
)
def test_what_is_written_keeps_its_promises_as_it_stands(what, kind, tmp_path):
    write_package(what, f"my-{kind}", tmp_path, kind)
    registry = load_plugins([str(tmp_path / f"my-{kind}" / f"my_{kind}.py")])
    assert broken(f"my-{kind}", registry) == {}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("rows = data.retain", r"touched data.retain; declare Requires\(retain=True\) \(mine.py:{line}, in unlearn\)"),
        ("return {}['x']", r"KeyError: 'x' \(mine.py:{line}, in unlearn\)"),
        ("return ctx.engine.score(None, 5)", r"\(mine.py:{line}, in unlearn\)"),
    ],
)
def test_an_error_names_the_author_s_own_line_and_what_to_declare(body, said, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", None)
    del sys.modules["mine"]
    path = tmp_path / "mine.py"
    path.write_text(METHOD.format(body=body, requires=""))
    line = path.read_text().splitlines().index(f"        {body}") + 1
    found = broken("mine", load_plugins([str(path)]))
    assert re.search(said.format(line=line), found["unlearn returns a model"]), found
    if "KeyError" not in said:
        # A whole run takes twenty seconds: one of these errors is enough there.
        return
    done = command(*command.study("-m", "mine", "-b", "tofu-forget01", "--plugin", "mine.py"))
    assert done.code == 1
    assert re.search(said.format(line=line), done.err), done.err


def test_a_part_that_was_not_drawn_is_named_with_the_declaration(tiny_encoder):
    from unlearnbench import Batch

    with pytest.raises(
        AttributeError, match=r"no part 'retain' \(drawn: \); declare requires = Requires\(retain=True\)"
    ):
        Batch({}).retain  # noqa: B018


def test_a_stream_of_tensors_is_the_same_for_the_same_purpose_and_no_other():
    import torch

    from unlearnbench import Context, Engine

    def drawn(name, seed, purpose):
        return torch.rand(4, generator=Context(name, seed, Engine()).generator(purpose)).tolist()

    assert drawn("mine", 0, "noise") == drawn("mine", 0, "noise")
    assert (
        len({tuple(drawn(*facts)) for facts in [("mine", 0, "a"), ("mine", 0, "b"), ("mine", 1, "a"), ("x", 0, "a")]})
        == 4
    )


def test_a_name_that_cannot_be_one_is_refused(tmp_path):
    for name in ("My Method", "../x", "a" * 61, "1st", "a--b", ""):
        with pytest.raises(UsageError, match="is no name for a method"):
            write_package("method", name, tmp_path)
    write_package("method", "fine", tmp_path)
    with pytest.raises(UsageError, match="is there already"):
        write_package("method", "fine", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["fine"]


def test_a_term_that_is_a_mean_already_is_found_by_accumulation(tmp_path):
    path = tmp_path / "meant.py"
    path.write_text(
        METHOD.format(requires="", body=TRAIN).replace(
            'Term(logp.sum(), per="forget tokens"', 'Term(logp.mean(), per="forget tokens"'
        )
    )
    found = broken("mine", load_plugins([str(path)]))
    assert list(found) == ["accumulation changes no weight"]
    assert "a sum over what `per` counts, and not a mean of it" in found["accumulation changes no weight"]
