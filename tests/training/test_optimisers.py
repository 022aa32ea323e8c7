"""Optimisers in less memory: what they hold, and that they train as AdamW in float32 does."""

from __future__ import annotations

import copy

import pytest
import torch

from unlearnbench.contracts import Context, UnlearningData
from unlearnbench.domain import Example, Requires
from unlearnbench.engine.engine import Engine
from unlearnbench.training.loss_method import FineTune
from unlearnbench.training.optimisers import EIGHT_BITS, optimiser_of

ROWS = tuple(Example(n, f"Where was {name} born?", f"{name} was born in Rome.") for n, name in enumerate(("Ada", "Bo")))


def trained(model, encoder, optimiser, epochs=12):
    """A fine-tuned copy of a model, and its losses."""
    ctx = Context("fine-tune", 0, Engine(), log=lambda line: None, optimiser=optimiser)
    recipe = FineTune(epochs=epochs, batch_size=2, learning_rate=1e-2, warmup_epochs=0.0)
    data = UnlearningData("fine-tune", Requires(), encoder, ROWS, (), ())
    torch.manual_seed(0)
    return recipe.unlearn(copy.deepcopy(model), encoder.tokenizer, data, ctx), ctx.meter.losses


@pytest.mark.parametrize("optimiser", EIGHT_BITS)
def test_eight_bits_train_as_thirty_two_do(optimiser, tiny_model, tiny_encoder):
    model = tiny_model.float()
    _, expected = trained(model, tiny_encoder, "adamw")
    small, losses = trained(model, tiny_encoder, optimiser)
    assert expected[-1] < 0.7 * expected[0]
    assert losses == pytest.approx(expected, rel=0.05)
    assert {weight.dtype for weight in small.parameters()} == {
        torch.bfloat16 if optimiser == "adamw-bf16" else torch.float32
    }


def test_steps_below_the_spacing_of_bfloat16_are_right_in_the_mean():
    """0.002 of the 0.0078 between 1 and its neighbour: rounded to the nearest, no weight would ever move."""
    weight = torch.nn.Parameter(torch.ones(64, 256, dtype=torch.bfloat16))
    torch.manual_seed(0)
    stepping = optimiser_of("adamw-bf16", [{"params": [weight]}], 0.002, 0.0)
    for _ in range(5):
        weight.grad = torch.ones_like(weight)
        stepping.step()
    assert weight.dtype == torch.bfloat16
    assert weight.float().mean().item() == pytest.approx(1 - 5 * 0.002, abs=3e-4)


def test_moments_of_eight_bits_take_a_quarter_of_the_memory():
    def held(name):
        weight = torch.nn.Parameter(torch.ones(64, 256))
        weight.grad = torch.ones_like(weight)
        stepping = optimiser_of(name, [{"params": [weight]}], 0.001, 0.0)
        stepping.step()
        moments = [state[key] for state in stepping.state.values() for key in ("exp_avg", "exp_avg_sq")]
        parts = [part for moment in moments for part in _stored(moment)]
        return sum(part.untyped_storage().nbytes() for part in parts) / weight.numel()

    assert held("adamw") == 8
    # A scale for each block of 256, and a table of 256 numbers for each moment.
    assert held("adamw-8bit") == pytest.approx(2 + 2 * 4 / 256, rel=0.07)


def _stored(moment):
    if not hasattr(moment, "__tensor_flatten__"):
        return [moment]
    return [getattr(moment, name) for name in moment.__tensor_flatten__()[0]]
