"""A loopback stand-in for the Hugging Face Hub, for tests that exercise the real client libraries.

`FakeHub(root)` serves the repositories in `root/models/<owner>/<name>/` and
`root/datasets/<owner>/<name>/`, read-only. Each has one branch, `main`, and one commit, whose id
is a digest of the folder's present content: rewriting a file publishes a new commit and retires
the old one. The client runs in a process of its own, as it reads these variables at import:
HF_ENDPOINT=<hub.url>, HF_HOME=<empty folder>, HF_UPDATE_DOWNLOAD_COUNTS=0 (without which
`datasets` also calls S3), and no proxies.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

_REPO = r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)"
_API = re.compile(
    rf"/api/(?P<kind>models|datasets)/{_REPO}"
    r"(?:/(?P<verb>revision|tree)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?"
)
_FILE = re.compile(rf"/(?:(?P<kind>datasets)/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Request(NamedTuple):
    """A request as received, query included, and the status it was answered with."""

    method: str
    path: str
    status: int


class _HubError(Exception):
    """A 404 in the Hub's terms; `code` is its X-Error-Code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class FakeHub:
    """Context manager serving `root` at `url`; `requests` records what was asked, in order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[Request] = []
        hub = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                self.answer(hub)

            do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        # Leaving waits for the loop to come round, hence the short poll.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, kind: str, repo: str) -> str:
        """The commit id of `<owner>/<name>`; `kind` is "models" or "datasets"."""
        lines = [f"{name} {_oid(path)}\n" for name, path in self._entries(kind, repo).items()]
        return hashlib.sha1("".join(lines).encode()).hexdigest()

    def _entries(self, kind: str, repo: str) -> dict[str, Path]:
        """The files and folders of a repository, keyed by their path within it."""
        folder = self.root / kind / repo
        if not folder.is_dir():
            raise _HubError("RepoNotFound", "Repository not found")
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}

    def _answer(self, target: str, headers: dict[str, str]) -> bytes:
        """The body for a request; `headers` is added to, also on the way to an error."""
        url = urlsplit(target)
        match = _API.fullmatch(url.path) or _FILE.fullmatch(url.path)
        if match is None:
            raise _HubError("NotFound", "Not served by FakeHub")
        part = match.groupdict()
        kind, repo, path = part["kind"] or "models", part["repo"], unquote(part["path"] or "")
        entries, commit = self._entries(kind, repo), self.commit(kind, repo)
        if part["revision"] not in (None, "main", commit):
            raise _HubError("RevisionNotFound", f"Invalid rev id: {part['revision']}")
        headers["X-Repo-Commit"] = commit
        if match.re is _FILE:
            if path not in entries or entries[path].is_dir():
                raise _HubError("EntryNotFound", "Entry not found")
            headers["ETag"] = f'"{_oid(entries[path])}"'
            return entries[path].read_bytes()
        if part["verb"] == "tree":
            if path and (path not in entries or entries[path].is_file()):
                raise _HubError("EntryNotFound", f"{path!a} does not exist on {commit}")
            inside = path and f"{path}/"
            deep = parse_qs(url.query).get("recursive") == ["true"]
            listed = [name for name in entries if name.startswith(inside)]
            listed = [name for name in listed if deep or "/" not in name.removeprefix(inside)]
            return json.dumps([_info(name, entries[name]) for name in listed]).encode()
        siblings = [{"rfilename": name} for name, entry in entries.items() if entry.is_file()]
        return json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()


class _Handler(BaseHTTPRequestHandler):
    # Speaks HTTP/1.0, the default, so that no kept-alive connection outlives the server.
    timeout = 30

    def answer(self, hub: FakeHub) -> None:
        headers: dict[str, str] = {}
        try:
            status, body = 200, hub._answer(self.path, headers)
        except _HubError as error:
            status, body = 404, json.dumps({"error": str(error)}).encode()
            headers |= {"X-Error-Code": error.code, "X-Error-Message": str(error)}
        hub.requests.append(Request(self.command, self.path, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep stderr clean; `FakeHub.requests` is the log."""


def _oid(path: Path) -> str:
    """The git blob id of a file; a placeholder for a folder."""
    data = path.read_bytes() if path.is_file() else b""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _info(name: str, path: Path) -> dict[str, str | int]:
    kind, size = ("file", path.stat().st_size) if path.is_file() else ("directory", 0)
    return {"type": kind, "path": name, "oid": _oid(path), "size": size}
