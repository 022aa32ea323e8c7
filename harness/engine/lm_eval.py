"""Tasks of lm-evaluation-harness, asked of a model in memory; a row per document, from which scores recompute.

lm-eval supplies the documents, prompts and right answers; the likelihoods come from this engine, so that any
model it can score (one made of two, for example) can be asked. Importing this module does not import lm-eval.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.encoder import Encoder

if TYPE_CHECKING:
    from .engine import Engine

TaskRow = dict[str, Any]


def ask_tasks(
    model: Any,
    encoder: Encoder,
    tasks: Mapping[str, Any],
    engine: Engine,
    limit: int = 0,
) -> Iterator[TaskRow]:
    """Rows of every task, by name: an error in place of a task is a row with the reason that it is missing.

    A multiple-choice document gives ``loglikelihoods`` of its choices and ``right``, the places of right ones; a
    text gives ``loglikelihood`` and its number of ``words``. All are in nats, zero-shot.

    Args:
        tasks: lm-eval tasks, or the reason why one is not there.
        limit: first documents of each task; 0 asks all.
    """
    present = {name: task for name, task in tasks.items() if not isinstance(task, str)}
    from .lm_eval_model import EngineLM

    language_model = EngineLM(engine, model, encoder)
    for name, task in present.items():
        task.build_all_requests(limit=limit or None)
        by_document: dict[int, list[Any]] = {}
        for request in task.instances:
            by_document.setdefault(request.doc_id, []).append(request)
        rolling = task.OUTPUT_TYPE == "loglikelihood_rolling"
        ask = language_model.loglikelihood_rolling if rolling else language_model.loglikelihood
        found = iter(ask([request for requests in by_document.values() for request in requests], disable_tqdm=True))
        for index, requests in enumerate(by_document.values()):
            values = [next(found) for _ in requests]
            yield {"part": name, "index": index, **_row(task, requests[0].doc, values, rolling)}
    for name, task in tasks.items():
        if isinstance(task, str):
            yield {"part": name, "index": 0, "missing": task}


def _row(task: Any, doc: Any, values: Sequence[Any], rolling: bool) -> TaskRow:
    if rolling:
        _, words = task.process_results(doc, [values[0]])["word_perplexity"]
        return {"loglikelihood": float(values[0]), "words": int(words)}
    logprobs = [float(value) for value, _ in values]
    return {"loglikelihoods": logprobs, "right": _right(task, doc, len(logprobs))}


def _right(task: Any, doc: Any, choices: int) -> list[int]:
    """The places of right choices: the task counts a model right that is certain of one of them."""
    certain = [[(0.0 if place == chosen else -1e4, False) for place in range(choices)] for chosen in range(choices)]
    return [place for place, answers in enumerate(certain) if task.process_results(doc, answers)["acc"] > 0.5]


@cache
def hub_tasks(folders: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Any]:
    """lm-eval's own tasks, each loaded apart, or the reason why it cannot be.

    Args:
        folders: where the tasks lie below ``lm_eval/tasks``; reading all of them takes many seconds.
    """
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    manager = lm_eval.tasks.TaskManager(include_path=[root / name for name in folders], include_defaults=False)
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = manager.load([name])["tasks"][name]
        except Exception as error:  # noqa: BLE001 - whatever keeps one task away, the others stand
            reason = " ".join(str(error).split())[:200]
            found[name] = f"lm-eval task {name} cannot be loaded ({type(error).__name__}: {reason})"
    return found


def worth_another_try(tasks: Mapping[str, Any]) -> str:
    """Why a task is missing that the hub may give another time; empty where none is, or the hub is offline."""
    from huggingface_hub import constants

    absent = [reason for reason in tasks.values() if isinstance(reason, str)]
    return "" if constants.HF_HUB_OFFLINE or not absent else absent[0]


def local_tasks(folder: Traversable) -> dict[str, Any]:
    """The tasks of a folder: ``NAME.json`` is lm-eval's configuration, ``NAME.jsonl`` beside it the documents."""
    from datasets import Dataset
    from lm_eval.tasks import TaskManager

    found = {}
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".json"):
            continue
        config = json.loads(file.read_text(encoding="utf-8"))
        name = file.name.removesuffix(".json")
        lines = folder.joinpath(f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        documents = Dataset.from_list([json.loads(line) for line in lines])
        config |= {"task": name, "test_split": "test", "custom_dataset": lambda rows=documents, **_: {"test": rows}}
        found[name] = TaskManager(include_defaults=False).load([config])["tasks"][name]
    return found
