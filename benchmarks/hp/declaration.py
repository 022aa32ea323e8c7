"""The spec of the benchmark that forgets a book."""

from __future__ import annotations

from unlearnbench import BenchmarkSpec, DataSpec, parameters_of

from .metric_list import metrics
from .settings import Settings
from .tables import ELSEWHERE, FIELDS, OPTIONAL, RELEASED, REMEDY


def spec() -> BenchmarkSpec:
    """The only spec; the user names the book."""
    return BenchmarkSpec(
        name="hp",
        version="2",
        target="unlearnbench.benchmarks.hp.benchmark:ForgottenBook",
        summary="Forgetting a book that the user names, as Harry Potter is forgotten in the FLAT paper",
        metrics=metrics(),
        data=DataSpec(
            tables=FIELDS,
            hub_tables=ELSEWHERE,
            optional=OPTIONAL,
            licence="the book's own",
            generator="unlearnbench.benchmarks.hp.generated:tables",
            check="unlearnbench.benchmarks.hp.tables:check",
            remedy=REMEDY,
        ),
        vocabulary=tuple(FIELDS),
        packages=("lm-eval",),
        scoring=("unlearnbench.benchmarks.hp.metric_list",),
        training={"original": ("book", RELEASED, "retain"), "retained": ("retain",)},
        parameters=parameters_of(Settings),
        evaluation_parameters=(
            "limit",
            "max_new_tokens",
            "released_tokens",
            "tasks",
            "excerpts",
            "prefix_words",
            "response_words",
        ),
        recipe={"epochs": 10},
        # 400 chunks of 512 tokens; Wikitext-2 and the nine tasks have about 5.5 million tokens.
        workload={
            "original": 400 * 512,
            "retained": 0,
            "forget": 400 * 512,
            "row": 512,
            "scored": 5.5e6,
            "questions": 600,
            "prompts": 600 * 300,
            "generated": 600 * 300,
        },
        citation="Wang et al. 2025, arXiv:2410.11143",
        reading="FQ Gap says how far the model's continuations of the book are from those of a model that never read "
        "it; perplexity and accuracy what is left of its language and knowledge.",
        forget_parts=("excerpts",),
        samples="redacted",
    )
