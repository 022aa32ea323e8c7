"""Model folders: prepared reference models in the cache, and the user's own. Imports no torch.

A damaged weight file may load silently as other weights, so every reader of a model checks its hash.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import ModelError, RecordError
from ..storage import digest, known_digest, read_sealed

REFERENCE = "reference.json"
"""Facts about a prepared model: its training or its publisher, notes, and the hashes of its files."""


REMEDY = "run the study again to prepare it anew"
# Endings of files in a model's folder that change no number.
IDLE = (".md", ".gitattributes", ".gitignore", ".png", ".jpg", ".jpeg", ".svg", ".pdf")


def prepared_folder(cache: str | Path, key: str) -> Path:
    """The folder of a prepared model in the cache."""
    return Path(cache) / "models" / key


def reference_facts(folder: Path) -> dict[str, Any]:
    """Facts about a prepared model, whose files are all checked against their hashes.

    Raises:
        RecordError: the model is missing or damaged.
    """
    facts = read_sealed(folder / REFERENCE, REMEDY)
    if facts.get("published"):
        if os.path.isdir(facts["published"]) and folder_fingerprint(facts["published"]) != facts["revision"]:
            raise RecordError(f"{facts['published']} changed since the study was planned; run the study again")
        return facts
    for name, expected in facts["files"].items():
        path = folder / name
        if not path.is_file() or known_digest(path) != expected:
            raise RecordError(f"{path} is {'damaged' if path.exists() else 'missing'}; {REMEDY}")
    return facts


def folder_fingerprint(folder: str, gguf_file: str = "") -> str:
    """SHA-256 over the model files in a folder, code and chat templates included.

    Raises:
        ModelError: a file cannot be read.
    """
    root = Path(folder)
    extra = sorted(path for path in (root / "additional_chat_templates").glob("*") if path.is_file())
    files = [*sorted(path for path in root.iterdir() if path.is_file()), *extra]
    if gguf_file:
        files = [path for path in files if path.name == gguf_file or not path.name.endswith(".gguf")]
    try:
        return digest(
            {
                str(path.relative_to(root)): known_digest(path)
                for path in files
                if not path.name.startswith(".") and not path.name.lower().endswith(IDLE)
            }
        )
    except OSError as error:
        raise ModelError(f"cannot read {error.filename!r}: {error.strerror}; make it readable") from error


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer in place of a file that was not fetched."""
    try:
        with path.open("rb") as file:
            return file.read(40).startswith(b"version https://git-lfs")
    except OSError:
        return False
