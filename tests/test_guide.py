"""The guide's commands work as they stand, one after another."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"


@pytest.mark.slow
def test_every_command_of_the_guide_works(command, tmp_path):
    pytest.importorskip("setuptools")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.S) for line in block.splitlines()]
    done = {}
    for line in lines:
        program, *words = shlex.split(line)
        if program == "pip":
            # Installed beside the environment that runs the tests, and without a network.
            assert words[:2] == ["install", "-e"]
            install = ["install", "-q", "--no-deps", "--no-build-isolation", "--target", "plugins", words[2]]
            subprocess.run([sys.executable, "-m", "pip", *install], cwd=tmp_path, check=True, capture_output=True)
            continue
        assert program == "unlearnbench"
        finished = command(*words, PYTHONPATH=str(tmp_path / "plugins"))
        assert finished.code == 0, (line, finished.err)
        done[line] = finished.out
    assert len(done) > 10
    assert "my-method" in next(out for line, out in done.items() if "results" in line)
    page = (tmp_path / "www" / "b" / "tofu-forget01.html").read_text()
    assert "<bdi>my-method</bdi>" in page
    assert "recomputed" in page, "the badge that verify left stands on every row"
    assert (tmp_path / "www" / "m" / "my-method-my-method.html").is_file()
