"""The built-in attacks, in the order in which they are listed.

``specs.json`` holds what these specs say, for ``plugin.py``. After a change of an attack's declarations it is written
anew: ``python -m unlearnbench.authoring.component_specs unlearnbench.attacks.catalogue:specs attacks/specs.json``.
"""

from __future__ import annotations

from unlearnbench import AttackSpec

from .prune import Prune
from .quantise import NormalFloat, Quantise
from .questions import FewShot, Paraphrase, Prompt, Sample
from .relearn import Relearn, RelearnRetain, RelearnText

ATTACKS = (Quantise, NormalFloat, Prune, Relearn, RelearnRetain, RelearnText, Sample, Paraphrase, Prompt, FewShot)


def specs() -> list[AttackSpec]:
    """The spec of every built-in attack, read from its class; eight bits are a name of their own."""
    read = [AttackSpec.of(attack) for attack in ATTACKS]
    eight = AttackSpec.of(
        Quantise,
        name="quantise-int8",
        summary="Rounds the weights of linear layers to eight bits in groups of a row, and answers with these.",
        fixed={"bits": 8},
    )
    return [*read[:1], eight, *read[1:]]
