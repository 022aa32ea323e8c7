"""The specs of MUSE-News: one request to forget, larger requests, or several in turn."""

from __future__ import annotations

from collections.abc import Iterator

from unlearnbench import BenchmarkSpec, DataSpec, parameters_of

from .metric_list import metrics
from .settings import Settings
from .tables import DISPENSABLE, FOLDS, RETAIN, seen_tables, table_fields

# raw/forget has 889 texts of about 900 tokens, the original model's forget corpus four times as many.
TEXTS = 889
TOKENS = 900
RETAIN_TEXTS = 4 * TEXTS


def specs(published: str) -> Iterator[BenchmarkSpec]:
    """The spec of every variant; ``published`` names the function that returns hashes of the published rows."""
    yield _spec("muse-news", "", 1, "MUSE-News: forgetting news articles", published)
    for k in FOLDS[1:]:
        summary = f"MUSE-News, scalability: {k} quarters of the articles at once"
        yield _spec(f"muse-news-scal-{k}", "scal", k, summary, published)
    for k in FOLDS[1:]:
        summary = f"MUSE-News, sustainability: {k} requests, one after another"
        yield _spec(f"muse-news-sust-{k}", "sust", k, summary, published)


def _spec(name: str, study: str, step: int, summary: str, published: str) -> BenchmarkSpec:
    tables = table_fields(study, step)
    return BenchmarkSpec(
        name=name,
        version="2",
        target="unlearnbench.benchmarks.muse.benchmark:MuseNews",
        summary=summary,
        metrics=metrics(),
        data=DataSpec(
            tables=tables,
            hub="muse-bench/MUSE-News",
            may_be_missing=DISPENSABLE,
            licence="CC BY 4.0",
            generator="unlearnbench.benchmarks.muse.generated:tables",
            check="unlearnbench.benchmarks.muse.tables:check",
        ),
        vocabulary=tuple(tables),
        training={"original": (*seen_tables(study), *RETAIN), "retained": RETAIN},
        parameters=parameters_of(Settings),
        evaluation_parameters=("limit", "verbatim_tokens", "answer_tokens", "gradient_norms"),
        fixed={"study": study, "step": step},
        workload=_workload(study, step),
        citation="Shi et al. 2024, arXiv:2407.06460",
        reading="VerbMem and KnowMem say what of the forgotten articles the model still writes or knows, KnowMem on "
        "the retain set what is left of the others, and PrivLeak, best at 0, whether it shows that they were there.",
        forget_parts=("verbmem_f", "knowmem_f"),
        samples="redacted",
        questions="unlearnbench.benchmarks.muse.tables:questions",
        published=published,
        scoring=("unlearnbench.benchmarks.muse.metric_list",),
        log_readers={"muse-log": "unlearnbench.benchmarks.muse.logs:read"} if not study else {},
    )


def _workload(study: str, step: int) -> dict[str, float]:
    seen = TEXTS * (4 if study else 1)
    forget = TEXTS * (step if study else 1)
    return {
        "original": (seen + RETAIN_TEXTS) * TOKENS,
        "retained": RETAIN_TEXTS * TOKENS,
        "forget": forget * TOKENS,
        "row": 2048,
        "scored": 200 * 1800,
        "questions": 300,
        "prompts": 100 * 800 + 200 * 25,
        "generated": 100 * 128 + 200 * 32,
    }
