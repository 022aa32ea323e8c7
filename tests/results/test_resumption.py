"""A study goes on, elsewhere and later, from a bundle of what is finished."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from made_bundles import changed, of_cell

from unlearnbench import load_study, take_finished
from unlearnbench.errors import UsageError
from unlearnbench.storage import read_sealed, write_sealed

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


@pytest.fixture
def source(begun, tmp_path):
    """A copy of the finished run folder, to be changed."""
    return Path(shutil.copytree(begun[2].parent / "runs/begun", tmp_path / "source"))


@pytest.fixture
def take(begun, command, tmp_path, monkeypatch):
    """Takes what a source has of the finished run's study; without a name, into a new folder."""
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(command.cache))
    study = load_study(begun[2].parent / "runs/begun/study.toml", plugins=[str(command.nano)])
    return lambda path, run="taken": take_finished(study, path, tmp_path / run)


def cell_of(run, method):
    return next(path for path in (run / "cells").iterdir() if path.name.startswith(f"{method}--"))


def change_answers(cell):
    """A cell's model seems to have found one token of its answers less likely."""
    path = cell / "samples.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    rows[0]["answer"][0] *= 2  # nats of an answer
    path.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode()))


def to_repeat(cell):
    """The cell's benchmark skipped questions that another try may answer."""
    path = cell / "status.json"
    write_sealed(path, read_sealed(path, "") | {"incomplete": "boolq cannot be reached"})


def test_a_whole_run_folder_is_taken_and_counts_as_finished(source, take):
    assert take(source).taken == 4
    again = take(source)
    assert (again.taken, again.refused) == (0, ())


def test_scores_that_are_not_those_of_their_samples_are_not_taken(source, take, reseal):
    """Whoever hands the folder over."""
    cell = cell_of(source, "ga")
    change_answers(cell)
    reseal(cell)
    found = take(source)
    assert found.taken == 3
    (line,) = found.refused
    assert line.startswith("ga × tofu-forget10")
    assert f"is run again: {cell.name}: " in line


def test_a_cell_whose_references_answered_otherwise_here_is_not_taken(source, take, tmp_path, reseal):
    """Equal keys make no equal bits on another machine; a score is of the samples that lie beside it."""
    assert take(source).taken == 4
    shutil.rmtree(cell_of(tmp_path / "taken", "npo"))
    change_answers(cell_of(tmp_path / "taken", "retained"))
    reseal(cell_of(tmp_path / "taken", "retained"))
    found = take(source)
    assert found.taken == 0
    (line,) = found.refused
    assert "npo × tofu-forget10" in line
    assert "the retained model that it compares with gave other answers in" in line


def test_a_cell_whose_references_are_run_again_is_not_taken(source, take):
    to_repeat(cell_of(source, "retained"))
    found = take(source)
    assert found.taken == 0
    assert found.refused[0].endswith("is run again: boolq cannot be reached")
    others = [line.rpartition("again: ")[2] for line in found.refused[1:]]
    assert others == ["the retained model that it compares with is run again"] * 3


def test_a_cell_that_is_to_be_repeated_is_not_taken_from_a_folder_or_a_bundle(source, take, command):
    to_repeat(cell_of(source, "ga"))
    assert command("bundle", str(source), "-o", "incomplete.zip", *GIVEN).code == 0
    for name in (source, command.folder / "incomplete.zip"):
        found = take(name, f"from-{name.stem}")
        assert found.taken == 3
        (line,) = found.refused
        assert line.endswith("is run again: boolq cannot be reached")


def test_samples_in_other_bytes_than_the_record_says_are_not_taken(begun, take, tmp_path):
    """Such a cell would stand as finished, and its samples be refused by whoever reads them."""

    def pack_otherwise(files):
        name = of_cell(files, "ga", "samples.jsonl.gz")
        files[name] = gzip.compress(gzip.decompress(files[name]), compresslevel=1)

    found = take(changed(begun[2], tmp_path / "other.zip", pack_otherwise))
    assert found.taken == 3
    assert found.refused[0].endswith("its samples are not those of its record")


def test_a_study_with_other_settings_takes_nothing(begun, command, tmp_path):
    study = load_study(begun[2].parent / "runs/begun/study.toml", {"recipe": {"epochs": 3}}, [str(command.nano)])
    found = take_finished(study, begun[2], tmp_path / "other")
    assert (found.taken, found.finished) == (0, 4)
    assert found.refused == (
        "4 cells have other code, data, settings or packages than the study's here, and are run again",
    )


def test_a_folder_of_bundles_is_a_source(begun, take, tmp_path):
    folder = tmp_path / "bundles"
    folder.mkdir()
    for name in ("a.zip", "b.zip"):
        shutil.copy(begun[2], folder / name)
    found = take(folder)
    assert (found.taken, found.finished, found.refused) == (4, 8, ())


def test_a_cell_that_one_bundle_spoils_is_taken_from_the_next(begun, take, command, source, reseal, tmp_path):
    """And is not said to be run again."""
    change_answers(cell_of(source, "ga"))
    reseal(cell_of(source, "ga"))
    (tmp_path / "bundles").mkdir()
    assert command("bundle", str(source), "-o", "bundles/a.zip", *GIVEN).code == 0
    shutil.copy(begun[2], tmp_path / "bundles/b.zip")
    found = take(tmp_path / "bundles")
    assert (found.taken, found.refused) == (4, ())


def test_a_reference_that_was_not_run_here_is_no_reference(source, take, tmp_path):
    """Of equal keys, but without samples."""
    assert take(source).taken == 4
    for method in ("original", "npo"):
        cell = cell_of(tmp_path / "taken", method)
        for name in ("record.json", "samples.jsonl.gz"):
            (cell / name).unlink()
        path = cell / "status.json"
        status = {"status": "not-applicable", "record_sha256": "", "samples_sha256": ""}
        write_sealed(path, read_sealed(path, "") | status | {"spec_sha256": "" if method == "npo" else "0" * 64})
    found = take(source)
    assert found.taken == 0
    assert found.refused[0].endswith("the original model that it compares with is run again")


def test_the_same_rows_in_other_bytes_are_the_same_reference(source, take, tmp_path, reseal):
    assert take(source).taken == 4
    shutil.rmtree(cell_of(tmp_path / "taken", "npo"))
    retained = cell_of(tmp_path / "taken", "retained")
    rows = gzip.decompress((retained / "samples.jsonl.gz").read_bytes())
    (retained / "samples.jsonl.gz").write_bytes(gzip.compress(rows, compresslevel=1))
    reseal(retained)
    assert take(source).taken == 1


def test_the_run_s_own_folder_is_refused_as_a_source_and_stays(source, take):
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="is the folder that the study runs in"):
        take(source, "source")
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_printed_records_are_refused_as_a_source(begun, take, command, tmp_path):
    printed = command("results", str(begun[2]), "--json")
    (tmp_path / "records.json").write_text(printed.out)
    with pytest.raises(UsageError, match="holds no samples; name a bundle or a run folder"):
        take(tmp_path / "records.json")


def test_a_damaged_record_of_a_reference_stops_nothing(source, take, tmp_path):
    assert take(source).taken == 4
    (cell_of(tmp_path / "taken", "original") / "record.json").write_text("{")
    found = take(source)
    assert found.taken == 1


def test_a_source_that_does_not_exist_is_refused_before_anything_runs(command):
    done = command(*command.study("-m", "ga", "-b", "tofu-forget10", "--name", "none", "--from", "no.zip"))
    assert done.code != 0
    assert done.err.strip().splitlines()[-1].startswith("unlearnbench: 'no.zip' does not exist")
    assert not (command.folder / "runs/none/cells").exists()
