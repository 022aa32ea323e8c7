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
from unlearnbench.running import progress as progress_module
from unlearnbench.running.progress import Progress, running_nodes
from unlearnbench.running.run_store import Outcome
from unlearnbench.training.loss_method import FineTune


@pytest.fixture
def plan():
    spec = SimpleNamespace(
        model=SimpleNamespace(shape={}), benchmark=SimpleNamespace(workload={}), source=None, folder="cells"
    )
    nodes = [
        SimpleNamespace(key=f"{name}--tofu--s0", title=f"{name} × tofu", spec=spec, kind="cell")
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
