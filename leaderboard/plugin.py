"""The built-in reporters."""

from __future__ import annotations

from unlearnbench.plugin.specs import ReporterSpec


def unlearnbench_reporters() -> list[ReporterSpec]:
    return [
        ReporterSpec("html", "unlearnbench.leaderboard.render:render", "static pages that open without a network"),
    ]
