"""Which source code a result depends on, as a hash: an edited file never meets a stale cell."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# The harness modules whose code can change a number.
ENGINE = tuple(
    "batches cells context descent divergences generation hyperparameters logprobs models prompts scoring statistics "
    "tables text".split()
)


def source_digest(target: str) -> str:
    """SHA-256 over the module of ``"pkg.mod:Name"`` and what it imports from its own top-level package.

    The harness itself is left out: ``engine_digest`` covers it.
    """
    module = target.partition(":")[0]
    seen: dict[str, bytes] = {}
    _follow(module, module.partition(".")[0], seen)
    return _joined(seen)


@cache
def engine_digest() -> str:
    """SHA-256 over the harness modules that compute."""
    folder = Path(__file__).parent
    return _joined({name: (folder / f"{name}.py").read_bytes() for name in ENGINE})


def _joined(sources: dict[str, bytes]) -> str:
    total = hashlib.sha256()
    for name in sorted(sources):
        total.update(name.encode() + b"\0" + hashlib.sha256(sources[name]).digest())
    return total.hexdigest()


def _follow(module: str, top: str, seen: dict[str, bytes]) -> None:
    if module in seen or module.partition(".")[0] != top or _is_harness(module):
        return
    path = _file_of(module)
    if path is None:
        return
    seen[module] = path.read_bytes()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for base, names in _imported(ast.parse(seen[module]), package):
        _follow(base, top, seen)
        # ``from package import module``; asking for a member of a plain module would import that module.
        found = _file_of(base) if base.partition(".")[0] == top and not _is_harness(base) else None
        if found and found.name == "__init__.py":
            for name in names:
                _follow(f"{base}.{name}", top, seen)


def _is_harness(module: str) -> bool:
    parts = module.split(".")
    return parts[0] == "unlearnbench" and (len(parts) == 1 or parts[1] not in ("methods", "benchmarks"))


def _imported(tree: ast.AST, package: str) -> Iterator[tuple[str, list[str]]]:
    """The modules a file imports, as absolute names, with what it takes from each."""
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
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(found.origin) if found and found.origin and found.origin.endswith(".py") else None
