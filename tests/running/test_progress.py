"""What a run says while it works: what runs, its step and loss, where its log lies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from unlearnbench import Context, Engine, Example
from unlearnbench.domain import CellStatus
from unlearnbench.errors import UsageError
from unlearnbench.planning.plan import make_plan
from unlearnbench.planning.study import check_study
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.running import pace as pace_module
from unlearnbench.running import progress as progress_module
from unlearnbench.running.pace import Pace
from unlearnbench.running.progress import Progress, running_nodes
from unlearnbench.running.run_store import Outcome
from unlearnbench.training.loss_method import FineTune


@pytest.fixture
def plan():
    spec = SimpleNamespace(
        model=SimpleNamespace(shape={}), benchmark=SimpleNamespace(workload={}), source=None, folder="cells"
    )
    nodes = [
        SimpleNamespace(
            key=f"{name}--tofu--s0", title=f"{name} × tofu", spec=spec, kind="cell", id=SimpleNamespace(attack="")
        )
        for name in ("npo", "ga")
    ]
    return SimpleNamespace(nodes=nodes)


def attempt(run, key, text):
    log = run / "cells" / f"{key}~abcd.1" / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    return log


def test_a_training_says_its_step_its_epoch_and_its_loss(tiny_model, tiny_encoder):
    from unlearnbench import Requires, UnlearningData

    said = []
    rows = [Example(n, "Where was Ada born?", "Ada was born in Rome.") for n in range(4)]
    data = UnlearningData("x", Requires(), tiny_encoder, rows, (), ())
    recipe = FineTune(epochs=3, batch_size=2)
    recipe.unlearn(tiny_model, None, data, Context("x", 0, Engine(), said.append))
    assert re.fullmatch(r"step 6 of 6, epoch 3 of 3: loss [\d.]+", said[-1])


def test_a_node_that_takes_long_is_named_with_its_step_its_loss_and_its_log(plan, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress_module, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(progress_module, "SAY_EVERY", 0.0)
    log = attempt(tmp_path, "npo--tofu--s0", "stage: load\nother words\nstep 3 of 10, epoch 1 of 2: loss 0.5\nmore\n")
    attempt(tmp_path, "strange--s0", "step 1 of 1")
    with Progress(plan, tmp_path) as progress:
        progress.look()
        progress.look()
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"… npo × tofu: step 3 of 10, epoch 1 of 2: loss 0.5 (0 s; log: {log})"
    assert second == "… npo × tofu: step 3 of 10, epoch 1 of 2: loss 0.5 (0 s)"


def test_a_log_that_is_followed_is_shown_line_by_line_and_once(plan, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress_module, "LOOK_EVERY", 0.0)
    log = attempt(tmp_path, "npo--tofu--s0", "one\ntwo\nhal")
    attempt(tmp_path, "ga--tofu--s0", "other\n")
    with Progress(plan, tmp_path, follow="npo") as progress:
        progress.look()
        log.write_text("one\ntwo\nhalf\n\x1b[31mred\n")
        progress.look()
        progress(Outcome(plan.nodes[1], CellStatus.DONE, "", seconds=1.0), 1, 2)
    shown = capsys.readouterr().err.splitlines()
    assert shown[:3] == ["  one", "  two", "  half"]
    assert "\x1b" not in shown[3]
    assert "red" in shown[3]
    assert shown[4:] == ["[1/2] ga × tofu: done (1.0 s)"]


def test_following_what_no_cell_is_called_is_refused_with_a_name(plan, tmp_path):
    with pytest.raises(UsageError, match=r"--follow 'nothing' begins no cell of this run; .* npo--tofu--s0"):
        Progress(plan, tmp_path, follow="nothing")


def test_only_what_is_under_way_counts_as_running(plan, tmp_path):
    log = attempt(tmp_path, "npo--tofu--s0", "")
    (tmp_path / "cells" / "ga--tofu--s0").mkdir()
    (tmp_path / "cells" / "ga--tofu--s0" / "log.txt").write_text("over")
    titles = {node.key: node.title for node in plan.nodes}
    assert running_nodes(tmp_path, titles) == {log: "npo × tofu"}


def many(*kinds):
    """A plan of nodes of these kinds, of which no estimate can be made."""
    spec = SimpleNamespace(model=SimpleNamespace(shape={}), benchmark=SimpleNamespace(workload={}), source=None)
    return SimpleNamespace(
        nodes=[
            SimpleNamespace(key=f"{n}", title=kind, spec=spec, kind=kind, id=SimpleNamespace(attack=attack))
            for n, (kind, attack) in enumerate(kinds)
        ]
    )


def ended(node, seconds, cached=False):
    return Outcome(node, CellStatus.DONE, "", seconds=seconds, cached=cached)


def test_what_is_left_follows_what_nodes_of_each_kind_have_taken_and_how_many_run_at_once():
    plan = many(*[("model", "")] * 2, *[("cell", "")] * 10, *[("cell", "prompt")] * 4)
    pace = Pace(plan, 0.0)
    assert pace.left(0.0, {}) is None
    for node in plan.nodes[:2]:
        pace.ended(ended(node, 1000.0))
    # Two at once, and nothing known of cells yet: each as long as a model.
    assert pace.left(1000.0, {}) == pytest.approx(14 * 1000 / 2)
    for node in plan.nodes[2:4]:
        pace.ended(ended(node, 100.0))
    for node, seconds in zip(plan.nodes[12:14], (300.0, 0.0), strict=True):
        pace.ended(ended(node, seconds))
    # 8 cells of 100 s, 2 attacks of 150 s in the mean, of which two cells have run for 50 s.
    spent = 2 * 1000 + 2 * 100 + 300 + 2 * 50
    expected = (8 * 100 + 2 * 150 - 2 * 50) / (spent / 1300.0)
    assert pace.left(1300.0, {"4": 50.0, "5": 50.0}) == pytest.approx(expected)


def test_a_node_that_has_just_ended_no_longer_counts_as_running():
    plan = many(*[("cell", "")] * 10)
    pace = Pace(plan, 0.0)
    pace.ended(ended(plan.nodes[0], 60.0))
    assert pace.left(60.0, {"0": 60.0}) == pytest.approx(9 * 60.0)


def test_nodes_that_train_for_no_epoch_weigh_nothing_and_break_nothing(monkeypatch):
    monkeypatch.setattr(
        pace_module, "estimated", lambda spec: SimpleNamespace(seconds=0.0 if spec == "model" else 10.0)
    )
    nodes = [
        SimpleNamespace(key=f"{n}", title=kind, spec=kind, kind=kind, id=SimpleNamespace(attack=""))
        for n, kind in enumerate(("model", "model", "cell", "cell"))
    ]
    pace = Pace(SimpleNamespace(nodes=nodes), 0.0)
    pace.ended(ended(nodes[0], 5.0))
    pace.ended(ended(nodes[2], 20.0))
    assert pace.left(25.0, {}) == pytest.approx(20.0)


def test_what_was_kept_says_nothing_of_how_long_the_rest_takes():
    plan = many(*[("cell", "")] * 10)
    pace = Pace(plan, 0.0)
    for node in plan.nodes[:5]:
        pace.ended(ended(node, 9999.0, cached=True))
    assert pace.left(1.0, {}) is None
    pace.ended(ended(plan.nodes[5], 60.0))
    assert pace.left(60.0, {}) == pytest.approx(4 * 60.0)


def test_lines_say_what_is_left_where_that_is_more_than_a_moment(tmp_path, capsys, monkeypatch):
    plan = many(*[("cell", "")] * 3)
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    for node in plan.nodes:
        node.spec.folder = "cells"
    with Progress(plan, tmp_path) as progress:
        clock[0] = 3600.0
        progress(ended(plan.nodes[0], 3600.0), 1, 3)
        clock[0] = 3610.0
        progress(ended(plan.nodes[1], 10.0), 2, 3)
        progress(ended(plan.nodes[2], 10.0), 3, 3)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "[1/3] cell: done (3600.0 s); 2 h 0 min left"
    assert second == "[2/3] cell: done (10.0 s); 30 min left"
    assert third == "[3/3] cell: done (10.0 s)"


def test_a_terminal_has_a_bar_with_what_runs(command):
    """Through a terminal of its own, since rich writes no bar into a pipe."""
    import pty

    master, slave = pty.openpty()
    words = command.study("-m", "npo", "-b", "tofu-forget01", "--follow", "npo--tofu")
    done = subprocess.Popen(
        [sys.executable, "-m", "unlearnbench", *words], cwd=command.folder, stderr=slave, stdout=subprocess.DEVNULL,
        env=command.environment | {"TERM": "xterm", "COLUMNS": "160"},
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    assert done.wait(timeout=120) == 0
    text = shown.decode(errors="replace")
    assert "npo × tofu-forget01 × nano seed 0" in text
    assert "stage: unlearn" in text
    assert re.search(r"step \d+ of \d+, epoch \d of \d: loss", text)
    assert "left" in text


def test_runs_that_a_sweep_may_leave_out_are_told_from_those_that_are_run():
    """Two of three end at once: they say nothing of how long a whole cell takes."""
    registry = load_plugins()
    tables = {
        "study": {"methods": ["ga", "npo"], "benchmarks": ["tofu-forget05"], "models": ["tiny"],
                  "seeds": {"reference": 2, "unlearning": 1}},
        "data": {"source": "generated", "scale": "quick"},
        "sweep": {"runs": "first", "methods": {"*": {"learning_rate": [1e-4, 1e-3, 1e-2]}}},
    }  # fmt: skip
    plan = make_plan(check_study(tables), registry)
    pace = Pace(plan, 0.0)
    spent = 0.0
    for node in plan.nodes:
        if node.id.method == "npo" and node.kind == "cell":
            continue
        is_left_out = node.kind == "cell" and node.spec.rivals and node.id.setting != "learning_rate=0.001"
        seconds = 0.0 if is_left_out else 90.0 if node.kind == "cell" else 10.0
        pace.ended(ended(node, seconds))
        spent += seconds
    # Three whole cells of npo's first run, and one of the three after them.
    assert pace.left(spent, {}) == pytest.approx(3 * 90 + 90)
