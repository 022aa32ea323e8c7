"""Fixtures for the tests of a plugin; pytest loads them where unlearnbench is installed.

``unlearnbench check`` uses the model and rows of ``tiny_model`` and ``tiny_benchmark``; ``plugin_tester`` runs that
check, and the command line, in a folder of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..contracts import Context, UnlearningData
    from ..data.encoder import Encoder
    from ..domain import Example, Requires
    from .conformance.checks import Check


@dataclass(frozen=True)
class TinyBenchmark:
    """Six rows to forget, six to retain, three refusals, and the arguments of ``unlearn`` for them."""

    encoder: Encoder
    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    templates: tuple[str, ...]

    def data(self, requires: Requires) -> UnlearningData:
        """The data of a method with these requirements."""
        from ..contracts import UnlearningData

        return UnlearningData("tested", requires, self.encoder, self.forget, self.retain, self.templates)

    def context(self, original: Any = None, seed: int = 0) -> Context:
        """A context on the CPU; give ``original`` to methods that require the original model."""
        from ..contracts import Context
        from ..engine.engine import Engine

        return Context("tested", seed, Engine(), lambda _: None, original=original)


@dataclass(frozen=True)
class Finished:
    """The outcome of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class PluginTester:
    """Plugins in a folder of their own."""

    folder: Path

    def write(self, name: str, source: str) -> Path:
        """Write a plugin file for ``check`` or ``run(..., "--plugin", str(path))``."""
        path = self.folder / name
        path.write_text(source, encoding="utf-8")
        return path

    def check(self, name: str, *plugins: Path) -> list[Check]:
        """Run the conformance checks of a method or benchmark; fail the test with the broken ones."""
        from ..plugin.registry import load_plugins
        from .conformance import check, checkable

        registry = load_plugins([str(path) for path in plugins])
        checks = list(check(checkable(registry, name)))
        broken = [f"{each.name}: {each.message}" for each in checks if not each.kept]
        if broken:
            pytest.fail(f"{name}: " + "; ".join(broken), pytrace=False)
        return checks

    def run(self, *words: str, timeout: float = 600) -> Finished:
        """Run ``unlearnbench`` with these arguments in the folder, with its cache there."""
        done = subprocess.run(
            [sys.executable, "-m", "unlearnbench", *words],
            cwd=self.folder,
            env={**os.environ, "UNLEARNBENCH_CACHE": str(self.folder / "cache")},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def tiny_model() -> Any:
    """A model of about 30,000 weights from a fixed seed."""
    from .conformance import trial

    return trial.tiny_model(trial.tiny_encoder())


@pytest.fixture
def tiny_benchmark() -> TinyBenchmark:
    """Rows to forget and to retain, with the encoder of ``tiny_model``."""
    from .conformance import trial

    return TinyBenchmark(trial.tiny_encoder(), trial.FORGET, trial.RETAIN, trial.TEMPLATES)


@pytest.fixture
def plugin_tester(tmp_path: Path) -> PluginTester:
    """Checks and runs plugins in a temporary folder."""
    return PluginTester(tmp_path)
