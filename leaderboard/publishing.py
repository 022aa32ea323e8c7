"""Putting a site where readers find it: a folder, a gh-pages branch, a Space on the Hugging Face hub.

Each target switches from the old site to the new one at once, and loses nothing that was not published from here:
the list of files that were, with their hashes and git's, lies in the target itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any, Protocol

from unlearnbench._compat import exchange
from unlearnbench.errors import UsageError
from unlearnbench.storage import file_digest

LISTED = ".unlearnbench-site.json"
"""The list of published files in a target."""


BRANCH = "gh-pages"
MADE = ".unlearnbench-pages.json"
"""The list of pages that a site's folder holds, made with them."""


@dataclass(frozen=True)
class Changes:
    """What publishing does to a target: names of files below it."""

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    removed: tuple[str, ...]
    same: int

    @property
    def none(self) -> bool:
        return not (self.added or self.replaced or self.removed)


class Target(Protocol):
    """Somewhere to publish to."""

    name: str

    def hashes(self, files: Mapping[str, Path]) -> Mapping[str, str]:
        """SHA-256 of every file that is there, by name; what is neither in ``files`` nor listed may be named otherwise.

        Args:
            files: what is to be published.
        """
        ...

    def listed(self) -> Mapping[str, str]:
        """The hashes of what was published there before; empty where nothing was."""
        ...

    def switch(self, files: Mapping[str, Path], removed: Iterable[str], listing: bytes) -> str:
        """Put the files there and take the others away, all at once; where the site is now."""
        ...


def publish(site: Path, target: Target, dry_run: bool = False) -> tuple[Changes, str]:
    """Publish a site's folder. Returns what changes, and where the site is (empty for a dry run).

    Raises:
        UsageError: the folder holds no site, or the target has a file of that name which was not published from here.
    """
    if not (site / "index.html").is_file() or not (site / "site.js").is_file():
        raise UsageError(f"{str(site)!r} holds no pages; make them with: unlearnbench render RUN -o {site}")
    files = {
        path.relative_to(site).as_posix(): path
        for path in sorted(site.rglob("*"))
        # The list of what was made here stays here.
        if path.is_file() and path.name != MADE
    }
    fresh = {name: file_digest(path) for name, path in files.items()}
    there, ours = target.hashes(files), target.listed()
    foreign = [name for name in fresh if name in there and there[name] != ours.get(name) and there[name] != fresh[name]]
    if foreign:
        raise UsageError(
            f"{target.name} has {foreign[0]} ({len(foreign)} such files), which was not published from here or was "
            "changed since; move it away or name another target"
        )
    # A file that was changed after it was published is somebody's: it stays.
    removed = tuple(name for name in ours if name not in fresh and there.get(name) == ours[name])
    changes = Changes(
        tuple(name for name in fresh if name not in there),
        tuple(name for name in fresh if name in there and there[name] != fresh[name]),
        removed,
        sum(there.get(name) == digest for name, digest in fresh.items()),
    )
    if dry_run or (changes.none and ours == fresh):
        return changes, ""
    listing = {"schema_version": 1, "files": fresh, "blobs": {name: _blob_of(path) for name, path in files.items()}}
    return changes, target.switch(files, removed, (json.dumps(listing, indent=1, sort_keys=True) + "\n").encode())


def target_of(text: str) -> Target:
    """The target that ``dir:PATH``, ``gh-pages`` or ``hf-space:ORG/NAME`` names. Raises UsageError."""
    kind, _, rest = text.partition(":")
    if kind == "dir" and rest:
        return Folder(Path(rest))
    if text == BRANCH:
        return Branch(Path())
    if kind == "hf-space" and rest.count("/") == 1 and all(rest.split("/")):
        return Space(rest)
    raise UsageError(f"--to {text!r}: expected dir:PATH, gh-pages or hf-space:ORG/NAME")


def _blob_of(path: Path) -> str:
    """Git's name of a file's content."""
    content = path.read_bytes()
    return sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _files_of(listing: bytes | None, where: str, table: str = "files") -> Mapping[str, str]:
    if listing is None:
        return {}
    try:
        files = json.loads(listing)[table]
        return {str(name): str(digest) for name, digest in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{where}/{LISTED} is broken; restore it, or move the folder away") from error


class Folder:
    """A folder that a web server serves. The new one is made beside it and takes its place in one step."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        if path.exists() and not path.is_dir():
            raise UsageError(f"{self.name!r} is not a folder")

    def hashes(self, files: Mapping[str, Path]) -> Mapping[str, str]:
        return {self._name(path): file_digest(path) for path in self.path.rglob("*") if path.is_file()}

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def listed(self) -> Mapping[str, str]:
        path = self.path / LISTED
        return _files_of(path.read_bytes() if path.is_file() else None, self.name)

    def switch(self, files: Mapping[str, Path], removed: Iterable[str], listing: bytes) -> str:
        gone, real = {*removed, LISTED}, self.path.resolve()
        real.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=real.parent, prefix=f".{real.name}."))
        try:
            fresh.chmod(0o755)
            for path in sorted(real.rglob("*")) if real.exists() else ():
                name = path.relative_to(real).as_posix()
                if name not in files and name not in gone:
                    _keep(path, fresh / name)
            for name, path in files.items():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, fresh / name)
            (fresh / LISTED).write_bytes(listing)
            if real.exists():
                _exchange(fresh, real)
            else:
                fresh.rename(real)
        finally:
            # After the exchange this is the old folder: what was not ours lives on in the new one.
            shutil.rmtree(fresh, ignore_errors=True)
        return str(real / "index.html")


def _keep(path: Path, there: Path) -> None:
    """A file of somebody else's in the new folder: the same one where the file system can, not a copy."""
    if path.is_symlink():
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(os.readlink(path))
    elif path.is_dir():
        if not any(path.iterdir()):
            there.mkdir(parents=True, exist_ok=True)
    else:
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, there)
        except OSError:
            shutil.copy2(path, there)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change names in one step; in two where the system cannot."""
    if exchange(one, other):
        return
    aside = other.with_name(f"{one.name}.old")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


class Branch:
    """The branch gh-pages of the repository around a folder, as its remote has it. The work tree is not touched."""

    def __init__(self, folder: Path, remote: str = "origin") -> None:
        self.folder, self.remote = folder, remote
        self.name = f"branch {BRANCH} of {remote}"
        try:
            self._git("rev-parse", "--git-dir")
            self._git("remote", "get-url", remote)
        except (UsageError, OSError) as error:
            raise UsageError(f"--to {BRANCH} needs a git repository with a remote {remote}: {error}") from error
        there = self._git("ls-remote", remote, f"refs/heads/{BRANCH}").split()
        self.commit = there[0].decode() if there else ""
        if self.commit:
            self._git("fetch", "--quiet", remote, self.commit)

    def _git(self, *words: str, given: bytes | None = None, index: str = "") -> bytes:
        done = subprocess.run(
            ["git", *words], cwd=self.folder, input=given, capture_output=True, check=False,
            env={**os.environ, **({"GIT_INDEX_FILE": index} if index else {})},
        )  # fmt: skip
        if done.returncode:
            raise UsageError(f"git {words[0]}: {done.stderr.decode(errors='replace').strip()[:300]}")
        return done.stdout

    def _blobs(self) -> Mapping[str, str]:
        if not self.commit:
            return {}
        lines = self._git("ls-tree", "-r", "-z", self.commit).decode("utf-8", "surrogateescape").split("\0")
        entries = [(name, *facts.split()) for facts, _, name in (line.partition("\t") for line in lines if line)]
        return {name: blob for name, _, kind, blob in entries if kind == "blob"}

    def hashes(self, files: Mapping[str, Path]) -> Mapping[str, str]:
        # One process for all files, which are many: each comes as a line that ends in its size, its bytes, a line end.
        blobs, found, at = self._blobs(), {}, 0
        content = self._git("cat-file", "--batch", given="".join(f"{blob}\n" for blob in blobs.values()).encode())
        for name in blobs:
            start = content.index(b"\n", at) + 1
            end = start + int(content[at:start].split()[2])
            found[name] = sha256(content[start:end]).hexdigest()
            at = end + 1
        return found

    def listed(self) -> Mapping[str, str]:
        blob = self._blobs().get(LISTED)
        return _files_of(self._git("cat-file", "blob", blob) if blob else None, self.name)

    def switch(self, files: Mapping[str, Path], removed: Iterable[str], listing: bytes) -> str:
        with tempfile.TemporaryDirectory(prefix="unlearnbench-") as folder:
            index = str(Path(folder) / "index")
            self._git("read-tree", self.commit or "--empty", index=index)
            none = "0" * 40
            entries = [f"0 {none}\t{name}" for name in removed]
            made_here = {LISTED: Path(folder) / "listing", ".nojekyll": Path(folder) / "nojekyll"}
            made_here[LISTED].write_bytes(listing)
            made_here[".nojekyll"].touch()
            contents = {name: str(path.resolve()) for name, path in {**files, **made_here}.items()}
            paths = "".join(f"{path}\n" for path in contents.values())
            blobs = self._git("hash-object", "-w", "--no-filters", "--stdin-paths", given=os.fsencode(paths)).split()
            entries += [f"100644 {blob.decode()}\t{name}" for name, blob in zip(contents, blobs, strict=True)]
            self._git("update-index", "-z", "--index-info", given="\0".join(entries).encode() + b"\0", index=index)
            tree = self._git("write-tree", index=index).decode().strip()
        parents = ["-p", self.commit] if self.commit else []
        made = self._git("commit-tree", tree, *parents, "-m", "Publish the leaderboard").decode().strip()
        # Without force: somebody who published in between is not overwritten.
        self._git("push", "--quiet", self.remote, f"{made}:refs/heads/{BRANCH}")
        return f"{self.name}, commit {made[:12]}"


class Space:
    """A static Space on the Hugging Face hub; one commit holds all changes. ``api`` is a ``huggingface_hub.HfApi``."""

    def __init__(self, repository: str, api: Any = None) -> None:
        self.repository, self.name = repository, f"Space {repository}"
        if api is None:
            from huggingface_hub import HfApi

            api = HfApi(library_name="unlearnbench")
        self.api = api
        self._there: dict[str, Any] = self._asked(self._files)
        self._listing: bytes | None = self._asked(self._list)

    def _asked(self, question: Any) -> Any:
        """What the hub answers; its errors in one line."""
        try:
            return question()
        except Exception as error:
            # Clients of several libraries lie below, each with errors of its own; none of them is ours.
            text = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{self.name} cannot be reached ({type(error).__name__}: {text}); log in with: hf auth login, or check "
                "the network"
            ) from error

    def _files(self) -> dict[str, Any]:
        """What the hub knows of every file."""
        from huggingface_hub.hf_api import RepoFile

        if not self.api.repo_exists(self.repository, repo_type="space"):
            return {}
        tree = self.api.list_repo_tree(self.repository, recursive=True, repo_type="space")
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def _list(self) -> bytes | None:
        if LISTED not in self._there:
            return None
        return Path(self.api.hf_hub_download(self.repository, LISTED, repo_type="space")).read_bytes()

    def hashes(self, files: Mapping[str, Path]) -> Mapping[str, str]:
        # The hub tells the SHA-256 of files in its large storage, and git's names of all others.
        blobs, listed = _files_of(self._listing, self.name, "blobs"), self.listed()
        known = {blob: listed[name] for name, blob in blobs.items() if name in listed}
        known |= {_blob_of(path): file_digest(path) for path in files.values()}
        return {
            name: entry.lfs.sha256 if entry.lfs else known.get(entry.blob_id, entry.blob_id)
            for name, entry in self._there.items()
        }

    def listed(self) -> Mapping[str, str]:
        return _files_of(self._listing, self.name)

    def switch(self, files: Mapping[str, Path], removed: Iterable[str], listing: bytes) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        operations.append(CommitOperationAdd(LISTED, listing))
        operations += [CommitOperationDelete(name) for name in removed]
        if "README.md" not in self._there:
            card = "---\ntitle: Unlearning leaderboard\nsdk: static\npinned: false\n---\n"
            operations.append(CommitOperationAdd("README.md", card.encode()))

        def commit() -> None:
            self.api.create_repo(self.repository, repo_type="space", space_sdk="static", exist_ok=True)
            self.api.create_commit(
                self.repository, operations, repo_type="space", commit_message="Publish the leaderboard"
            )

        self._asked(commit)
        return f"https://huggingface.co/spaces/{self.repository}"
