"""The built-in reporters."""

from __future__ import annotations

from unlearnbench.plugin.parameters import Parameter
from unlearnbench.plugin.specs import ReporterSpec

from . import SHOWN


def unlearnbench_reporters() -> list[ReporterSpec]:
    return [
        ReporterSpec(
            "html",
            "unlearnbench.leaderboard.render:render",
            "static pages that open without a network",
            (
                Parameter("samples", int, SHOWN, "rows of each part on a cell's page, those that differ most", low=0),
                Parameter("records", bool, True, "offer all records as a download"),
            ),
        ),
        ReporterSpec(
            "every-eval-ever",
            "unlearnbench.leaderboard.exchange.every_eval_ever:render",
            "Every-Eval-Ever records (schema 0.3.0), public samples among them",
        ),
        ReporterSpec(
            "lm-eval",
            "unlearnbench.leaderboard.exchange.lm_eval_results:render",
            "results in the shape of lm-eval's JSON, a file for each cell",
        ),
        ReporterSpec(
            "model-card",
            "unlearnbench.leaderboard.exchange.model_card:render",
            "a hub model card with results, and .eval_results, for each unlearned model",
        ),
    ]
