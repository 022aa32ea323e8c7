"""The documentation names what there is."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def rooms():
    """The rooms by floor, as the test of the architecture states them."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text())
    floors = next(node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "FLOORS")
    return ast.literal_eval(floors)


def test_the_architecture_page_lists_every_room_on_its_floor():
    found, floor = [], 0
    for number, room in re.findall(r"^\| (\d*) ?\| `(\w+)` \|", (ROOT / "docs" / "architecture.md").read_text(), re.M):
        if number:
            floor = int(number)
            found.append([])
        assert floor == len(found)
        found[-1].append(room)
    assert [set(names) for names in found] == [set(names) for names in rooms()]


def test_the_picture_shows_every_room_above_those_that_it_may_import():
    texts = ET.parse(ROOT / "docs" / "architecture.svg").iter("{http://www.w3.org/2000/svg}text")
    height = {text.text: float(text.get("y")) for text in texts if text.get("class") == "name"}
    assert set(height) == {room for names in rooms() for room in names}
    ground = [{height[room] for room in names} for names in rooms()]
    assert all(len(floor) == 1 for floor in ground)
    assert sorted(ground, key=max, reverse=True) == ground


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "docs/index.md"]
)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).is_file(), target


def test_hooks_run_the_ruff_that_the_pins_name():
    hooks, pins = (ROOT / ".pre-commit-config.yaml").read_text(), (ROOT / "constraints.txt").read_text()
    (pinned,) = re.findall(r"^ruff==(.+)$", pins, re.M)
    assert f"ruff-pre-commit\n    rev: v{pinned}\n" in hooks
