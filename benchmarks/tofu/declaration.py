"""The specs of TOFU, one for each forget split."""

from __future__ import annotations

from unlearnbench import BenchmarkSpec, DataSpec, Split, parameters_of

from .metric_list import metrics
from .settings import Settings
from .tables import RETAIN_SPLITS, table_fields


def specs(published: str) -> list[BenchmarkSpec]:
    """The spec of every split; ``published`` names the function that returns hashes of the published rows."""
    return [_spec(forget, retain, published) for forget, retain in RETAIN_SPLITS.items()]


def _spec(forget: str, retain: str, published: str) -> BenchmarkSpec:
    percent = int(forget.removeprefix("forget"))
    return BenchmarkSpec(
        name=f"tofu-{forget}",
        target="unlearnbench.benchmarks.tofu.benchmark:Tofu",
        version="2",
        summary=f"TOFU: forgetting {percent} % of 200 fictitious authors",
        metrics=metrics(),
        data=DataSpec(
            tables=table_fields(forget, retain),
            hub="locuslab/TOFU",
            optional=("general",),
            licence="MIT",
            generator="unlearnbench.benchmarks.tofu.generated:tables",
            check="unlearnbench.benchmarks.tofu.tables:check",
        ),
        training={"original": "full", "retained": retain},
        trained_besides=("general",),
        parameters=parameters_of(Settings),
        evaluation_parameters=("limit", "max_new_tokens"),
        fixed={"forget_split": forget},
        workload=_workload(percent),
        citation="Maini et al. 2024, arXiv:2401.06121",
        reading="FQ, a p-value, says whether the model can be told from one that never saw the forgotten authors "
        "(below 0.05 it can); MU what is left of the other authors, of real ones and of facts about the world; F-RL "
        "and R-RL how much of the truth stands in its answers about forgotten and about other authors.",
        questions="unlearnbench.benchmarks.tofu.tables:questions",
        published=published,
        split=Split(by={"forget": "author", "retain": "author"}),
        scoring=("unlearnbench.benchmarks.tofu.metric_list", "unlearnbench.benchmarks.tofu.metrics"),
        log_readers={"tofu-log": "unlearnbench.benchmarks.tofu.logs:read"},
    )


def _workload(percent: int) -> dict[str, float]:
    """About 60 tokens a row with its question; scoring reads seven answers of forget and retain rows, else four."""
    row, rows = 60, 40 * percent
    asked = rows + 400
    return {
        "original": 4000 * row,
        "retained": (4000 - rows) * row,
        "forget": rows * row,
        "row": row,
        "scored": (7 * asked + 4 * 217) * row,
        "questions": asked + 217,
        "prompts": (asked + 217) * 20,
        "generated": (asked + 217) * 45,
    }
