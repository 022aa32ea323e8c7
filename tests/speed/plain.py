"""The same work as the engine's, the plain way: a forward pass with labels for each metric, ``generate`` on batches in
the order of the rows, a reference model beside the one that is trained. Nothing here calls the engine."""

from __future__ import annotations

import copy
from itertools import takewhile

import torch
import torch.nn.functional as F

IGNORE = -100


def right_padded(rows):
    """Input ids, attention mask and labels of (ids, start) rows, as a collator of the Trainer makes them."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row, _ in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows])
    labels = torch.tensor(
        [[*[IGNORE] * max(start, 1), *row[max(start, 1) :], *[IGNORE] * (width - len(row))] for row, start in rows]
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def row_losses(logits, labels):
    """(B, T, V) logits and (B, T) labels → (B,) summed negative log-likelihoods."""
    shifted = logits[:, :-1].float().transpose(1, 2)
    return F.cross_entropy(shifted, labels[:, 1:], ignore_index=IGNORE, reduction="none").sum(-1)


@torch.no_grad()
def losses(model, rows, batch=16):
    """Summed negative log-likelihood of every row's answer, batches in the order of the rows, all logits."""
    found = []
    for at in range(0, len(rows), batch):
        inputs = right_padded(rows[at : at + batch])
        found += row_losses(model(**inputs).logits, inputs["labels"]).tolist()
    return found


@torch.no_grad()
def generations(model, prompts, max_new_tokens, eos, batch=32):
    """Greedy continuations by ``generate``, batches in the order of the prompts, up to their end.

    Args:
        eos: the token that ends a continuation, or several.
    """
    ends = [eos] if isinstance(eos, int) else list(eos)
    found = []
    for at in range(0, len(prompts), batch):
        chosen = prompts[at : at + batch]
        width = max(map(len, chosen))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in chosen])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in chosen])
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=ends[0],
            eos_token_id=ends,
        )
        found += [list(takewhile(lambda token: token not in ends, tokens)) for tokens in out[:, width:].tolist()]
    return found


def tofu(model, questions, max_new_tokens, eos):
    """What TOFU asks, metric by metric: losses by (part, what), and the generation of every question.

    Args:
        questions: by part, a list of ``{"answer": row, "paraphrase": row or None, "perturbed": rows, "prompt": ids}``.
    """
    found = {}
    written = {}
    for part, asked in questions.items():
        answers = [question["answer"] for question in asked]
        wrong = [row for question in asked for row in question["perturbed"]]
        found[part, "answer"] = losses(model, answers)
        if asked[0]["paraphrase"] is not None:
            found[part, "paraphrase"] = losses(model, [question["paraphrase"] for question in asked])
        else:
            # Probability is normalised by the wrong answers, and the truth ratio asks for both again.
            found[part, "normaliser"] = losses(model, wrong)
            found[part, "paraphrase"] = losses(model, answers)
        found[part, "perturbed"] = losses(model, wrong)
        written[part] = generations(model, [question["prompt"] for question in asked], max_new_tokens, eos)
    return found, written


# -- optimiser steps; each returns what it minimises -------------------------------------------------------------------


def mean_loss(model, rows):
    return model(**right_padded(rows)).loss


def sequence_logprob(model, rows):
    inputs = right_padded(rows)
    return -row_losses(model(**inputs).logits, inputs["labels"])


def answer_probability(model, rows):
    """(B,) mean probability of each answer's own tokens."""
    inputs = right_padded(rows)
    logp = model(**inputs).logits[:, :-1].float().log_softmax(-1)
    labels = inputs["labels"][:, 1:]
    scored = labels != IGNORE
    picked = logp.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1).exp() * scored
    return picked.sum(-1) / scored.sum(-1)


def kl_to(reference, model, rows):
    """KL(reference, model) averaged over answer positions."""
    inputs = right_padded(rows)
    with torch.no_grad():
        original = reference(**inputs).logits.float().log_softmax(-1)
    logp = model(**inputs).logits.float().log_softmax(-1)
    where = torch.nn.functional.pad(inputs["labels"][:, 1:] != IGNORE, (0, 1))
    return (original.exp() * (original - logp)).sum(-1)[where].mean()


def ga(model, reference, batch):
    return -mean_loss(model, batch["forget"])


def gd(model, reference, batch):
    return -mean_loss(model, batch["forget"]) + mean_loss(model, batch["retain"])


def kl(model, reference, batch):
    return -mean_loss(model, batch["forget"]) + kl_to(reference, model, batch["retain"])


def po(model, reference, batch):
    return mean_loss(model, batch["template"]) + mean_loss(model, batch["retain"])


def mismatch(model, reference, batch):
    return mean_loss(model, batch["mismatch"]) + mean_loss(model, batch["retain"])


def llmu(model, reference, batch):
    return (-0.5 * mean_loss(model, batch["forget"]) + mean_loss(model, batch["random"])
            + kl_to(reference, model, batch["retain"]))  # fmt: skip


def _log_ratio(model, reference, rows):
    with torch.no_grad():
        original = sequence_logprob(reference, rows)
    return sequence_logprob(model, rows) - original


def npo(model, reference, batch, beta=0.1):
    return (-2 / beta * F.logsigmoid(-beta * _log_ratio(model, reference, batch["forget"]))).mean()


def npo_rt(model, reference, batch):
    return npo(model, reference, batch) + mean_loss(model, batch["retain"])


def dpo(model, reference, batch, beta=0.1):
    better = _log_ratio(model, reference, batch["template"]) - _log_ratio(model, reference, batch["forget"])
    return (-2 / beta * F.logsigmoid(beta * better)).mean()


def flat_tv(model, reference, batch):
    template = answer_probability(model, batch["template"])
    forget = answer_probability(model, batch["forget"])
    return ((torch.tanh(forget) - torch.tanh(template)) / 2).mean()


LOSSES = {"ga": ga, "gd": gd, "kl": kl, "po": po, "mismatch": mismatch, "llmu": llmu, "npo": npo, "npo-rt": npo_rt,
          "dpo": dpo, "flat-tv": flat_tv}  # fmt: skip
NEED_REFERENCE = {"kl", "llmu", "npo", "npo-rt", "dpo"}


def train(name, model, batches, learning_rate):
    """An optimiser step a batch, with a frozen copy where the method compares with it; the loss of each step."""
    reference = copy.deepcopy(model).eval().requires_grad_(False) if name in NEED_REFERENCE else None
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    found = []
    for batch in batches:
        loss = LOSSES[name](model, reference, batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append(float(loss.detach()))
    return found
