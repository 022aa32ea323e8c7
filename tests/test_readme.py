"""The README's commands: every line is one that the program takes, and those that need no hub are run."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import click
import pytest

from unlearnbench.cli.main import cli
from unlearnbench.planning.study import check_study
from unlearnbench.records.gates import read_gates

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
LINES = [
    line.partition(" # ")[0].strip()
    for language, block in BLOCKS
    if language == "sh"
    for line in block.replace("\\\n", " ").splitlines()
]
COMMANDS = [shlex.split(line)[1:] for line in LINES if line.startswith("unlearnbench ")]


def test_the_readme_has_commands():
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_readme_is_one_that_the_program_takes(words):
    context = click.Context(cli)
    command, name, rest = cli, "unlearnbench", list(words)
    while isinstance(command, click.Group):
        name, command, rest = command.resolve_command(context, rest)
    command.make_context(name, rest, resilient_parsing=False)


def test_studies_and_gates_of_the_readme_are_valid():
    study = next(block for language, block in BLOCKS if language == "toml")
    checked = check_study(tomllib.loads(study))
    assert checked.selected("methods") == ("npo", "flat-tv")
    gates = next(block for _, block in BLOCKS if block.startswith("[[gates]]"))
    assert len(read_gates(tomllib.loads(gates))) == 2


def test_handing_in_checking_and_publishing_work_as_they_stand(small_run, command):
    """From `unlearnbench bundle runs/demo …` to `publish`, one after another, on a run of one benchmark."""
    shutil.copytree(small_run[0], command.folder / "runs" / "demo", ignore=shutil.ignore_patterns("site"))
    shutil.copytree(small_run[0], command.folder / "runs" / "one", ignore=shutil.ignore_patterns("site"))
    first = next(i for i, words in enumerate(COMMANDS) if words[0] == "bundle")
    last = max(i for i, words in enumerate(COMMANDS) if words[0] == "publish")
    ran = []
    for words in COMMANDS[first : last + 1]:
        words = [str(command.folder / "www") if word == "dir:/srv/www/unlearning" else word for word in words]
        words = [f"dir:{word}" if word == str(command.folder / "www") else word for word in words]
        # The run has another split and a model of a plugin.
        words = [word.replace("tofu-forget01", "tofu-forget10") for word in words]
        plugin = ("--plugin", str(command.nano)) if words[0] == "verify" else ()
        done = command(*words, *plugin, *(("--device", "cpu") if "--rerun" in words else ()))
        assert done.code == 0, (words, done.err)
        if words[0] == "bundle":
            (command.folder / "submissions").mkdir(exist_ok=True)
            shutil.copy(command.folder / "submission.zip", command.folder / "submissions")
        ran.append(words[0])
    assert ran.count("verify") >= 2
    assert {"bundle", "verify", "render", "publish"} <= set(ran)
    assert (command.folder / "www" / "index.html").is_file()
