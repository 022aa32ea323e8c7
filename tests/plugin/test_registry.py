"""Plugins through real distribution metadata: what loads, what does not, and who is told."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest

from unlearnbench.errors import PluginError, UnknownName, UsageError
from unlearnbench.plugin.registry import load_plugins

METHOD = """
from dataclasses import dataclass
from typing import ClassVar
from unlearnbench import LossMethod, MethodSpec, Term, answer_logprobs, hyperparameter

@dataclass(frozen=True)
class Halfway(LossMethod):
    '''Half as steep as gradient ascent.'''
    name: ClassVar[str] = "halfway"
    steepness: float = hyperparameter(0.5, "factor of the ascent", low=0.0, high=1.0)

    def loss(self, model, batch):
        (logp,) = answer_logprobs(model, batch.forget)
        yield Term(logp.sum(), per="forget tokens", weight=self.steepness)

def unlearnbench_methods():
    return [MethodSpec.of(Halfway, citation="nobody 2026")]
"""
BENCHMARK = """
from dataclasses import dataclass
from unlearnbench import (BenchmarkSpec, DataSpec, Example, Measurement, Metric, Score, Task)

METRIC = Metric("forget_loss", "Loss", "higher", "this test", "mean loss of the forget answers", headline=True)
ROWS = [("What is %d?" % n, "It is %d." % (n * 7)) for n in range(8)]

def tables(seed, scale):
    rows = [{"question": q, "answer": a} for q, a in ROWS]
    return {"full": rows, "kept": rows[:6]}

@dataclass(frozen=True)
class Sevens:
    name = "sevens"

    def prepare(self, ctx):
        rows = [Example(i, r["question"], r["answer"]) for i, r in enumerate(ctx.tables["full"])]
        encoder = ctx.encoder([r.prompt + r.answer for r in rows])
        return Task(encoder, {"original": rows, "retained": rows[:6]}, rows[6:], rows[:6], rows)

    def measure(self, model, task, ctx):
        found = ctx.engine.score(model, task.encoder.encode(task.evaluation))
        return Measurement(tuple({"part": "forget" if r.index > 5 else "retain", "index": r.index, "prompt": r.prompt,
                                  "truth": r.answer, "generation": "", "loss": v.loss}
                                 for r, v in zip(task.evaluation, found)))

    def score(self, unlearned, original, retained):
        values = [float(row["loss"]) for row in unlearned.part("forget")]
        yield Score("forget_loss", sum(values) / len(values), len(values), tuple(values))

def unlearnbench_benchmarks():
    data = DataSpec({"full": ("question", "answer"), "kept": ("question", "answer")}, generator="sevens_bench:tables")
    return [BenchmarkSpec("sevens", "sevens_bench:Sevens", "multiples of seven", (METRIC,), data=data,
                          training={"original": "full", "retained": "kept"})]
"""


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Makes installed distributions: a module and a dist-info folder with its entry point."""
    site = tmp_path / "site"
    site.mkdir()
    made = []

    def make(dist, module, source, entry="plugin", version="1.2"):
        info = site / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[unlearnbench]\n{entry} = {module}\n")
        (site / f"{module}.py").write_text(source)
        made.append(module)
        return site

    monkeypatch.syspath_prepend(str(site))
    yield make
    for module in made:
        sys.modules.pop(module, None)
    importlib.invalidate_caches()


def plugin_of(registry, dist):
    return next(plugin for plugin in registry.plugins if plugin.dist == dist)


def test_the_built_ins_come_in_as_entry_points():
    registry = load_plugins()
    assert {plugin.name for plugin in registry.plugins} >= {"methods", "benchmarks", "builtin", "leaderboard"}
    assert registry.broken == []
    assert registry.find("method", "npo").plugin.dist == "unlearnbench"


@pytest.mark.slow
def test_two_strangers_run_a_cell_together(distribution, command):
    site = distribution("halfway-method", "halfway_method", METHOD)
    distribution("sevens-bench", "sevens_bench", BENCHMARK)
    done = command(
        "run", "-m", "halfway", "-b", "sevens-bench/sevens", "--model", "nano", "--plugin", str(command.nano),
        "--data", "generated", "--name", "strangers", "--json",
        PYTHONPATH=str(site),
    )  # fmt: skip
    assert done.code == 0, done.err
    records = {record["identity"]["method"]: record for record in done.json["records"]}
    assert set(records) == {"original", "retained", "halfway"}
    halfway = records["halfway"]
    assert halfway["scores"]["forget_loss"]["value"] > records["original"]["scores"]["forget_loss"]["value"]
    assert halfway["identity"]["hyperparameters"]["steepness"] == 0.5
    assert halfway["provenance"]["plugins"]["method"] | {"offers": []} == {
        "name": "plugin", "dist": "halfway-method", "version": "1.2", "source": "halfway_method", "error": "",
        "offers": [],
    }  # fmt: skip
    assert halfway["provenance"]["plugins"]["benchmark"]["dist"] == "sevens-bench"


def test_two_distributions_may_use_the_same_entry_point_name(distribution):
    distribution("halfway-method", "halfway_method", METHOD)
    distribution("sevens-bench", "sevens_bench", BENCHMARK)
    registry = load_plugins()
    assert registry.broken == []
    assert registry.find("method", "halfway").qualified == "halfway-method/halfway"
    assert registry.find("benchmark", "sevens").qualified == "sevens-bench/sevens"


def test_a_name_offered_twice_must_be_qualified(distribution):
    distribution("rival", "rival_npo", METHOD.replace('"halfway"', '"npo"'))
    registry = load_plugins()
    assert registry.conflicts() == {"method npo": ["rival/npo", "unlearnbench/npo"]}
    with pytest.raises(UsageError, match=r"write rival/npo or unlearnbench/npo"):
        registry.find("method", "npo")
    assert registry.find("method", "rival/npo").plugin.dist == "rival"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import a_package_that_is_not_there\n", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def unlearnbench_method():\n    return []\n", "did you mean 'unlearnbench_methods'"),
        ("def unlearnbench_methods(wrong):\n    return []\n", "wrong"),
        ("def unlearnbench_methods():\n    return 3\n", "returned int, expected a list"),
        ("def unlearnbench_methods():\n    return ['npo']\n", "returned str, expected MethodSpec"),
        (
            "from unlearnbench import MethodSpec\n"
            "def unlearnbench_methods():\n    return [MethodSpec('x', 'm:X', '', api_version=99)]\n",
            "needs plugin API 99; this unlearnbench offers 1",
        ),
        (
            "from unlearnbench import MethodSpec, Requires\n"
            "def unlearnbench_methods():\n    return [MethodSpec('x', 'm:X', '', Requires(start='retained'))]\n",
            "starts from the retained model, which only a reference may do",
        ),
    ],
    ids=["import", "raises", "misspelled", "signature", "not-a-list", "not-a-spec", "api-version", "retained"],
)
def test_a_broken_plugin_is_named_and_harms_nobody(distribution, source, complaint):
    distribution("broken-one", "broken_one", source)
    registry = load_plugins()
    assert complaint in plugin_of(registry, "broken-one").error
    assert registry.find("method", "npo")


def test_a_name_that_a_broken_plugin_may_have_offered_says_so(distribution):
    distribution("broken-one", "broken_one", "import nothing_there\n")
    registry = load_plugins()
    with pytest.raises(PluginError, match="does not load, so method 'broken-one/x' is missing"):
        registry.find("method", "broken-one/x")
    with pytest.raises(UnknownName, match=r"unknown method 'x'.*broken-one.*did not load"):
        registry.find("method", "x")


def test_a_broken_plugin_is_a_warning_unless_the_study_asks_for_it(distribution, command):
    site = distribution("broken-one", "broken_one", "import nothing_there\n")
    listed = command("list", "methods", PYTHONPATH=str(site))
    assert listed.code == 0
    assert "warning: plugin plugin (broken-one) did not load" in listed.err
    shown = command("list", "plugins", "--json", PYTHONPATH=str(site))
    status = {plugin["dist"]: plugin["status"] for plugin in shown.json["plugins"]}
    assert "nothing_there" in status["broken-one"]
    assert status["unlearnbench"] == "ok"
    study = ("-b", "tofu-forget05", "--name", "x")
    asked = command(*command.study("-m", "broken-one/x", *study), PYTHONPATH=str(site))
    strict = command(*command.study("-m", "ga", *study, "--strict-plugins"), PYTHONPATH=str(site))
    assert (asked.code, strict.code) == (4, 4)


def test_a_plugin_file_works_and_a_broken_one_is_refused(tmp_path, command):
    good, bad = tmp_path / "my_halfway.py", tmp_path / "my_broken.py"
    good.write_text(METHOD)
    bad.write_text("import nothing_there\n")
    shown = command("show", "halfway", "--plugin", str(good), "--json")
    assert shown.json["parameters"][-1] == {
        "name": "steepness", "type": "float", "default": 0.5, "range": "at least 0 and at most 1",
        "summary": "factor of the ascent",
    }  # fmt: skip
    assert shown.json["plugin"]["source"] == str(good)
    refused = command("list", "methods", "--plugin", str(bad))
    assert refused.code == 4
    assert "does not load" in refused.err
    assert command("list", "methods", "--plugin", str(tmp_path / "no.py")).code == 4


def test_an_observer_that_raises_is_logged_and_stops_nobody():
    registry = load_plugins()
    said = []

    def unlearnbench_run_started(run):
        raise RuntimeError("no")

    def unlearnbench_cell_finished(cell, status):
        said.append(cell)

    observer = SimpleNamespace(
        unlearnbench_run_started=unlearnbench_run_started, unlearnbench_cell_finished=unlearnbench_cell_finished
    )
    registry.manager.register(observer, "observer")
    lines = []
    registry.notify("unlearnbench_run_started", lines.append, run="r", cells=1)
    registry.notify("unlearnbench_cell_finished", lines.append, cell="c", status={})
    assert lines == ["plugin observer: unlearnbench_run_started raised RuntimeError: no"]
    assert said == ["c"]


@pytest.mark.parametrize("name", ["../../etc", "a/b", "x" * 500, "", ".hidden", "a b", "ünlearn"])
def test_a_name_that_cannot_be_a_file_s_is_refused_with_its_plugin(name, tmp_path):
    from unlearnbench.errors import PluginError
    from unlearnbench.plugin.registry import load_plugins

    file = tmp_path / f"named_{abs(hash(name))}.py"
    file.write_text(
        "from unlearnbench import MethodSpec\n"
        f"def unlearnbench_methods():\n    return [MethodSpec({name!r}, 'a:B', 'A method.')]\n"
    )
    with pytest.raises(PluginError, match="cannot be a name"):
        load_plugins([str(file)])


def test_observers_are_told_in_pluggys_order():
    """tryfirst first, trylast last, and of the others the one that was registered last."""
    from unlearnbench import hookimpl

    registry, order = load_plugins(), []

    def observer(name, **options):
        @hookimpl(specname="unlearnbench_run_started", **options)
        def started(run):
            order.append(name)

        registry.manager.register(SimpleNamespace(started=started, unlearnbench_run_started=None), name)

    observer("last", trylast=True)
    observer("plain")
    observer("first", tryfirst=True)
    observer("later")
    registry.notify("unlearnbench_run_started", print, run="r", cells=1)
    assert order == ["first", "later", "plain", "last"]
    expected = list(order)
    order.clear()
    registry.manager.hook.unlearnbench_run_started(run="r", cells=1)
    assert order == expected, "as pluggy itself calls them"


def test_a_function_of_another_name_offers_what_its_specname_says(tmp_path, monkeypatch):
    path = tmp_path / "renamed_plugin.py"
    path.write_text(
        "from unlearnbench import ModelSpec, hookimpl\n"
        "@hookimpl(specname='unlearnbench_models')\n"
        "def my_models():\n"
        "    return [ModelSpec('renamed', 'offered under a name of its own')]\n"
    )
    registry = load_plugins([str(path)])
    assert registry.find("model", "renamed").spec.summary == "offered under a name of its own"
    assert registry.plugins[-1].offers == ("model renamed",)


def test_wrappers_stand_around_observers_and_offers(tmp_path):
    """As pluggy's documentation has it: new-style and old-style, and what they raise is logged."""
    from unlearnbench import hookimpl

    path = tmp_path / "wrapping_plugin.py"
    path.write_text(
        "from dataclasses import replace\n"
        "from unlearnbench import ModelSpec, hookimpl\n"
        "@hookimpl(wrapper=True, specname='unlearnbench_models')\n"
        "def renamed():\n"
        "    offers = yield\n"
        "    return [[replace(spec, summary=spec.summary.upper()) for spec in specs] for specs in offers]\n"
        "@hookimpl(tryfirst=True)\n"
        "def unlearnbench_methods():\n"
        "    from unlearnbench import MethodSpec\n"
        "    return [MethodSpec('first-of-all', 'a:B', 'A method.')]\n"
    )
    registry = load_plugins([str(path)])
    tiny = registry.find("model", "tiny")
    assert tiny.spec.summary.startswith("LLAMA ARCHITECTURE")
    assert tiny.qualified == "unlearnbench/tiny", "it is still its own plugin's"
    assert registry.of_kind("method")[0].spec.name == "first-of-all"

    order, lines = [], []

    def observer(name, **options):
        @hookimpl(specname="unlearnbench_run_started", **options)
        def started(run):
            if options.get("wrapper") or options.get("hookwrapper"):
                order.append(f"before {name}")
                outcome = yield
                order.append(f"after {name}")
                if name == "broken":
                    raise RuntimeError("too late")
                return outcome

        @hookimpl(specname="unlearnbench_run_started")
        def told(run):
            order.append(f"told {name}")

        function = started if options else told
        registry.manager.register(SimpleNamespace(observe=function), name)

    observer("new", wrapper=True)
    observer("old", hookwrapper=True)
    observer("plain")
    observer("broken", wrapper=True)
    registry.notify("unlearnbench_run_started", lines.append, run="r", cells=1)
    assert order == ["before broken", "before old", "before new", "told plain", "after new", "after old",
                     "after broken"]  # fmt: skip
    assert lines == ["plugin broken: unlearnbench_run_started raised RuntimeError: too late"]
