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

# The destination of each template.
PACKAGE = {
    "common/pyproject.toml.in": "pyproject.toml",
    "common/workflow.yml.in": ".github/workflows/tests.yml",
    "{kind}/README.md.in": "README.md",
    "{kind}/{form}.py.in": "{module}.py",
    "{kind}/test_{form}.py.in": "tests/test_{module}.py",
}
LEADERBOARD = {
    "leaderboard/README.md.in": "README.md",
    "leaderboard/RULES.md.in": "RULES.md",
    "leaderboard/ERRATA.md.in": "ERRATA.md",
    "leaderboard/requirements.txt.in": "requirements.txt",
    "leaderboard/review.py.in": "review.py",
    "leaderboard/submissions.md.in": "submissions/README.md",
    "leaderboard/gitignore.in": ".gitignore",
    "leaderboard/review.yml.in": ".github/workflows/review.yml",
    "leaderboard/comment.yml.in": ".github/workflows/comment.yml",
    "leaderboard/publish.yml.in": ".github/workflows/publish.yml",
    "leaderboard/appeal.yml.in": ".github/ISSUE_TEMPLATE/appeal.yml",
    "leaderboard/pull_request_template.md.in": ".github/PULL_REQUEST_TEMPLATE.md",
}
WORDS = {"method": "An unlearning method", "benchmark": "A benchmark", "attack": "An attack on unlearned models"}
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def write_package(
    kind: Literal["method", "benchmark", "attack"], name: str, parent: Path, form: str = ""
) -> list[Path]:
    """Write an installable package for a method, benchmark or attack into ``parent/name``.

    Args:
        form: of a method, ``loss`` (the default), ``weights``, ``wrapper`` or ``prompt``; of a benchmark, ``plain``
            (the default) or ``judged``.

    Raises:
        UsageError: the name is not lower-case words joined by hyphens, or the folder exists and is not empty.
    """
    module = name.replace("-", "_")
    words = {
        "name": name,
        "module": module,
        "class_name": "".join(word.capitalize() for word in name.split("-")),
        "summary": f"{WORDS[kind]} called {name}",
    }
    where = {"kind": kind, "form": form or ("loss" if kind == "method" else "plain"), "module": module}
    paths = {source.format(**where): target.format(**where) for source, target in PACKAGE.items()}
    return _write(kind, name, parent, paths, words)


def write_leaderboard(name: str, parent: Path) -> list[Path]:
    """Write a repository for a leaderboard's bundles, with its rules and workflows, into ``parent/name``.

    Raises:
        UsageError: as ``write_package``.
    """
    return _write("leaderboard", name, parent, LEADERBOARD, {"title": name.replace("-", " ").capitalize()})


def _write(kind: str, name: str, parent: Path, paths: Mapping[str, str], words: Mapping[str, str]) -> list[Path]:
    """Fill templates with words and write them to their paths below ``parent/name``."""
    if not NAME.fullmatch(name) or len(name) > 60:
        raise UsageError(f"{name!r} is no name for a {kind}: lower-case letters, digits and single hyphens, at most 60")
    folder = parent / name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; choose another name or remove it")
    templates = files("unlearnbench.authoring").joinpath("templates")
    written = []
    try:
        for source, target in paths.items():
            text = templates.joinpath(*source.split("/")).read_text(encoding="utf-8")
            path = folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            filled = Template(text).substitute(words, version=metadata.version("unlearnbench"))
            path.write_text(filled, encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise as_storage_error(error, folder) from error
    return written
