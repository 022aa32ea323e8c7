"""A study goes on, elsewhere and later, from a bundle of what is finished."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest

GIVEN = ("--contact", "a", "--licence", "b", "--budget", "c", "--selection", "d")


@pytest.fixture(scope="module")
def begun(tmp_path_factory, command_in):
    """The command that ran a study of one seed, its words for that seed and for two, and the bundle of the first."""
    command = command_in(tmp_path_factory.mktemp("begun"))
    words = command.study("-m", "ga", "-m", "npo", "-b", "tofu-forget10", "--name", "begun", "-j", "2")
    assert command(*words).code == 0
    bundle = command.folder / "begun.zip"
    assert command("bundle", "runs/begun", "-o", str(bundle), *GIVEN).code == 0
    return words, ("--set", "study.seeds={reference = 2, unlearning = 1}"), bundle


def folders(run):
    return sorted(path.name for path in (run / "cells").iterdir())


def test_what_a_bundle_has_is_not_run_again_on_a_machine_without_its_models(begun, command):
    words, _, bundle = begun
    command.cache = command.folder / "empty"
    done = command(*words, "--from", str(bundle))
    assert done.code == 0, done.err
    assert f"{bundle}: 4 of 4 finished cells are taken" in done.err
    assert done.err.count("done (kept)") == 4 + 2
    assert not (command.cache / "models").exists(), "no model is prepared for cells that are all measured"
    again = command("bundle", "runs/begun", "-o", "again.zip", *GIVEN)
    assert again.code == 0, again.err
    assert (command.folder / "again.zip").read_bytes() == bundle.read_bytes()
    options = [word for word in words[1:] if word not in ("--device", "cpu", "-j", "2")]
    planned = command("plan", *options, "--set", "run.device=cpu")
    assert "0 of 6 nodes to run" in planned.out


def test_seeds_are_added_to_what_a_bundle_has(begun, command):
    words, seeds, bundle = begun
    done = command(*words, *seeds, "--from", str(bundle), "--json")
    assert done.code == 0, done.err
    assert "4 of 4 finished cells are taken" in done.err
    assert [cell["status"] for cell in done.json["cells"]] == ["done"] * 8
    assert done.err.count("done (kept)") >= 4 + 2
    once_more = command(*words, *seeds, "--from", "runs/begun", "-o", "copy")
    assert once_more.code == 0, once_more.err
    assert "8 of 8 finished cells are taken" in once_more.err
    assert folders(command.folder / "copy") == folders(command.folder / "runs/begun")


def test_a_study_with_other_settings_takes_nothing(begun, command):
    words, _, bundle = begun
    other = command(*words, "--set", "methods.*.epochs=1", "--set", "recipe.epochs=3", "--from", str(bundle))
    assert other.code == 0, other.err
    assert "0 of 4 finished cells are taken" in other.err


def test_scores_that_are_not_those_of_their_samples_are_not_taken(begun, command, reseal):
    """Whoever hands the folder over: the cell is measured again, and those that compare with it are whole."""
    words, _, _ = begun
    first = command(*words)
    assert first.code == 0, first.err
    run = command.folder / "runs/begun"
    key = next(name for name in folders(run) if name.startswith("ga--"))
    lines = gzip.decompress((run / "cells" / key / "samples.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[0]["answer"][0] *= 2  # nats of an answer
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (run / "cells" / key / "samples.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    reseal(run / "cells" / key)
    shutil.move(run, command.folder / "tampered")
    done = command(*words, "--from", "tampered", "--json")
    assert done.code == 0, done.err
    assert "3 of 4 finished cells are taken" in done.err
    assert f"is run again: {key}: " in done.err
    assert [cell["status"] for cell in done.json["cells"]] == ["done"] * 4


def test_a_source_that_does_not_exist_is_refused_before_anything_runs(command):
    done = command(*command.study("-m", "ga", "-b", "tofu-forget10", "--name", "none", "--from", "no.zip"))
    assert done.code != 0
    assert done.err.strip().splitlines()[-1].startswith("unlearnbench: 'no.zip' does not exist")
    assert not (command.folder / "runs/none/cells").exists()
