"""The built-in benchmarks, as specs. A contract test holds each spec against its class."""

from __future__ import annotations

from unlearnbench import BenchmarkSpec, DataSpec, Parameter

from .hp import declaration as hp_declaration
from .hp import tables as hp_tables
from .muse import declaration as muse_declaration
from .muse import tables as muse_tables
from .tofu import declaration, tables

PUBLISHED = "unlearnbench.benchmarks.pins:published"
# Name, study and step: one request, larger requests, or several in turn.
MUSE_VARIANTS = (
    ("muse-news", "", 1, "MUSE-News: forgetting news articles"),
    *((f"muse-news-scal-{k}", "scal", k, f"MUSE-News, scalability: {k} quarters of the articles at once")
      for k in muse_tables.FOLDS[1:]),
    *((f"muse-news-sust-{k}", "sust", k, f"MUSE-News, sustainability: {k} requests, one after another")
      for k in muse_tables.FOLDS[1:]),
)  # fmt: skip
# Forget and retain split, rows to forget, and their share.
TOFU_SPLITS = (
    ("forget01", "retain99", 40, "1 %"),
    ("forget05", "retain95", 200, "5 %"),
    ("forget10", "retain90", 400, "10 %"),
)


def unlearnbench_benchmarks() -> list[BenchmarkSpec]:
    return [*(_tofu(*split) for split in TOFU_SPLITS), *(_muse(*variant) for variant in MUSE_VARIANTS), _hp()]


def _tofu(forget: str, retain: str, rows: int, share: str) -> BenchmarkSpec:
    return BenchmarkSpec(
        name=f"tofu-{forget}",
        target="unlearnbench.benchmarks.tofu.benchmark:Tofu",
        summary=f"TOFU: forgetting {share} of 200 fictitious authors",
        metrics=declaration.metrics(),
        data=DataSpec(
            tables=tables.table_fields(forget, retain),
            hub="locuslab/TOFU",
            optional=("general",),
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
        workload=_tofu_workload(rows),
        citation="Maini et al. 2024, arXiv:2401.06121",
        questions="unlearnbench.benchmarks.tofu.tables:questions",
        published=PUBLISHED,
        scoring=("unlearnbench.benchmarks.tofu.declaration", "unlearnbench.benchmarks.tofu.metrics"),
        log_readers={"tofu-log": "unlearnbench.benchmarks.tofu.logs:read"},
    )


def _tofu_workload(rows: int) -> dict[str, float]:
    """About 60 tokens a row with its question; seven answers of forget and retain rows are scored, four of others."""
    row, asked = 60, rows + 400
    return {"original": 4000 * row, "retained": (4000 - rows) * row, "forget": rows * row, "row": row,
            "scored": (7 * asked + 4 * 217) * row, "questions": asked + 217, "prompts": (asked + 217) * 20,
            "generated": (asked + 217) * 45}  # fmt: skip


# 889 texts of about 900 tokens in raw/forget, four times that in the original model's forget corpus.
MUSE_TEXTS = 889
MUSE_TOKENS = 900
MUSE_RETAIN = 4 * MUSE_TEXTS


def _muse_workload(study: str, step: int) -> dict[str, float]:
    seen = MUSE_TEXTS * (4 if study else 1)
    forget = MUSE_TEXTS * (step if study else 1)
    return {"original": (seen + MUSE_RETAIN) * MUSE_TOKENS, "retained": MUSE_RETAIN * MUSE_TOKENS,
            "forget": forget * MUSE_TOKENS, "row": 2048, "scored": 200 * 1800, "questions": 300,
            "prompts": 100 * 800 + 200 * 25, "generated": 100 * 128 + 200 * 32}  # fmt: skip


# 400 chunks of 512 tokens; Wikitext-2 and the nine tasks are about 5.5 million tokens.
HP_WORKLOAD = {"original": 400 * 512, "retained": 0, "forget": 400 * 512, "row": 512, "scored": 5.5e6,
               "questions": 600, "prompts": 600 * 300, "generated": 600 * 300}  # fmt: skip


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
            may_be_missing=muse_tables.DISPENSABLE,
            licence="CC BY 4.0",
            generator="unlearnbench.benchmarks.muse.generated:tables",
            check="unlearnbench.benchmarks.muse.tables:check",
        ),
        vocabulary=tuple(muse_tables.table_fields(study, step)),
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
        workload=_muse_workload(study, step),
        citation="Shi et al. 2024, arXiv:2407.06460",
        samples="redacted",
        questions="unlearnbench.benchmarks.muse.tables:questions",
        published=PUBLISHED,
        scoring=("unlearnbench.benchmarks.muse.declaration",),
        log_readers={"muse-log": "unlearnbench.benchmarks.muse.logs:read"} if not study else {},
    )


def _hp() -> BenchmarkSpec:
    return BenchmarkSpec(
        name="hp",
        target="unlearnbench.benchmarks.hp.benchmark:ForgottenBook",
        summary="Forgetting a book that the user names, as Harry Potter is forgotten in the FLAT paper",
        metrics=hp_declaration.metrics(),
        data=DataSpec(
            tables=hp_tables.FIELDS,
            hub_tables=hp_tables.ELSEWHERE,
            optional=hp_tables.OPTIONAL,
            licence="the book's own",
            generator="unlearnbench.benchmarks.hp.generated:tables",
            check="unlearnbench.benchmarks.hp.tables:check",
            remedy=hp_tables.REMEDY,
        ),
        vocabulary=tuple(hp_tables.FIELDS),
        packages=("lm-eval",),
        scoring=("unlearnbench.benchmarks.hp.declaration",),
        training={"original": ("book", hp_tables.RELEASED, "retain"), "retained": ("retain",)},
        parameters=(
            Parameter("limit", int, 0, "score the first rows of each part; 0 scores all", low=0),
            Parameter("max_new_tokens", int, 300, "cap on a continuation", low=1),
            Parameter("released_tokens", int, 600, "as-released: tokens of prompt and continuation together", low=2),
            Parameter("tasks", str, "auto", "perplexity and accuracy by lm-eval's hub tasks, or local ones",
                      choices=hp_declaration.TASK_SETS),
            Parameter("chunks", int, 400, "chunks of the book to forget, and of the other text to retain", low=1),
            Parameter("chunk_tokens", int, 512, "tokens of a chunk at most", low=8),
            Parameter("excerpts", int, 300, "excerpts of the forgotten chunks that are asked", low=1),
            Parameter("prefix_words", int, 200, "words of an excerpt's prompt", low=1),
            Parameter("response_words", int, 200, "words of its continuation", low=1),
        ),
        evaluation_parameters=("limit", "max_new_tokens", "released_tokens", "tasks", "excerpts", "prefix_words",
                               "response_words"),
        recipe={"epochs": 10},
        workload=HP_WORKLOAD,
        citation="Wang et al. 2025, arXiv:2410.11143",
        samples="redacted",
    )  # fmt: skip
