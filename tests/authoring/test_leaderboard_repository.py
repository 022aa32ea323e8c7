"""A leaderboard's repository, end to end on local git remotes: five pull requests, one of them with a bad bundle."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile

import pytest
import yaml
from made_bundles import changed, edited, of_cell

from unlearnbench.authoring.scaffold import write_leaderboard
from unlearnbench.errors import UsageError
from unlearnbench.records.badge import Badge
from unlearnbench.results.bundle import badge_path
from unlearnbench.storage import file_digest

FACTS = {"contact": "a@example.org", "licence": "CC0", "budget": "one", "selection": "none"}


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def clone_of(remote, folder):
    git(remote.parent, "clone", "-q", str(remote), str(folder))
    return folder


def commit(clone, message):
    git(clone, "add", "-Af")
    git(clone, "commit", "-qm", message)


def steps(folder, workflow):
    """The commands that a workflow runs, but for those that install or come from elsewhere."""
    content = yaml.safe_load((folder / ".github" / "workflows" / workflow).read_text())
    (job,) = content["jobs"].values()
    lines = [step["run"] for step in job["steps"] if "run" in step]
    return [line for line in lines if not line.startswith("pip ")]


def run_steps(folder, workflow, **environment):
    """What the workflow's commands return in a clone, one after another until one fails."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    for line in steps(folder, workflow):
        line = line.replace("/tmp/", f"{folder}/.tmp-")
        done = subprocess.run(
            ["bash", "-e", "-c", line], cwd=folder, env={**os.environ, "PATH": path, **environment},
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            return done.returncode, done.stdout + done.stderr
    return 0, done.stdout


def with_another_score(bundle):
    """The bundle with one score raised, and all hashes as they must be for what is in it."""

    def raise_score(record):
        record["scores"]["forget_rouge"]["value"] += 0.25
        for edition in record["scores"]["forget_rouge"]["editions"].values():
            edition["value"] += 0.25

    def change(files):
        edited(files, of_cell(files, "ga", "record.json"), raise_score)

    return changed(bundle, bundle.with_name("raised"), change).read_bytes()


@pytest.fixture(scope="module")
def bundle(small_run, tmp_path_factory):
    from unlearnbench.results.bundle import write_bundle

    path = tmp_path_factory.mktemp("bundle") / "one.zip"
    write_bundle(small_run[0], path, FACTS, "0")
    return path


def test_a_pull_request_is_reviewed_and_what_holds_is_published(bundle, tmp_path):
    write_leaderboard("our-board", tmp_path)
    board, remote = tmp_path / "our-board", tmp_path / "remote.git"
    git(tmp_path, "init", "-q", "--bare", "remote.git")
    git(board, "init", "-q")
    git(board, "add", "-A")
    git(board, "commit", "-qm", "A leaderboard")
    git(board, "remote", "add", "origin", str(remote))
    git(board, "push", "-q", "origin", "main")

    good = bundle.read_bytes()
    bundles = {
        "one": good,
        "two": good,
        "bad": with_another_score(bundle),
        "three": good,
        "torn": good[: len(good) // 2],
    }
    comments = {}
    for number, (name, content) in enumerate(bundles.items(), 1):
        clone = clone_of(remote, tmp_path / f"clone-{name}")
        git(clone, "checkout", "-qb", name)
        (clone / "submissions" / f"{name}.zip").write_bytes(content)
        commit(clone, name)
        code, said = run_steps(clone, "review.yml", BASE="origin/main", NUMBER=str(number))
        comments[name] = (clone / "comment" / "text.md").read_text()
        assert (clone / "comment" / "number").read_text().strip() == str(number)
        assert code == (7 if name in ("bad", "torn") else 0), said
        if not code:
            git(clone, "push", "-q", "origin", f"{name}:main") if name == "one" else None
            if name != "one":
                git(clone, "pull", "-q", "--no-rebase", "--no-edit", "origin", "main")
                git(clone, "push", "-q", "origin", f"{name}:main")
    assert "✅ `submissions/one.zip`: 17 cells" in comments["one"]
    assert "❌ `submissions/bad.zip`" in comments["bad"]
    assert "forget_rouge" in comments["bad"]
    assert "❌ `submissions/torn.zip` cannot be read" in comments["torn"]

    # A change of what is there, and of other files.
    clone = clone_of(remote, tmp_path / "clone-change")
    (clone / "submissions" / "one.zip").write_bytes(with_another_score(bundle))
    (clone / "review.py").write_text("raise SystemExit(0)")
    commit(clone, "A change")
    code, said = run_steps(clone, "review.yml", BASE="origin/main", NUMBER="6")
    assert code == 7, said
    told = (clone / "comment" / "text.md").read_text()
    assert "`submissions/one.zip` is there already" in told
    assert "`review.py` is no bundle" in told

    # What would be believed without a look, or never be looked at again.
    for path in ("submissions/one.zip.verified.json", "submissions/more/one.zip", "submissions/`x`\n# y.md"):
        clone = clone_of(remote, tmp_path / f"clone-{len(path)}")
        (clone / path).parent.mkdir(exist_ok=True)
        (clone / path).write_bytes(good)
        commit(clone, "More than a bundle")
        code, said = run_steps(clone, "review.yml", BASE="origin/main", NUMBER="7")
        assert code == 7, said
        told = (clone / "comment" / "text.md").read_text()
        assert "is no bundle in submissions/" in told
        assert "\n# y" not in told

    # A badge that came in all the same is not believed.
    clone = clone_of(remote, tmp_path / "clone-forged")
    forged = clone / "submissions" / "forged.zip"
    forged.write_bytes(with_another_score(bundle))
    with zipfile.ZipFile(forged) as archive:
        keys = sorted({name.split("/")[1] for name in archive.namelist() if name.startswith("cells/")})
    said = Badge(bundle_sha256=file_digest(forged), date="2026-01-01", unlearnbench="9", cells=keys)
    badge_path(forged).write_text(said.model_dump_json())
    commit(clone, "Forged")
    git(clone, "push", "-q", "origin", "main")

    clone = clone_of(remote, tmp_path / "clone-publish")
    code, said = run_steps(clone, "publish.yml")
    assert code == 0, said
    pages = (
        git(clone, "ls-tree", "-r", "--name-only", "origin/gh-pages").splitlines()
        or git(tmp_path / "remote.git", "ls-tree", "-r", "--name-only", "gh-pages").splitlines()
    )
    assert {"index.html", "b/tofu-forget10.html", "data/records.json"} <= set(pages)
    index = git(remote, "show", "gh-pages:index.html")
    assert all(f"{name}.zip" in index for name in ("one", "two", "three"))
    assert "bad.zip" not in index
    assert "2026-01-01" not in index
    assert re.search(r"forged\.zip(?s:.)*?fault", index)

    # The last bundle withdrawn: pages without rows take the place of those with its rows.
    git(clone, "rm", "-q", "-r", "submissions")
    (clone / "submissions").mkdir(exist_ok=True)
    (clone / "submissions" / "README.md").write_text("Bundles.")
    commit(clone, "Withdrawn")
    git(clone, "push", "-q", "origin", "main")
    code, said = run_steps(clone, "publish.yml")
    assert code == 0, said
    assert "one.zip" not in git(remote, "show", "gh-pages:index.html")


def test_a_repository_is_written_once_and_under_a_name(tmp_path):
    paths = write_leaderboard("our-board", tmp_path)
    assert all(path.is_file() for path in paths)
    workflows = sorted((tmp_path / "our-board" / ".github" / "workflows").glob("*.yml"))
    assert [path.name for path in workflows] == ["comment.yml", "publish.yml", "review.yml"]
    texts = [path.read_text() for path in workflows]
    assert all(yaml.safe_load(text)["jobs"] for text in texts)
    assert not any("$$" in text for text in texts)
    # What runs strangers' files has no rights, and what has rights does not check them out.
    assert yaml.safe_load(texts[2])["permissions"] == {"contents": "read"}
    assert "checkout" not in texts[0]
    with pytest.raises(UsageError, match="is there already"):
        write_leaderboard("our-board", tmp_path)
    with pytest.raises(UsageError, match="is no name for a leaderboard"):
        write_leaderboard("Our Board", tmp_path)
