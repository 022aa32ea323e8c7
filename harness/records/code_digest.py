"""Hashes of the source code that a result depends on, so that an edited file never reuses a stale cell."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from .provenance import versions

HARNESS = Path(__file__).parents[1]
ENGINE = tuple("_compat contracts data domain engine errors metrics plugin records storage training worker".split())
"""The modules and whole packages of the harness that a cell's process imports: any of them can change a number."""
NUMERICS = (
    "torch transformers tokenizers accelerate peft torchao datasets numpy scipy rouge-score nltk sacrebleu"
).split()
"""Distributions whose versions can change a number; rouge-score stems with nltk."""


def source_digest(target: str, beside: tuple[str, ...] = ()) -> str:
    """SHA-256 over the module of ``"pkg.mod:Name"`` and the modules of its own that it imports, except ``beside``.

    Its own are its top-level package, modules next to a single-file plugin, and our methods and benchmarks where it
    builds on them. ``engine_digest`` covers the harness itself.
    """
    module = target.partition(":")[0]
    seen = dict.fromkeys(beside, b"")
    _follow(module, _Origin(module), seen)
    return _joined(seen)


def modules_digest(names: Iterable[str]) -> str:
    """SHA-256 over the source of modules."""
    paths = {name: _file_of(name) for name in names}
    return _joined({name: path.read_bytes() for name, path in paths.items() if path})


@cache
def engine_digest() -> str:
    """SHA-256 over the harness modules that compute, and the versions of the libraries that they use."""
    root = HARNESS
    files = [path for name in ENGINE for path in (root / f"{name}.py", *(root / name).rglob("*.py")) if path.is_file()]
    sources = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
    return _joined({**sources, "versions": repr(versions(NUMERICS)).encode()})


def _joined(sources: dict[str, bytes]) -> str:
    total = hashlib.sha256()
    for name in sorted(sources):
        total.update(name.encode() + b"\0" + hashlib.sha256(sources[name]).digest())
    return total.hexdigest()


class _Origin:
    """Decides which modules count as the target's own."""

    def __init__(self, module: str) -> None:
        self._top = module.partition(".")[0]
        path = _file_of(module)
        beside = path is not None and "." not in module and path.parent.name not in ("site-packages", "dist-packages")
        self._folder = path.parent if path and beside else None

    def owns(self, module: str) -> bool:
        parts = module.split(".")
        if parts[0] == "unlearnbench":
            return len(parts) > 1 and parts[1] in ("methods", "benchmarks", "attacks")
        if parts[0] == self._top:
            return True
        beside = self._folder / parts[0] if self._folder else None
        return beside is not None and (beside.is_dir() or beside.with_suffix(".py").exists())


def _follow(module: str, origin: _Origin, seen: dict[str, bytes]) -> None:
    path = _file_of(module) if module not in seen and origin.owns(module) else None
    if path is None:
        return
    seen[module] = path.read_bytes()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for base, names in _imported(ast.parse(seen[module]), package):
        _follow(base, origin, seen)
        # ``from package import module``; looking up a member of a plain module would import that module.
        file = _file_of(base) if origin.owns(base) else None
        if file and file.name == "__init__.py":
            for name in names:
                _follow(f"{base}.{name}", origin, seen)


def _imported(tree: ast.AST, package: str) -> Iterator[tuple[str, list[str]]]:
    """The modules that a file imports, as absolute names, with the names that it takes from each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            yield base, [alias.name for alias in node.names]


def _file_of(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
