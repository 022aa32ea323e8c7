"""The built-in methods, as specs. A contract test holds each spec against its class."""

from __future__ import annotations

from collections.abc import Mapping

from unlearnbench import EDITIONS, TRAINING_PARAMETERS, MethodSpec, Parameter, Requires, Value

from ._terms import MUSE_EDITIONS

EDITION = Parameter("edition", str, "paper", "which definition of the loss", choices=EDITIONS)
MUSE_EDITION = Parameter("edition", str, "paper", "which definition of the loss", choices=MUSE_EDITIONS)
ONE_EDITION = Parameter("edition", str, "paper", "which definition", choices=("paper",))
BETA = Parameter("beta", float, 0.1, "inverse temperature β", above=0.0)
PADDED = Parameter("padded_length", int, 500, "as-released: rows are padded to this many tokens", low=0)
DIVERGENCES = {
    "flat-tv": ("total-variation", "Total Variation"),
    "flat-js": ("jensen-shannon", "Jensen-Shannon"),
    "flat-pearson": ("pearson", "Pearson"),
    "flat-kl": ("kl", "KL"),
}
FORGET_ONLY = Requires()
TOFU = "Maini et al. 2024, arXiv:2401.06121"
NPO = "Zhang et al. 2024, arXiv:2404.05868"


def unlearnbench_methods() -> list[MethodSpec]:
    return [
        MethodSpec(
            "original",
            "unlearnbench.methods.references:Original",
            "Forgets nothing: the model that every method starts from.",
            reference=True,
        ),
        MethodSpec(
            "retained",
            "unlearnbench.methods.references:Retained",
            "Never knew: the same recipe on the retain set alone, the yardstick of forgetting.",
            Requires(start="retained"),
            reference=True,
        ),
        _descent("ga", "ga:GradientAscent", "Raises the loss on the forget answers, without bound.",
                 citation="Jang et al. 2023, arXiv:2210.01504"),
        _descent("gd", "gd:GradientDifference",
                 "Gradient ascent on the forget answers, descent on retain answers.",
                 Requires(retain=True), citation="Liu et al. 2022, arXiv:2203.12817"),
        _descent("kl", "kl:KLMinimization",
                 "Gradient ascent on the forget answers, staying near the original model on retain rows.",
                 Requires(retain=True, original="model"), (PADDED,), TOFU, edition=MUSE_EDITION),
        _descent("po", "po:PreferenceOptimization",
                 "Answers forget questions with a refusal, retain questions as before.",
                 Requires(retain=True, template=True), citation=TOFU),
        _descent("mismatch", "mismatch:Mismatch",
                 "Answers forget questions with answers to other questions, retain questions as before.",
                 Requires(retain=True), citation="Liu et al. 2024, arXiv:2406.07933"),
        _descent("llmu", "llmu:LLMU",
                 "Gradient ascent, random answers to forget questions, and KL to the original model on retain rows.",
                 Requires(retain=True, template=True, original="model"),
                 (
                     Parameter("forget_weight", float, 0.5, "coefficient of gradient ascent", low=0.0),
                     Parameter("random_weight", float, 1.0, "coefficient of the random answers", low=0.0),
                     Parameter("retain_weight", float, 1.0, "coefficient of KL on retain rows", low=0.0),
                     Parameter("random_answers", str, "retain", "where answers are drawn",
                               choices=("retain", "template")),
                     Parameter("random_per_prompt", int, 5, "random answers to each forget prompt", low=1),
                     PADDED,
                 ),
                 "Yao et al. 2023, arXiv:2310.10683"),
        _descent("dpo", "dpo:DPO", "Prefers a refusal to the forget answer.",
                 Requires(template=True, original="logprobs"), (BETA,), "Rafailov et al. 2023, arXiv:2305.18290"),
        _descent("npo", "npo:NPO",
                 "Pushes forget answers below the original model's likelihood, ever more gently.",
                 Requires(original="logprobs"), (BETA,), NPO, edition=MUSE_EDITION,
                 edition_requires={"as-released-muse": Requires(original="model")}),
        _descent("npo-rt", "npo:NPORetain", "NPO on the forget answers, descent on retain answers.",
                 Requires(retain=True, original="logprobs"), (BETA,), NPO, edition=MUSE_EDITION,
                 edition_requires={"as-released-muse": Requires(retain=True, original="model")}),
        _descent("task-vector", "task_vector:TaskVector",
                 "Fine-tunes on the forget set and subtracts the change from the original weights.",
                 parameters=(
                     Parameter("alpha", float, 1.0, "how far to step away from the fine-tuned model", low=0.0),
                 ),
                 citation="Ilharco et al. 2023, arXiv:2212.04089", edition=ONE_EDITION),
        _descent("whp", "whp:WHP",
                 "Lowers the words that a model fine-tuned on the forget set prefers; two models answer together.",
                 Requires(original="model"),
                 (Parameter("alpha", float, 5.0, "how strongly preferred words are lowered", low=0.0),),
                 "Eldan and Russinovich 2023, arXiv:2310.02238", edition=ONE_EDITION, models=2),
        *(_flat(name, divergence, label) for name, (divergence, label) in DIVERGENCES.items()),
    ]  # fmt: skip


def _descent(
    name: str,
    target: str,
    summary: str,
    requires: Requires = FORGET_ONLY,
    parameters: tuple[Parameter, ...] = (),
    citation: str = "",
    fixed: Mapping[str, Value] | None = None,
    edition: Parameter = EDITION,
    edition_requires: Mapping[str, Requires] | None = None,
    models: int = 1,
) -> MethodSpec:
    return MethodSpec(
        name,
        f"unlearnbench.methods.{target}",
        summary,
        requires,
        (*TRAINING_PARAMETERS, edition, *parameters),
        dict(fixed or {}),
        citation,
        tuple(str(choice) for choice in edition.choices),
        dict(edition_requires or {}),
        models,
    )


def _flat(name: str, divergence: str, label: str) -> MethodSpec:
    padded = Parameter("padded_length", int, 500, "as-released: T in the denominator rows × (T − 1)", low=2)
    return _descent(
        name,
        "flat:FLAT",
        f"Maximises the {label} divergence between a template answer and the forget answer; needs only forget data.",
        Requires(template=True),
        (padded,),
        "Wang et al. 2025, arXiv:2410.11143",
        {"divergence": divergence},
    )
