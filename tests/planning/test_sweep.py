"""Sweeps: equally many settings of every method, from a grid or drawn, and bad input in one line."""

from __future__ import annotations

import pytest

from unlearnbench.errors import UnknownName, UsageError
from unlearnbench.planning.overrides import assigned
from unlearnbench.planning.plan import make_plan
from unlearnbench.planning.study import check_study
from unlearnbench.plugin.registry import load_plugins

REGISTRY = load_plugins()


def study(sweep=None, selection=None, **head):
    tables = {
        "study": {"methods": ["ga", "npo"], "benchmarks": ["tofu-forget05"], "models": ["tiny"], **head},
        "data": {"source": "generated", "scale": "quick"},
        "run": {"device": "cpu"},
    }
    return tables | ({"sweep": sweep} if sweep else {}) | ({"selection": selection} if selection else {})


def plan(*arguments, **head):
    return make_plan(check_study(study(*arguments, **head)), REGISTRY)


def settings(planned, method):
    return [node.id.setting for node in planned.cells if node.id.method == method]


def test_a_grid_is_every_combination_and_references_are_not_swept():
    planned = plan({"methods": {"*": {"learning_rate": [1e-4, 1e-3], "epochs": [1, 2]}}})
    assert (
        settings(planned, "ga")
        == settings(planned, "npo")
        == [
            "learning_rate=0.0001,epochs=1",
            "learning_rate=0.0001,epochs=2",
            "learning_rate=0.001,epochs=1",
            "learning_rate=0.001,epochs=2",
        ]
    )
    assert settings(planned, "original") == settings(planned, "retained") == [""]
    assert len({node.key for node in planned.nodes}) == len(planned.nodes) == 12
    ga = [node.spec.method.values for node in planned.cells if node.id.method == "ga"]
    assert [(values["learning_rate"], values["epochs"]) for values in ga] == [
        (1e-4, 1),
        (1e-4, 2),
        (1e-3, 1),
        (1e-3, 2),
    ]


def test_cells_of_a_sweep_share_their_references():
    planned = plan({"methods": {"*": {"learning_rate": [1e-4, 1e-3, 1e-2]}}})
    assert sum(node.kind == "model" for node in planned.nodes) == 2
    methods = [node.spec for node in planned.cells if not node.spec.method.reference]
    assert len({tuple(spec.references.items()) for spec in methods}) == 1


@pytest.mark.parametrize("search", ["random", "quasi-random"])
def test_a_drawn_search_gives_every_method_its_own_settings_and_always_the_same(search):
    space = {"learning_rate": {"low": 1e-5, "high": 1e-2, "scale": "log"}, "epochs": {"low": 1, "high": 9}}
    sweep = {"search": search, "settings": 8, "methods": {"*": space, "npo": {"beta": [0.1, 0.5]}}}
    planned, again = plan(sweep), plan(sweep)
    drawn = settings(planned, "ga")
    assert len(set(drawn)) == 8
    assert drawn == settings(again, "ga")
    assert drawn != settings(plan({**sweep, "seed": 1}), "ga")
    rates = sorted(node.spec.method.values["learning_rate"] for node in planned.cells if node.id.method == "ga")
    assert rates[0] >= 1e-5
    assert rates[-1] <= 1e-2
    assert sum(rate < 3e-4 for rate in rates) in (2, 3, 4, 5, 6), "half of the draws, on a log scale"
    betas = {node.spec.method.values["beta"] for node in planned.cells if node.id.method == "npo"}
    assert betas == {0.1, 0.5}


def test_a_setting_changes_the_key_of_its_cell_alone():
    before = plan({"methods": {"*": {"learning_rate": [1e-4, 1e-3]}}})
    after = plan({"methods": {"*": {"learning_rate": [1e-4, 1e-3, 1e-2]}}})
    assert {node.key for node in before.nodes} < {node.key for node in after.nodes}


SEEDS = {"reference": 3, "unlearning": 2}
THREE_RATES = {"methods": {"*": {"learning_rate": [1e-4, 1e-3, 1e-2]}}}


def test_settings_may_be_tried_in_the_first_run_alone():
    """Cells of other runs come after all of the first run's, which choose; each method's own."""
    planned = plan({**THREE_RATES, "runs": "first"}, seeds=SEEDS)
    order = [node.key for node in planned.nodes]
    for method in ("ga", "npo"):
        cells = [node for node in planned.cells if node.id.method == method]
        first = tuple(node.key for node in cells if (node.id.seed, node.id.repeat) == (0, 0))
        assert len(first) == 3
        for node in cells:
            expected = () if node.key in first else first
            assert node.spec.rivals == node.after == expected
            assert all(order.index(key) < order.index(node.key) for key in expected)
    once = plan(THREE_RATES, seeds=[0])
    assert {node.key for node in once.nodes} < set(order), "the first run's results are used again"


def test_attacks_follow_the_first_run_too_however_many_runs_there_are():
    few, many = (plan({**THREE_RATES, "runs": "first"}, seeds=seeds, attacks=["quantise"]) for seeds in ([0], SEEDS))
    assert {node.key for node in few.nodes} < {node.key for node in many.nodes}
    every = plan(THREE_RATES, seeds=SEEDS, attacks=["quantise"])
    assert {len(node.spec.rivals) for node in many.cells if node.id.attack and node.id.setting} == {3}
    assert {len(node.spec.rivals) for node in every.cells if node.id.attack and node.id.setting} == {3 * 6}


def test_rows_are_divided_in_a_sweep_and_where_asked_for():
    sweep = {"methods": {"*": {"learning_rate": [1e-4, 1e-3]}}}
    for arguments, divided in (
        ((), False),
        ((sweep,), True),
        ((sweep, {"rows": "test"}), False),
        ((None, {"rows": "validation"}), True),
    ):
        assert all((node.spec.split is not None) is divided for node in plan(*arguments).cells)


def test_nested_seeds_repeat_unlearning_from_each_reference_model():
    planned = plan(seeds={"reference": 2, "unlearning": 3})
    assert sum(node.kind == "model" for node in planned.nodes) == 4
    ga = [(node.id.seed, node.id.repeat) for node in planned.cells if node.id.method == "ga"]
    assert ga == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [(node.id.seed, node.id.repeat) for node in planned.cells if node.id.method == "original"] == [
        (0, 0),
        (1, 0),
    ]


def test_a_list_of_seeds_means_what_it_meant():
    """The first run of unlearning from each reference model is that of the seed alone: finished cells stay."""
    listed, nested = plan(seeds=[0, 1]), plan(seeds={"reference": 2, "unlearning": 2})
    assert {node.key for node in listed.nodes} < {node.key for node in nested.nodes}


def test_the_command_line_sets_a_sweep():
    tables = assigned(study(), ["sweep.methods.*.learning_rate=[1e-4, 1e-3]", "selection.metric=model_utility"])
    planned = make_plan(check_study(tables), REGISTRY)
    assert settings(planned, "ga") == ["learning_rate=0.0001", "learning_rate=0.001"]
    assert {node.spec.selection for node in planned.cells} == {"model_utility"}


RATES = {"learning_rate": [1e-4, 1e-3]}


@pytest.mark.parametrize(
    ("sweep", "selection", "head", "words"),
    [
        ({"methods": {"*": {"learnin_rate": [1.0]}}}, None, {}, ["learnin_rate", "learning_rate"]),
        ({"methods": {"npo": {"bta": [1.0]}}}, None, {}, ["bta", "beta"]),
        ({"methods": {"dpo": RATES}}, None, {}, ["dpo", "its settings would change nothing"]),
        ({"methods": {"*": {"learning_rate": []}}}, None, {}, ["learning_rate = []", "values to try"]),
        ({"methods": {"*": {"learning_rate": 1e-3}}}, None, {}, ["0.001", "a list of values or a range"]),
        ({"methods": {"*": {"learning_rate": [1e-3, -1.0]}}}, None, {}, ["-1.0", "must be above 0"]),
        ({"methods": {"*": {"learning_rate": ["fast"]}}}, None, {}, ["'fast'", "expected float"]),
        (
            {"methods": {"*": {"learning_rate": [1e-3, 1e-3]}}, "settings": 2},
            None,
            {},
            ["1 distinct settings", "asks for 2"],
        ),
        ({"methods": {"ga": RATES}}, None, {}, ["ga 2 settings and npo 1", "the same number"]),
        ({"methods": {"*": RATES, "npo": {"beta": [0.1, 0.2]}}}, None, {}, ["npo 4 settings and ga 2"]),
        (
            {"methods": {"*": {"learning_rate": {"low": 1e-4, "high": 1e-3}}}},
            None,
            {},
            ["is a range", "a grid needs a list"],
        ),
        (
            {"search": "random", "methods": {"*": {"learning_rate": {"low": 1e-4, "high": 1e-3}}}},
            None,
            {},
            ["'random' needs sweep.settings"],
        ),
        (
            {"search": "random", "settings": 2, "methods": {"*": {"learning_rate": {"low": 1.0, "high": 0.1}}}},
            None,
            {},
            ["low = 1 is not below high = 0.1"],
        ),
        (
            {
                "search": "random",
                "settings": 2,
                "methods": {"*": {"learning_rate": {"low": 0, "high": 1, "scale": "log"}}},
            },
            None,
            {},
            ["low = 0 has no logarithm"],
        ),
        (
            {"search": "random", "settings": 2, "methods": {"*": {"schedule": {"low": 0, "high": 1}}}},
            None,
            {},
            ["schedule is a str; list its values"],
        ),
        ({"search": "gird"}, None, {}, ["'gird'", "'grid'"]),
        ({"settings": -1}, None, {}, ["settings = -1", "at least 0"]),
        ({"setings": 1}, None, {}, ["setings", "settings"]),
        ({"methods": {"*": RATES}}, {"metric": "scor"}, {}, ["scor", "score"]),
        ({"methods": {"*": RATES}}, {"rows": "train"}, {}, ["'train'", "'validation'"]),
        (None, None, {"seeds": {"reference": 1, "unlearning": 1}}, ["one seed of each shows no variance"]),
        (None, None, {"seeds": {"reference": 0}}, ["study.seeds.reference", "0 runs", "at least 1"]),
        (None, None, {"seeds": {"referense": 2}}, ["referense", "reference"]),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_one_line(sweep, selection, head, words):
    with pytest.raises((UsageError, UnknownName)) as refused:
        plan(sweep, selection, **head)
    text = str(refused.value)
    assert "\n" not in text
    for word in words:
        assert word in text
