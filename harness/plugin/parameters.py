"""Hyperparameters that every training run has, declared once and without importing torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from ..errors import UnknownName, UsageError

Value = bool | int | float | str


@dataclass(frozen=True)
class Parameter:
    """One hyperparameter: its type, its default, and its allowed values.

    ``low`` and ``high`` are inclusive; ``above`` is an exclusive lower bound.
    """

    name: str
    type: type[bool] | type[int] | type[float] | type[str]
    default: Value
    summary: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[Value, ...] = ()

    def parse(self, value: object, where: str) -> Value:
        """The value with the parameter's type. Raises UsageError naming ``where`` the value came from."""
        if self.type is float and type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                raise UsageError(f"{where}.{self.name}: the number is too large") from None
        if type(value) is not self.type:
            raise UsageError(
                f"{where}.{self.name} = {value!r}: expected {self.type.__name__}, got {type(value).__name__}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{where}.{self.name} = {value!r}: must be finite")
        if self.choices and value not in self.choices:
            allowed = ", ".join(repr(choice) for choice in self.choices)
            raise UsageError(f"{where}.{self.name} = {value!r}: must be one of {allowed}")
        if isinstance(value, int | float) and self._outside(value):
            raise UsageError(f"{where}.{self.name} = {value!r}: must be {self.range}")
        return value

    def _outside(self, value: float) -> bool:
        return (
            (self.low is not None and value < self.low)
            or (self.high is not None and value > self.high)
            or (self.above is not None and value <= self.above)
        )

    @property
    def range(self) -> str:
        """The allowed values in words; empty where the type alone decides."""
        if self.choices:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        bounds = (("above ", self.above), ("at least ", self.low), ("at most ", self.high))
        return " and ".join(f"{words}{bound:g}" for words, bound in bounds if bound is not None)


def parse_parameters(parameters: tuple[Parameter, ...], given: Mapping[str, object], where: str) -> dict[str, Value]:
    """The value of every parameter: checked where given, otherwise the default."""
    known = {parameter.name: parameter for parameter in parameters}
    for name in given:
        if name not in known:
            raise UnknownName(f"key of {where}", name, known)
    values = {name: parameter.default for name, parameter in known.items()}
    return values | {name: known[name].parse(value, where) for name, value in given.items()}


def parameter_of(item: dataclasses.Field[Any], kind: type) -> Parameter:
    """A dataclass field as a parameter; the field's metadata holds bounds, choices and a summary."""
    default: Any = item.default
    return Parameter(item.name, kind, default, **dict(item.metadata))


def hyperparameter(default: Value, summary: str = "", **limits: Any) -> Any:
    """A dataclass field with bounds (``low``, ``high``, ``above``) or ``choices``, from which specs are read."""
    return field(default=default, metadata={"summary": summary, **limits})


@dataclass(frozen=True)
class Training:
    """AdamW over epochs of a data set; the defaults are TOFU's (arXiv:2401.06121, appendix).

    As in transformers' Trainer, with which the releases train, warm-up begins with a step at rate 0, and AdamW decays
    neither norms nor biases.

    Differs: locuslab/tofu stops after whole windows of rows, and so does a loss of the edition ``as-released``. Other
    losses, and the reference models, are trained to the end of their last epoch.
    """

    learning_rate: float = hyperparameter(1e-5, "peak learning rate of AdamW", above=0.0)
    epochs: int = hyperparameter(5, "passes over the data", low=0)
    batch_size: int = hyperparameter(32, "rows in one forward pass", low=1)
    accumulation: int = hyperparameter(1, "forward passes in one optimiser step", low=1)
    weight_decay: float = hyperparameter(0.01, "decoupled weight decay", low=0.0)
    warmup_epochs: float = hyperparameter(1.0, "epochs of linear warm-up", low=0.0)
    schedule: str = hyperparameter("linear", "after warm-up", choices=("linear", "cosine", "constant"))
    max_grad_norm: float = hyperparameter(1.0, "gradients are clipped to this norm; 0 clips nothing", low=0.0)
    dropout: bool = hyperparameter(False, "keep the model's dropout on while training")
    gradient_checkpointing: bool = hyperparameter(False, "recompute activations: less memory, more time")


def parameters_of(dataclass_type: type) -> tuple[Parameter, ...]:
    """The fields of a dataclass that ``hyperparameter`` declares, as parameters, in order."""
    hints = get_type_hints(dataclass_type)
    return tuple(parameter_of(item, hints[item.name]) for item in fields(dataclass_type) if item.metadata)


TRAINING_PARAMETERS = parameters_of(Training)
