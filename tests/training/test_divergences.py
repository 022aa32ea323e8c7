from __future__ import annotations

import pytest
import torch

from unlearnbench.training.divergences import F_DIVERGENCES, kl_divergence


@pytest.mark.parametrize("divergence", F_DIVERGENCES.values(), ids=lambda d: d.name)
@pytest.mark.parametrize("probability", [0.01, 0.2, 0.5, 0.7, 0.99])
def test_a_conjugate_equals_its_supremum(divergence, probability):
    """f*(u) = sup over t > 0 of u t − f(t), at the u that the loss uses: u = g*(p)."""
    u = divergence.activation(torch.tensor(probability, dtype=torch.float64))
    t = torch.linspace(1e-6, 40, 2_000_000, dtype=torch.float64)
    supremum = (u * t - divergence.f(t)).max()
    assert divergence.conjugate(u).item() == pytest.approx(supremum.item(), abs=1e-5)


@pytest.mark.parametrize("divergence", F_DIVERGENCES.values(), ids=lambda d: d.name)
def test_the_generator_of_a_divergence_is_zero_at_equality(divergence):
    assert divergence.f(torch.tensor(1.0, dtype=torch.float64)).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_kl_is_not_negative_and_zero_of_equal_distributions(seed):
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, 6, 11, dtype=torch.float64, generator=generator) * 4
    assert (kl_divergence(p, q) >= 0).all()
    assert kl_divergence(p, p).abs().max() < 1e-12
    # A constant added to the logits is the same distribution.
    assert torch.allclose(kl_divergence(p + 5, q - 3), kl_divergence(p, q))


def test_kl_weighs_by_its_first_argument():
    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = 0.9 * torch.log(torch.tensor(1.8)) + 0.1 * torch.log(torch.tensor(0.2))
    assert kl_divergence(p, q).item() == pytest.approx(expected.item(), abs=1e-6)
