"""Writes new plugin packages, small and complete, for ``unlearnbench new``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from ..errors import UsageError
from ..storage import as_storage_error

# The destination of each template; templates of a kind lie in its own folder, the others in ``common``.
FILES = {
    "common/pyproject.toml.in": "pyproject.toml",
    "common/workflow.yml.in": ".github/workflows/tests.yml",
    "{kind}/README.md.in": "README.md",
    "{kind}/{form}.py.in": "{module}.py",
    "{kind}/test_{form}.py.in": "tests/test_{module}.py",
}
WORDS = {"method": "An unlearning method", "benchmark": "A benchmark", "attack": "An attack on unlearned models"}
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def write_package(
    kind: Literal["method", "benchmark", "attack"], name: str, parent: Path, form: str = ""
) -> list[Path]:
    """Write an installable package for a method, benchmark or attack into ``parent/name``.

    Args:
        form: of a method, ``loss`` (the default), ``weights``, ``wrapper`` or ``prompt``.

    Raises:
        UsageError: the name is not lower-case words joined by hyphens, or the folder exists and is not empty.
    """
    if not NAME.fullmatch(name) or len(name) > 60:
        raise UsageError(f"{name!r} is no name for a {kind}: lower-case letters, digits and single hyphens, at most 60")
    folder = parent / name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; choose another name or remove it")
    module = name.replace("-", "_")
    words = {
        "name": name,
        "module": module,
        "class_name": "".join(word.capitalize() for word in name.split("-")),
        "summary": f"{WORDS[kind]} called {name}",
        "version": metadata.version("unlearnbench"),
    }
    try:
        return _written(
            folder, module, {"kind": kind, "form": form or ("loss" if kind == "method" else "plain")}, words
        )
    except OSError as error:
        raise as_storage_error(error, folder) from error


def _written(folder: Path, module: str, source_words: Mapping[str, str], words: Mapping[str, str]) -> list[Path]:
    written = []
    templates = files("unlearnbench.authoring").joinpath("templates")
    for source, target in FILES.items():
        text = templates.joinpath(*source.format(**source_words).split("/")).read_text(encoding="utf-8")
        path = folder / target.format(module=module)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(text).substitute(words), encoding="utf-8")
        written.append(path)
    return written
