"""Hyperparameters that every training run has, declared once and without importing torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from .specs import Parameter, Value, parameter_of


def hyperparameter(default: Value, summary: str = "", **limits: Any) -> Any:
    """A dataclass field with bounds (``low``, ``high``, ``above``) or ``choices``, which specs are read from."""
    return field(default=default, metadata={"summary": summary, **limits})


@dataclass(frozen=True)
class Training:
    """AdamW over epochs of a data set; the defaults are TOFU's (arXiv:2401.06121, appendix).

    Differs: the releases train with transformers' Trainer, whose warm-up begins with a step at rate 0, which decays
    neither norms nor biases, and which locuslab/tofu stops after whole windows of rows. Losses of an edition
    ``as-released`` are trained so; others, and the reference models, warm up from the first step, decay all weights and
    end with an epoch.
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
    """The fields of a hyperparameter dataclass as parameters, in order."""
    hints = get_type_hints(dataclass_type)
    return tuple(parameter_of(item, hints[item.name]) for item in fields(dataclass_type))


TRAINING_PARAMETERS = parameters_of(Training)
