"""The built-in benchmarks as a plugin. The folder of each family declares its specs."""

from __future__ import annotations

from unlearnbench import BenchmarkSpec

from .hp import declaration as hp
from .muse import declaration as muse
from .tofu import declaration as tofu

PUBLISHED = "unlearnbench.benchmarks.published_rows:published"


def unlearnbench_benchmarks() -> list[BenchmarkSpec]:
    return [*tofu.specs(PUBLISHED), *muse.specs(PUBLISHED), hp.spec()]
