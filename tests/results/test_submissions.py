"""Bundles: what is packed recomputes, what was changed is named, and a hostile file harms nobody."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import stat
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_bundles import changed, edited, of_cell, sha256

from unlearnbench.errors import BundleError, HarnessError, UsageError
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.results import bundle_reader as bundles
from unlearnbench.results.bundle import write_bundle
from unlearnbench.results.bundle_reader import bundled_rows, strict_json, unpacked
from unlearnbench.results.opening import opened
from unlearnbench.results.verification import badge_path, read_badge, verify, write_badge

WORDS = {"contact": "ada@example.org", "licence": "CC-BY-4.0", "budget": "one setting", "selection": "defaults"}


@pytest.fixture(scope="module")
def bundle(small_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "submission.zip"
    write_bundle(small_run[0], path, WORDS, "0.1.0")
    return path


def checked(path):
    with opened([path]) as (results,):
        return verify(results, load_plugins())


def test_a_bundle_recomputes_and_gets_a_badge(bundle, command, tmp_path):
    shutil.copy(bundle, tmp_path / "mine.zip")
    done = command("verify", str(tmp_path / "mine.zip"), "--json")
    assert done.code == 0, done.err
    assert len(done.json["cells"]) == 17
    assert done.json["scores"] > 17 * 20
    assert done.json["faults"] == []
    badge = read_badge(tmp_path / "mine.zip")
    assert len(badge.cells) == 17
    assert badge.faults == []
    with (tmp_path / "mine.zip").open("ab") as file:
        file.write(b" ")
    assert read_badge(tmp_path / "mine.zip") is None, "a badge is of one file"


def test_equal_runs_give_equal_bundles(bundle, small_run, tmp_path):
    write_bundle(small_run[0], tmp_path / "again.zip", WORDS, "0.1.0")
    assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()


def test_nothing_says_where_it_lay_on_its_machine(bundle, small_run, tmp_path):
    from unlearnbench.leaderboard.render import render

    here = [str(folder).encode() for folder in (small_run[0].parent, bundle.parent, tmp_path)]
    with zipfile.ZipFile(bundle) as packed:
        content = [packed.read(name) for name in packed.namelist()]
    with opened([small_run[0]]) as results:
        render(results, tmp_path / "site", load_plugins())
    content += [page.read_bytes() for page in (tmp_path / "site").rglob("*") if page.is_file()]
    for piece in content:
        text = gzip.decompress(piece) if piece[:2] == b"\x1f\x8b" else piece
        assert not [place for place in here if place in text]


def test_a_run_folder_is_verified_too(small_run):
    assert checked(small_run[0]).holds


def test_what_was_made_up_is_named(bundle, tmp_path):
    def better(files):
        edited(files, of_cell(files, "npo", "record.json"),
               lambda record: record["scores"]["model_utility"]["editions"]["paper"].update(value=0.9))  # fmt: skip

    found = checked(changed(bundle, tmp_path / "better.zip", better))
    assert not found.holds
    assert any("npo--" in fault and "model_utility (paper) value: stored 0.9, recomputed" in fault
               for fault in found.faults)  # fmt: skip


def test_samples_of_other_questions_are_named(bundle, tmp_path):
    def swap(files):
        path = of_cell(files, "npo", "samples.jsonl.gz")
        rows = [json.loads(line) for line in gzip.decompress(files[path]).splitlines()]
        rows[0]["prompt"] = "What is one and one?"
        files[path] = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        fresh = sha256(files[path])
        edited(files, of_cell(files, "npo", "record.json"), lambda record: record["samples"].update(sha256=fresh))

    found = checked(changed(bundle, tmp_path / "swap.zip", swap))
    assert any("1 rows of forget are not generated data" in fault or "different" in fault or "scored on" in fault
               for fault in found.faults), found.faults  # fmt: skip


def test_a_hidden_limit_is_named(bundle, tmp_path):
    def hide(files):
        edited(files, of_cell(files, "npo", "record.json"), lambda record: record["limits"].pop("max new tokens"))

    found = checked(changed(bundle, tmp_path / "hide.zip", hide))
    assert any("max_new_tokens = 8 is not shown among its limits" in fault for fault in found.faults)


def test_a_bundle_without_its_references_is_refused(bundle, tmp_path):
    def drop(files):
        for name in ("record.json", "samples.jsonl.gz"):
            del files[of_cell(files, "retained", name)]

        def without(manifest):
            manifest["cells"] = [cell for cell in manifest["cells"] if cell["method"] != "retained"]

        edited(files, "manifest.json", without)

    found = checked(changed(bundle, tmp_path / "drop.zip", drop))
    assert any("the samples of its reference retained--" in fault for fault in found.faults)


def test_what_a_submission_must_say(small_run, tmp_path, command):
    with pytest.raises(UsageError, match="lacks budget"):
        write_bundle(small_run[0], tmp_path / "x.zip", {**WORDS, "budget": " "}, "0.1.0")
    done = command("bundle", str(small_run[0]), "-o", "out.zip", "--contact", "me")
    assert done.code == 4
    assert "the submission lacks licence" in done.err
    assert not (command.folder / "out.zip").exists()


def test_a_tampered_bundle_is_exit_7_in_one_line(bundle, command, tmp_path):
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "broken.zip").write_bytes(content)
    done = command("verify", str(tmp_path / "broken.zip"))
    assert done.code == 7
    assert len(done.err.strip().splitlines()) == 1
    assert not badge_path(tmp_path / "broken.zip").exists()


# -- hostile files ----------------------------------------------------------------------------------------------------


def entry(name, mode=0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "name",
    ["../out.json", "/etc/passwd", "cells/../../x/record.json", "cells/a/b/record.json", "cells\\a\\record.json",
     "cells/.hidden/record.json", "cells/a/record.json\n", "notes.txt", "cells/a/samples.jsonl.gz.exe", "",
     "cells/" + "a" * 500 + "/record.json", "cells/é/record.json", "cells/a/RECORD.JSON"],
)  # fmt: skip
def test_a_name_that_is_none_of_ours_is_refused(tmp_path, name):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry(name), b"{}")
    (tmp_path / "into").mkdir()
    with pytest.raises(BundleError):
        unpacked(path, tmp_path / "into")
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["b.zip", "into"]


def test_links_twins_and_bombs_are_refused(tmp_path, monkeypatch):
    def refused(match, *entries):
        path = tmp_path / "b.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for info, content in entries:
                archive.writestr(info, content)
        into = tmp_path / "into"
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir()
        with pytest.raises(BundleError, match=match):
            unpacked(path, into)

    refused("a link or a folder", (entry("study.toml", stat.S_IFLNK | 0o777), b"/etc/passwd"))
    with pytest.warns(UserWarning, match="Duplicate name"):
        refused("there twice", (entry("study.toml"), b""), (entry("study.toml"), b"x"))
    refused("there twice", (entry("cells/a/record.json"), b"{}"), (entry("cells/A/record.json"), b"{}"))
    monkeypatch.setitem(bundles.LARGEST, "study.toml", 1000)
    refused("more than 1000 bytes", (entry("study.toml"), b"0" * 10**7))
    monkeypatch.setattr(bundles, "TOTAL", 1500)
    refused("unpacks to more than", (entry("cells/a/record.json"), b"0" * 900),
            (entry("cells/b/record.json"), b"0" * 900))  # fmt: skip
    monkeypatch.setattr(bundles, "ENTRIES", 1)
    refused("2 entries", (entry("study.toml"), b""), (entry("manifest.json"), b""))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 40 + "1" + "}" * 40, "NaN", "[Infinity]", '{"a": 1, "a": 2}', "{", "1" * 10_000,
             "\ud800"],
)  # fmt: skip
def test_json_that_is_deep_or_none_is_refused(text):
    with pytest.raises(BundleError):
        strict_json(text.encode("utf-8", "surrogatepass")[:-1] + b"\xff" if text == "\ud800" else text.encode(), "x")


def test_samples_are_read_within_bounds(tmp_path, monkeypatch):
    path = tmp_path / "samples.jsonl.gz"
    for content, match in ((b"not gzip", "not a gzip"), (gzip.compress(b"[1]\n"), "no object"),
                           (gzip.compress(b'{"a": "' + b"x" * 60_000 + b'"}'), "60000 letters"),
                           (gzip.compress(b'{"a": NaN}'), "NaN")):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(BundleError, match=match):
            bundled_rows(path)
    monkeypatch.setattr(bundles, "UNZIPPED", 1000)
    path.write_bytes(gzip.compress(b"\n" * 2000))
    with pytest.raises(BundleError, match="unpacks to more than"):
        bundled_rows(path)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a\u202eb", "a\x1b[2Jb", "x" * 3000, "a\nb"])
def test_markup_is_kept_as_text_and_control_characters_are_refused(bundle, tmp_path, text):
    def rename(files):
        path = of_cell(files, "npo", "record.json")
        edited(files, path, lambda record: record["identity"].update(method=text))

        def same(manifest):
            next(cell for cell in manifest["cells"] if cell["method"] == "npo")["method"] = text

        edited(files, "manifest.json", same)

    path = changed(bundle, tmp_path / "b.zip", rename)
    if text.startswith("<"):
        with opened([path]) as (results,):
            assert text in {cell.identity.method for cell in results.cells}
        return
    with pytest.raises(HarnessError, match=r"control characters|at most 2000"), opened([path]):
        pass


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_bundle_changed_anywhere_is_an_error_of_ours_or_harmless(bundle, tmp_path_factory, data):
    """Bytes of the archive, or of a file in it with hashes made to fit; nothing but HarnessError may come out."""
    folder = tmp_path_factory.mktemp("fuzz")
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    if data.draw(st.booleans()):
        content = bytearray(bundle.read_bytes())
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (folder / "b.zip").write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
    else:

        def mangle(files):
            name = rng.choice([name for name in sorted(files) if name != "manifest.json"])
            content = bytearray(files[name])
            for _ in range(rng.randint(1, 5)):
                place = rng.randrange(len(content))
                content[place : place + rng.randint(0, 3)] = rng.choice(
                    [b"\xff", b"null", b"-1", b'"', b"[[[[", b"1e999", b"", b"\x00", b"{}"]
                )
            files[name] = bytes(content)

        changed(bundle, folder / "b.zip", mangle)
    try:
        with opened([folder / "b.zip"]) as (results,):
            for cell in results.cells[:2]:
                results.samples_of(cell.key)
    except HarnessError as error:
        said = str(error)
    else:
        said = ""
    shutil.rmtree(folder)
    assert "\n" not in said


def test_a_badge_names_the_version_and_the_day(bundle, tmp_path):
    path = tmp_path / "b.zip"
    shutil.copy(bundle, path)
    write_badge(path, checked(path), "9.9")
    badge = read_badge(path)
    assert badge.unlearnbench == "9.9"
    assert len(badge.date) == 10


@pytest.mark.slow
def test_a_cell_is_run_again(bundle, command, nano_plugin):
    done = command("verify", str(bundle), "--rerun", "npo", "--plugin", str(nano_plugin), "--device", "cpu", "--json")
    assert done.code == 0, done.err
    found = {entry["metric"]: entry for entry in done.json["distances"]}
    assert found["model_utility"]["half_widths"] < 0.1
    assert command("verify", str(bundle), "--rerun", "nothing").code == 4


@pytest.mark.slow
@pytest.mark.parametrize("cheat", ["hidden hyperparameters", "invented samples"])
def test_only_a_rerun_tells_what_recomputes_and_is_not_true(bundle, command, nano_plugin, tmp_path, cheat):
    def lie(files):
        name = next(name for name in files if name.startswith("cells/npo--") and name.endswith("record.json"))
        record = json.loads(files[name])
        if cheat == "hidden hyperparameters":
            record["identity"]["hyperparameters"]["learning_rate"] = 3e-2
        else:
            # Another method's samples, with its scores: consistent, and no answer of this method's model.
            other = next(n for n in files if n.startswith("cells/task-vector--") and n.endswith("record.json"))
            samples = files[other.replace("record.json", "samples.jsonl.gz")]
            files[name.replace("record.json", "samples.jsonl.gz")] = samples
            record["scores"] = json.loads(files[other])["scores"]
            record["samples"]["sha256"] = sha256(samples)
        files[name] = json.dumps(record).encode()

    forged = changed(bundle, tmp_path / "forged.zip", lie)
    assert checked(forged).holds
    done = command("verify", str(forged), "--rerun", "npo", "--plugin", str(nano_plugin), "--device", "cpu", "--json")
    assert done.code == 0, done.err
    # An honest cell is found again within a tenth of its intervals (above).
    apart = [entry["half_widths"] for entry in done.json["distances"]]
    assert max(value for value in apart if isinstance(value, float)) > 0.1
