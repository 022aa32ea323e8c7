"""Every loss against numbers computed elsewhere: value and gradient norm, from the method's own code.

The fixture is a batch of two rows with closed-form logits over 13 tokens; the values were obtained from the
released code bases and from closed forms, in float64.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unlearnbench.engine.batch import TokenBatch
from unlearnbench.engine.logprobs import sequence_logprob
from unlearnbench.methods.dpo import DPO, dpo_loss
from unlearnbench.methods.flat import FLAT, flat_loss
from unlearnbench.methods.ga import GradientAscent
from unlearnbench.methods.gd import GradientDifference
from unlearnbench.methods.kl import KLMinimization
from unlearnbench.methods.llmu import LLMU
from unlearnbench.methods.mismatch import Mismatch
from unlearnbench.methods.npo import NPO, NPORetain, npo_loss
from unlearnbench.methods.po import PreferenceOptimization
from unlearnbench.training.divergences import F_DIVERGENCES
from unlearnbench.training.loss import Batch, loss_of

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "loss_fixture.json").read_text())
PARTS = ("forget", "template", "retain")
T = 8  # padded length of the fixture


# muse_bench's forms, which put raw logits where log-probabilities belong.
MUSE = "as-released-muse"
MUSE_CASES = [
    (
        KLMinimization(edition=MUSE),
        859.4621456249372,
        {"forget": 0.3217139824264202, "retain": 42.16581281081556},
    ),
    (NPO(edition=MUSE), 14.383328953758369, {"forget": 0.07108575787955257}),
    (NPORetain(edition=MUSE), 16.55950945335215, {"forget": 0.07108575787955257, "retain": 0.3447443612031096}),
]


class FixedLogits(torch.nn.Module):
    """A model whose logits are given: row p of every part is recognised by its first token id."""

    def __init__(self, kind):
        super().__init__()
        self.logits = {part: torch.tensor(FIXTURE[kind][part], dtype=torch.float64) for part in PARTS}
        for tensor in self.logits.values():
            tensor.requires_grad_(kind == "current")

    def forward(self, input_ids, attention_mask):
        rows = [self.logits[PARTS[code // 2]][code % 2] for code in input_ids[:, 0].tolist()]
        return SimpleNamespace(logits=torch.stack(rows))


def fixture_batch(model, original):
    parts = {}
    for number, part in enumerate(PARTS):
        labels = torch.tensor(FIXTURE["labels"][part])
        ids = torch.zeros_like(labels)
        ids[:, 0] = torch.tensor([2 * number, 2 * number + 1])
        rows = TokenBatch(ids, torch.ones_like(ids), labels)
        with torch.no_grad():
            (rows.logp_original,) = sequence_logprob(original, rows)
        parts[part] = rows
    # What is drawn for a method's own part: the fixture's template rows.
    parts["mismatch"] = parts["random"] = parts["template"]
    return Batch(parts, original)


# Method, value, gradient norms with respect to the current model's logits of each part.
KL_TEMPLATE = {"forget": 0.1608569912132101, "template": 0.2487329321524859, "retain": 0.14229418086073917}
CASES = [
    (GradientAscent(), -1.4500160417502392, {"forget": 0.3217139824264202}),
    (GradientAscent(edition="as-released"), -1.4500160417502392, {"forget": 0.3217139824264202}),
    (GradientDifference(), 0.72616445784354, {"forget": 0.3217139824264202, "retain": 0.3447443612031096}),
    (GradientDifference(edition="as-released"), 0.72616445784354, {"retain": 0.3447443612031096}),
    (KLMinimization(), 0.862263625426382, {"forget": 0.3217139824264202}),
    (
        KLMinimization(edition="as-released"),
        1.1006997093727098,
        {"forget": 0.3217139824264202, "retain": 0.14229418086073917},
    ),
    (PreferenceOptimization(), 3.5355186209845866, {}),
    (
        PreferenceOptimization(edition="as-released"),
        1.7167066618546074,
        {"template": 0.13991227433577333, "retain": 0.15082565802636047},
    ),
    (Mismatch(), 3.5355186209845866, {}),
    (
        Mismatch(edition="as-released"),
        1.8410276728967607,
        {"forget": 0.14848337650450166, "retain": 0.18563157910936673},
    ),
    (LLMU(), 2.946609767692309, {}),
    (LLMU(edition="as-released"), 3.1850458516386366, KL_TEMPLATE),
    (DPO(), 12.300623544466331, {"forget": 0.8874168197939277, "template": 1.0360736764924037}),
    (
        DPO(edition="as-released"),
        15.901624808545915,
        {"forget": 1.0634652026974787, "template": 1.2980997916169648},
    ),
    (NPO(), 15.282899307935658, {"forget": 1.0188388092628267}),
    (NPO(edition="as-released"), 15.282899307935658, {"forget": 1.0188388092628267}),
    (NPORetain(), 17.459079807529438, {"forget": 1.0188388092628267, "retain": 0.3447443612031096}),
    (NPORetain(edition="as-released"), 17.459079807529438, {"retain": 0.3447443612031096}),
    (FLAT(divergence="total-variation"), -0.046580673424699445, {}),
    (FLAT(divergence="jensen-shannon"), -0.01965597097332554, {}),
    (FLAT(divergence="pearson"), -0.07798029261197452, {}),
    (FLAT(divergence="kl"), 0.11844057218266846, {}),
    (
        FLAT(divergence="total-variation", edition="as-released", padded_length=T),
        -0.04273294595079491,
        {"forget": 0.01663194818895687, "template": 0.022376162885703665},
    ),
    (
        FLAT(divergence="jensen-shannon", edition="as-released", padded_length=T),
        -0.03543883625369286,
        {"forget": 0.018115465837313313, "template": 0.02088967123374862},
    ),
    (
        FLAT(divergence="pearson", edition="as-released", padded_length=T),
        -0.0836334579997284,
        {"forget": 0.036234618820356064, "template": 0.04708055353650415},
    ),
    (
        FLAT(divergence="kl", edition="as-released", padded_length=T),
        0.19606609690471632,
        {"forget": 0.014313066642093593, "template": 0.04708055353650415},
    ),
]


def case_name(case):
    method = case[0]
    return f"{method.name}{'-' + method.divergence if isinstance(method, FLAT) else ''}-{method.edition}"


def loss_on_fixture(method):
    model, original = FixedLogits("current"), FixedLogits("original")
    batch = fixture_batch(model, original)
    return loss_of(method.loss(model, batch), batch.counts(), method.name), model


@pytest.mark.parametrize("case", [*CASES, *MUSE_CASES], ids=case_name)
def test_a_loss_has_the_value_and_gradient_of_the_published_code(case):
    method, expected, norms = case
    loss, model = loss_on_fixture(method)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    for part, norm in norms.items():
        assert model.logits[part].grad.norm().item() == pytest.approx(norm, rel=1e-9)


@pytest.mark.parametrize("case", [*CASES, *MUSE_CASES], ids=case_name)
def test_a_loss_has_the_gradient_of_its_finite_differences(case):
    method = case[0]
    original = FixedLogits("original")

    def value(*logits):
        model = FixedLogits("current")
        model.logits = dict(zip(PARTS, logits, strict=True))
        batch = fixture_batch(model, original)
        return loss_of(method.loss(model, batch), batch.counts(), method.name)

    inputs = tuple(tensor.detach().requires_grad_() for tensor in FixedLogits("current").logits.values())
    assert torch.autograd.gradcheck(value, inputs, fast_mode=True)


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_a_shift_of_the_logits_changes_no_loss(case):
    method, expected, _ = case
    model, original = FixedLogits("current"), FixedLogits("original")
    for kind in (model, original):
        kind.logits = {part: tensor.detach() + 3.7 * (1 + number) for number, (part, tensor)
                       in enumerate(kind.logits.items())}  # fmt: skip
    batch = fixture_batch(model, original)
    shifted = loss_of(method.loss(model, batch), batch.counts(), method.name)
    assert shifted.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("case", MUSE_CASES, ids=case_name)
def test_muse_s_losses_change_with_a_shift_of_the_logits_and_reach_ignored_positions(case):
    method, expected, _ = case
    model, original = FixedLogits("current"), FixedLogits("original")
    model.logits = {part: tensor.detach() + 3.7 for part, tensor in model.logits.items()}
    batch = fixture_batch(model, original)
    shifted = loss_of(method.loss(model, batch), batch.counts(), method.name)
    assert abs(shifted.item() - expected) > 1
    loss, model = loss_on_fixture(method)
    loss.backward()
    part = "retain" if method.name == "kl" else "forget"
    ignored = ~torch.nn.functional.pad(torch.tensor(FIXTURE["labels"][part])[:, 1:] != -100, (0, 1), value=False)
    assert model.logits[part].grad[ignored].abs().max() > 0


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_there_is_no_gradient_where_the_label_is_ignored(case):
    method = case[0]
    loss, model = loss_on_fixture(method)
    loss.backward()
    for part, tensor in model.logits.items():
        if tensor.grad is None or (part == "retain" and method.name in ("kl", "llmu") and method.edition != "paper"):
            continue  # the released KL is averaged over every position, which is the departure it is kept for
        labels = torch.tensor(FIXTURE["labels"][part])
        predicts = torch.nn.functional.pad(labels[:, 1:] != -100, (0, 1), value=False)
        assert tensor.grad[~predicts].abs().max() == 0
        assert tensor.grad[predicts].abs().max() > 0


def test_the_released_kl_does_reach_ignored_positions():
    loss, model = loss_on_fixture(KLMinimization(edition="as-released"))
    loss.backward()
    labels = torch.tensor(FIXTURE["labels"]["retain"])
    ignored = ~torch.nn.functional.pad(labels[:, 1:] != -100, (0, 1), value=False)
    assert model.logits["retain"].grad[ignored].abs().max() > 0


def test_the_reference_gets_no_gradient():
    model, original = FixedLogits("current"), FixedLogits("original")
    for tensor in original.logits.values():
        tensor.requires_grad_(True)
    batch = fixture_batch(model, original)
    loss_of(KLMinimization().loss(model, batch), batch.counts(), "kl").backward()
    assert all(tensor.grad is None for tensor in original.logits.values())


@pytest.mark.parametrize("factor", [2, 5])
def test_the_released_flat_depends_on_the_padded_length_and_the_paper_form_does_not(factor):
    longer = factor * (T - 1) + 1
    model, original = FixedLogits("current"), FixedLogits("original")
    batch = fixture_batch(model, original)
    p_template, p_forget = 0.22615650901623602 / factor, 0.13777739815585816 / factor
    for name, divergence in F_DIVERGENCES.items():
        released = FLAT(divergence=name, edition="as-released", padded_length=longer)
        expected = flat_loss(torch.tensor(p_template).double(), torch.tensor(p_forget).double(), divergence)
        value = loss_of(released.loss(model, batch), batch.counts(), "flat")
        assert value.item() == pytest.approx(expected.item(), abs=1e-7)
        paper = [FLAT(divergence=name, padded_length=length) for length in (T, longer)]
        values = [loss_of(method.loss(model, batch), batch.counts(), "flat").item() for method in paper]
        assert values[0] == values[1]


def test_npo_at_the_original_model_is_a_constant_and_its_gradient_is_ascent():
    logp = torch.tensor([-4.0, -9.0], dtype=torch.float64, requires_grad=True)
    loss = npo_loss(logp, logp.detach(), beta=0.1)
    assert loss.tolist() == pytest.approx([2 * math.log(2) / 0.1] * 2)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert gradient.tolist() == pytest.approx([1.0, 1.0])


def test_npo_tends_to_gradient_ascent_as_beta_vanishes():
    logp = torch.tensor([-4.0, -9.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(npo_loss(logp, torch.tensor([-1.0, -30.0]), beta=1e-9).sum(), logp)
    assert gradient.tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_dpo_at_the_original_model_is_the_same_constant_whatever_the_model():
    zero = torch.zeros(3, dtype=torch.float64)
    assert dpo_loss(zero, zero, beta=0.1).tolist() == pytest.approx([13.862943611198906] * 3)


def test_the_released_dpo_has_no_reference_left():
    model = FixedLogits("current")
    other = FixedLogits("original")
    values = {}
    for edition in ("paper", "as-released"):
        for name, original in (("itself", model), ("another", other)):
            batch = fixture_batch(model, original)
            values[edition, name] = loss_of(DPO(edition=edition).loss(model, batch), batch.counts(), "dpo").item()
    assert values["paper", "itself"] == pytest.approx(13.862943611198906)
    assert values["paper", "another"] != pytest.approx(13.862943611198906)
    assert values["as-released", "itself"] == values["as-released", "another"]


@pytest.mark.parametrize(
    ("p_template", "p_forget", "expected"),
    [
        (0.0, 0.0, {"total-variation": 0.0, "jensen-shannon": 0.0, "pearson": 0.0, "kl": 0.36787944117144233}),
        (
            1.0,
            0.0,
            {
                "total-variation": -0.3807970779778824,
                "jensen-shannon": -0.37988549304172237,
                "pearson": -1.0,
                "kl": -0.6321205588285577,
            },
        ),
        (
            0.0,
            1.0,
            {
                "total-variation": 0.3807970779778824,
                "jensen-shannon": 0.6201145069582774,
                "pearson": 1.25,
                "kl": 1.0,
            },
        ),
    ],
)
def test_flat_at_the_corners(p_template, p_forget, expected):
    for name, value in expected.items():
        found = flat_loss(torch.tensor(p_template).double(), torch.tensor(p_forget).double(), F_DIVERGENCES[name])
        assert found.item() == pytest.approx(value, abs=1e-12)


def test_the_released_flat_refuses_rows_longer_than_its_padded_length():
    from unlearnbench.errors import UsageError

    method = FLAT(edition="as-released", padded_length=T - 1)
    with pytest.raises(UsageError, match=f"padded_length = {T - 1}, but a row has {T} tokens"):
        loss_on_fixture(method)
