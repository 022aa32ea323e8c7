"""The built-in methods, in the order in which they are listed.

``specs.json`` holds what these specs say, for ``plugin.py``. After a change of a method's declarations it is written
anew: ``python -m unlearnbench.authoring.component_specs unlearnbench.methods.catalogue:specs methods/specs.json``.
"""

from __future__ import annotations

from unlearnbench import MethodSpec

from .dpo import DPO
from .flat import FLAT
from .ga import GradientAscent
from .gd import GradientDifference
from .kl import KLMinimization
from .llmu import LLMU
from .mismatch import Mismatch
from .npo import NPO, NPORetain
from .po import PreferenceOptimization
from .references import Original, Retained
from .task_vector import TaskVector
from .whp import WHP

METHODS = (
    Original,
    Retained,
    GradientAscent,
    GradientDifference,
    KLMinimization,
    PreferenceOptimization,
    Mismatch,
    LLMU,
    DPO,
    NPO,
    NPORetain,
    TaskVector,
    WHP,
)
# FLAT comes once for each divergence: its name, the value of the hyperparameter, and the word in its summary.
FLATS = (
    ("flat-tv", "total-variation", "Total Variation"),
    ("flat-js", "jensen-shannon", "Jensen-Shannon"),
    ("flat-pearson", "pearson", "Pearson"),
    ("flat-kl", "kl", "KL"),
)


def specs() -> list[MethodSpec]:
    """The spec of every built-in method, read from its class."""
    return [*(MethodSpec.of(method) for method in METHODS), *(_flat(*variant) for variant in FLATS)]


def _flat(name: str, divergence: str, label: str) -> MethodSpec:
    return MethodSpec.of(
        FLAT,
        name=name,
        summary=f"Maximises the {label} divergence between a template answer and the forget answer; "
        "needs only forget data.",
        fixed={"divergence": divergence},
    )
