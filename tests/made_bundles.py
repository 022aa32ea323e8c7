"""Bundles that somebody changed, with the manifest's hashes made to fit."""

from __future__ import annotations

import hashlib
import json
import zipfile


def changed(bundle, path, change):
    """A copy of the bundle whose files ``change`` has edited, with the manifest's hashes made to fit."""
    with zipfile.ZipFile(bundle) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = {
        name: {"sha256": sha256(content), "bytes": len(content)}
        for name, content in files.items() if name != "manifest.json"
    }  # fmt: skip
    files["manifest.json"] = json.dumps(manifest).encode()
    return zipped(path, files)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def of_cell(files, method, name):
    return next(path for path in files if path.startswith(f"cells/{method}--") and path.endswith(name))


def edited(files, path, edit):
    content = json.loads(files[path])
    edit(content)
    files[path] = json.dumps(content).encode()
