"""Publishing: the new site takes the old one's place at once, and nothing of anybody else's is lost."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.hf_api import RepoFile, RepoFolder

from unlearnbench.errors import UsageError
from unlearnbench.leaderboard.publishing import LISTED, Branch, Folder, Space, publish, target_of


def site(folder, **pages):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"index": "first", **pages}.items():
        (folder / f"{name}.html").write_text(text)
    (folder / "site.js").write_text("")
    (folder / "b").mkdir(exist_ok=True)
    (folder / "b" / "tofu.html").write_text("rows")
    return folder


def git(folder, *words):
    who = ("-c", "user.name=A", "-c", "user.email=a@b")
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


class Hub:
    """As much of the hub as a Space needs, in memory."""

    def __init__(self, folder):
        self.folder, self.files, self.made, self.taken = folder, {}, [], []

    def repo_exists(self, *_, **__):
        return bool(self.files)

    def create_repo(self, *_, **facts):
        self.made.append(facts["space_sdk"])

    def list_repo_tree(self, *_, **__):
        """Git's names of contents; scripts are as if they lay in the large storage, which tells their SHA-256."""
        for folder in {name.rpartition("/")[0] for name in self.files} - {""}:
            yield RepoFolder(path=folder, oid="0" * 40)
        for name, content in self.files.items():
            large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            done = subprocess.run(["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True)
            lfs = {"lfs": large, "oid": "1" * 40} if name.endswith(".js") else {"oid": done.stdout.decode().strip()}
            yield RepoFile(path=name, size=len(content), **lfs)

    def hf_hub_download(self, _, name, **__):
        self.taken.append(name)
        path = self.folder / name.replace("/", "_")
        path.write_bytes(self.files[name])
        return str(path)

    def create_commit(self, _, operations, **__):
        for operation in operations:
            if hasattr(operation, "path_or_fileobj"):
                content = operation.path_or_fileobj
                content = content if isinstance(content, bytes) else Path(content).read_bytes()
                self.files[operation.path_in_repo] = content
            else:
                del self.files[operation.path_in_repo]


@pytest.fixture(params=["folder", "branch", "space"])
def place(request, tmp_path, monkeypatch):
    """A target: how to make it, what is there, and how somebody else writes to it."""
    if request.param == "folder":
        path = tmp_path / "www"

        def write(name, text):
            path.mkdir(exist_ok=True)
            (path / name).write_text(text)

        return SimpleNamespace(
            target=lambda: Folder(path), write=write,
            files=lambda: {p.relative_to(path).as_posix(): p.read_text() for p in path.rglob("*") if p.is_file()},
        )  # fmt: skip
    if request.param == "space":
        (tmp_path / "hub").mkdir()
        hub = Hub(tmp_path / "hub")
        return SimpleNamespace(
            target=lambda: Space("org/name", hub), write=lambda name, text: hub.files.update({name: text.encode()}),
            files=lambda: {n: c.decode() for n, c in hub.files.items() if n != "README.md"},
        )  # fmt: skip
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "a@example.org")
    git(tmp_path, "init", "-q", "--bare", "remote")
    git(tmp_path, "init", "-q", "work")
    git(tmp_path / "work", "remote", "add", "origin", str(tmp_path / "remote"))

    def commit(name, text):
        other = tmp_path / f"other-{len(list(tmp_path.iterdir()))}"
        git(tmp_path, "clone", "-q", "remote", other.name)
        there = "gh-pages" in git(other, "branch", "-r")
        git(other, "switch", "-q", *([] if there else ["--orphan"]), "gh-pages")
        (other / name).write_text(text)
        git(other, "add", "-A")
        git(other, "commit", "-qm", "mine")
        git(other, "push", "-q", "origin", "gh-pages")

    def files():
        names = git(tmp_path / "remote", "ls-tree", "-r", "--name-only", "gh-pages").split()
        return {n: git(tmp_path / "remote", "show", f"gh-pages:{n}") for n in names if n != ".nojekyll"}

    return SimpleNamespace(target=lambda: Branch(tmp_path / "work"), write=commit, files=files)


def test_a_site_is_published_replaced_and_taken_back_without_touching_others_files(place, tmp_path):
    place.write("CNAME", "example.org")
    old = site(tmp_path / "old", gone="gone")
    changes, where = publish(old, place.target())
    assert len(changes.added) == 4
    assert where
    listed = json.loads(place.files()[LISTED])["files"]
    assert set(listed) == {"index.html", "gone.html", "site.js", "b/tofu.html"}
    assert publish(old, place.target())[0].none

    new = site(tmp_path / "new", index="second", fresh="fresh")
    before = place.files()
    planned, where = publish(new, place.target(), dry_run=True)
    assert (planned.added, planned.replaced, planned.removed) == (("fresh.html",), ("index.html",), ("gone.html",))
    assert where == ""
    assert place.files() == before
    assert publish(new, place.target())[0] == planned
    after = place.files()
    assert {name: text for name, text in after.items() if name != LISTED} == {
        "CNAME": "example.org", "index.html": "second", "fresh.html": "fresh", "site.js": "", "b/tofu.html": "rows"
    }  # fmt: skip


def test_a_file_that_somebody_wrote_is_neither_replaced_nor_removed(place, tmp_path):
    place.write("index.html", "theirs")
    with pytest.raises(UsageError, match="which was not published from here"):
        publish(site(tmp_path / "site"), place.target())
    assert place.files() == {"index.html": "theirs"}


def test_of_a_space_nothing_is_downloaded_but_the_list(tmp_path):
    hub = Hub(tmp_path)
    publish(site(tmp_path / "old", gone="gone"), Space("org/name", hub))
    assert hub.taken == [], "there was nothing"
    changes, _ = publish(site(tmp_path / "new", index="second"), Space("org/name", hub))
    assert (changes.replaced, changes.removed, changes.same) == (("index.html",), ("gone.html",), 2)
    assert hub.taken == [LISTED]


def test_a_file_that_somebody_wrote_and_that_is_the_same_is_taken_over(place, tmp_path):
    place.write("index.html", "first")
    changes, _ = publish(site(tmp_path / "site"), place.target())
    assert (changes.added, changes.same) == (("b/tofu.html", "site.js"), 1)


def test_a_published_file_that_was_changed_since_stays_when_its_page_is_gone(place, tmp_path):
    publish(site(tmp_path / "old", gone="gone"), place.target())
    place.write("gone.html", "edited by hand")
    changes, _ = publish(site(tmp_path / "new", index="second"), place.target())
    assert changes.removed == ()
    assert place.files()["gone.html"] == "edited by hand"


def test_a_folder_is_never_seen_half_published(tmp_path, monkeypatch):
    from unlearnbench.leaderboard import publishing

    www = tmp_path / "www"
    publish(site(tmp_path / "old"), Folder(www))
    (www / "mine.txt").write_text("mine")
    seen = []
    exchange = publishing._exchange
    monkeypatch.setattr(publishing, "_exchange", lambda one, other: (seen.append((www / "index.html").read_text()),
                                                                    exchange(one, other)))  # fmt: skip
    publish(site(tmp_path / "new", index="second"), Folder(www))
    assert seen == ["first"], "until the switch the old site stands whole"
    assert (www / "index.html").read_text() == "second"
    assert (www / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "www"], "nothing is left beside it"


def test_a_publication_that_fails_leaves_the_old_site(tmp_path, monkeypatch):
    from unlearnbench.leaderboard import publishing

    www = tmp_path / "www"
    publish(site(tmp_path / "old"), Folder(www))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        publish(site(tmp_path / "new", index="second"), Folder(www))
    assert (www / "index.html").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "www"]


@pytest.mark.parametrize("text", ["ftp:x", "dir:", "hf-space:name", "hf-space:/x", "gh-pages:x", ""])
def test_a_target_that_is_none_is_refused_with_the_forms_there_are(text):
    with pytest.raises(UsageError, match="expected dir:PATH, gh-pages or hf-space:ORG/NAME"):
        target_of(text)


def test_a_folder_without_pages_and_a_folder_outside_git_are_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no pages"):
        publish(tmp_path, Folder(tmp_path / "www"))
    with pytest.raises(UsageError, match="needs a git repository with a remote origin"):
        Branch(tmp_path)


def test_the_command_says_what_it_did(command, tmp_path):
    source = site(tmp_path / "site")
    done = command("publish", str(source), "--to", f"dir:{tmp_path / 'www'}", "--dry-run")
    assert (done.code, (tmp_path / "www").exists()) == (0, False)
    assert "+ index.html" in done.out
    assert "nothing written" in done.out
    done = command("publish", str(source), "--to", f"dir:{tmp_path / 'www'}", "--json")
    assert json.loads(done.out)["added"] == ["b/tofu.html", "index.html", "site.js"]
