"""The leaderboards of real rows in this repository: their bundles recompute, and their pages show what these hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unlearnbench.leaderboard.exchange.spreadsheets import as_csv
from unlearnbench.leaderboard.publishing import MADE
from unlearnbench.leaderboard.ranking import tables
from unlearnbench.results.opening import opened
from unlearnbench.storage import file_digest

FOLDERS = sorted(path.parent for path in (Path(__file__).parents[2] / "leaderboards").glob("*/*.toml"))


def test_there_is_a_leaderboard():
    assert [folder.name for folder in FOLDERS] == ["smollm2-tofu"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_leaderboard_s_bundle_recomputes(folder, command):
    done = command("verify", str(folder / f"{folder.name}.zip"), "--no-badge", "--json")
    assert done.code == 0, done.err
    assert done.json["faults"] == []
    assert done.json["cells"]
    # Rows of the published data set, known by their hashes, and every cell of the study is there.
    assert done.json["notes"] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_leaderboard_s_pages_show_its_bundle_and_are_whole(folder):
    made = json.loads((folder / "site" / MADE).read_text())
    assert {name: file_digest(folder / "site" / name) for name in made} == made
    with opened([folder / f"{folder.name}.zip"]) as found:
        shown = tables([cell for results in found for cell in results.cells])
        assert shown
        assert not any(table.limits.get("data") for table in shown)
        for name in {table.benchmark for table in shown}:
            mine = [table for table in shown if table.benchmark == name]
            assert (folder / "site" / "data" / f"{name}.csv").read_text() == as_csv(mine)
