"""The built-in benchmarks, as specs. A contract test holds each spec against its class."""

from __future__ import annotations

from unlearnbench.specs import BenchmarkSpec, DataSpec, Parameter

from .muse import declaration as muse_declaration
from .muse import tables as muse_tables
from .tofu import declaration, tables

# Name, study and step: one request, larger requests, or several in turn.
MUSE_VARIANTS = (
    ("muse-news", "", 1, "MUSE-News: forgetting news articles"),
    *((f"muse-news-scal-{k}", "scal", k, f"MUSE-News, scalability: {k} quarters of the articles at once")
      for k in muse_tables.FOLDS[1:]),
    *((f"muse-news-sust-{k}", "sust", k, f"MUSE-News, sustainability: {k} requests, one after another")
      for k in muse_tables.FOLDS[1:]),
)  # fmt: skip
TOFU_SPLITS = (("forget01", "retain99", "1 %"), ("forget05", "retain95", "5 %"), ("forget10", "retain90", "10 %"))


def unlearnbench_benchmarks() -> list[BenchmarkSpec]:
    return [*(_tofu(*split) for split in TOFU_SPLITS), *(_muse(*variant) for variant in MUSE_VARIANTS)]


def _tofu(forget: str, retain: str, share: str) -> BenchmarkSpec:
    return BenchmarkSpec(
        name=f"tofu-{forget}",
        target="unlearnbench.benchmarks.tofu.benchmark:Tofu",
        summary=f"TOFU: forgetting {share} of 200 fictitious authors",
        metrics=declaration.metrics(),
        data=DataSpec(
            tables=tables.table_fields(forget, retain),
            hub="locuslab/TOFU",
            licence="MIT",
            generator="unlearnbench.benchmarks.tofu.generated:tables",
            check="unlearnbench.benchmarks.tofu.tables:check",
        ),
        training={"original": "full", "retained": retain},
        parameters=(
            Parameter("limit", int, 0, "score the first rows of each part; 0 scores all", low=0),
            Parameter("max_new_tokens", int, 200, "cap on a generated answer", low=1),
            Parameter("retain_limit", int, 0, "train on the first retain rows only; 0 takes all", low=0),
        ),
        evaluation_parameters=("limit", "max_new_tokens"),
        fixed={"forget_split": forget},
        citation="Maini et al. 2024, arXiv:2401.06121",
        log_readers={"tofu-log": "unlearnbench.benchmarks.tofu.logs:read"},
    )


def _muse(name: str, study: str, step: int, summary: str) -> BenchmarkSpec:
    retain = muse_tables.RETAIN
    return BenchmarkSpec(
        name=name,
        target="unlearnbench.benchmarks.muse.benchmark:MuseNews",
        summary=summary,
        metrics=muse_declaration.metrics(),
        data=DataSpec(
            tables=muse_tables.table_fields(study, step),
            hub="muse-bench/MUSE-News",
            dispensable=muse_tables.DISPENSABLE,
            licence="CC BY 4.0",
            generator="unlearnbench.benchmarks.muse.generated:tables",
            check="unlearnbench.benchmarks.muse.tables:check",
        ),
        training={"original": (*muse_tables.seen_tables(study), *retain), "retained": retain},
        parameters=(
            Parameter("limit", int, 0, "score the first rows of each part; 0 scores all", low=0),
            Parameter("verbatim_tokens", int, 128, "new tokens of a continuation, and tokens of its truth", low=1),
            Parameter("answer_tokens", int, 32, "new tokens of an answer", low=1),
            Parameter("chunk_tokens", int, 2048, "tokens of a training chunk, BOS included", low=8),
            Parameter("train_limit", int, 0, "train on the first texts of each table only; 0 takes all", low=0),
        ),
        evaluation_parameters=("limit", "verbatim_tokens", "answer_tokens"),
        fixed={"study": study, "step": step},
        citation="Shi et al. 2024, arXiv:2407.06460",
        samples="redacted",
        log_readers={"muse-log": "unlearnbench.benchmarks.muse.logs:read"} if not study else {},
    )
