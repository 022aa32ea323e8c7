"""The built-in benchmarks, as specs. A contract test holds each spec against its class."""

from __future__ import annotations

from unlearnbench.specs import BenchmarkSpec, DataSpec, Parameter

from .tofu import declaration, tables

TOFU_SPLITS = (("forget01", "retain99", "1 %"), ("forget05", "retain95", "5 %"), ("forget10", "retain90", "10 %"))


def unlearnbench_benchmarks() -> list[BenchmarkSpec]:
    return [_tofu(*split) for split in TOFU_SPLITS]


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
