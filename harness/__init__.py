"""A benchmark-and-evaluation harness for unlearning in large language models.

What plugin authors need, in one place. Names are imported when they are first used, so that a plugin which only
lists what it offers never imports torch.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batches import Rows, collate
    from .context import Context, Preparation
    from .descent import Batch, Descent, Term
    from .domain import (
        API_VERSION,
        IGNORE,
        Benchmark,
        Example,
        Measurement,
        Method,
        Metric,
        Requires,
        Score,
        Task,
        UnlearningData,
    )
    from .errors import Diverged, HarnessError, NotApplicable
    from .generation import greedy
    from .hookspecs import hookimpl
    from .hyperparameters import Training, hyperparameter
    from .logprobs import answer_logits, answer_logprobs, sequence_logprob
    from .scoring import likelihoods
    from .specs import BenchmarkSpec, DataSpec, ExecutorSpec, MethodSpec, ModelSpec, Parameter, ReporterSpec
    from .statistics import mean_score

if os.path.expanduser("~") == "~":
    # A container's user may have no home, without which nltk does not import and others make a folder called "~".
    os.environ["HOME"] = tempfile.gettempdir()

_HOMES = {
    "batches": ("Rows", "collate"),
    "context": ("Context", "Preparation"),
    "descent": ("Batch", "Descent", "Term"),
    "domain": (
        "API_VERSION", "IGNORE", "Benchmark", "Example", "Measurement", "Method", "Metric", "Requires", "Score",
        "Task", "UnlearningData",
    ),
    "errors": ("Diverged", "HarnessError", "NotApplicable"),
    "generation": ("greedy",),
    "hookspecs": ("hookimpl",),
    "hyperparameters": ("Training", "hyperparameter"),
    "logprobs": ("answer_logits", "answer_logprobs", "sequence_logprob"),
    "scoring": ("likelihoods",),
    "specs": (
        "BenchmarkSpec", "DataSpec", "ExecutorSpec", "MethodSpec", "ModelSpec", "Parameter", "ReporterSpec",
    ),
    "statistics": ("mean_score",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "API_VERSION",
    "IGNORE",
    "Batch",
    "Benchmark",
    "BenchmarkSpec",
    "Context",
    "DataSpec",
    "Descent",
    "Diverged",
    "Example",
    "ExecutorSpec",
    "HarnessError",
    "Measurement",
    "Method",
    "MethodSpec",
    "Metric",
    "ModelSpec",
    "NotApplicable",
    "Parameter",
    "Preparation",
    "ReporterSpec",
    "Requires",
    "Rows",
    "Score",
    "Task",
    "Term",
    "Training",
    "UnlearningData",
    "answer_logits",
    "answer_logprobs",
    "collate",
    "greedy",
    "hookimpl",
    "hyperparameter",
    "likelihoods",
    "mean_score",
    "sequence_logprob",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'unlearnbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
