"""The two ends of every scale: the original model as it is, and the retained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnbench import Context, Requires, UnlearningData


@dataclass(frozen=True)
class Original:
    """Forgets nothing: the model that every method starts from."""

    name: ClassVar[str] = "original"
    reference: ClassVar[bool] = True
    requires: ClassVar[Requires] = Requires()

    def unlearn(self, model: Any, tokenizer: Any, data: UnlearningData, ctx: Context) -> Any:
        return model


@dataclass(frozen=True)
class Retained:
    """Never knew: the same recipe on the retain set alone, the yardstick of forgetting."""

    name: ClassVar[str] = "retained"
    reference: ClassVar[bool] = True
    requires: ClassVar[Requires] = Requires(start="retained")

    def unlearn(self, model: Any, tokenizer: Any, data: UnlearningData, ctx: Context) -> Any:
        return model
