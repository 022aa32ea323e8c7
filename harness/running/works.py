"""Works: packs of a plan's nodes that one allocation runs, with what they need and the works that must end before."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from ..errors import RecordError
from ..planning.estimates import estimated, resident
from ..planning.nodes import Node, Plan
from ..planning.study import Study
from ..records.node_spec import AnySpec, CellSpec, ReferenceSpec, Resources, RunSettings
from ..records.schema import Strict
from ..storage import read_sealed, write_bytes, write_sealed

WORKS = "works"
WORKER = "unlearnbench.worker.forkserver:start_node"
"""What runs the node of a folder in a process of its own."""
COMMON = ("benchmark", "model")
"""Fields of specs that a work's file holds once."""
PACK_SECONDS = 600.0
"""Seconds of estimated time up to which nodes share an allocation, which costs seconds to start."""
PACK = 50
"""Nodes at most that share one."""


@dataclass(frozen=True)
class Work:
    """A pack of nodes of one level of the graph.

    Args:
        level: how many works lie before it, along the longest way through the plan.
        nodes: in the order in which they run.
        needs: ids of the works that must have ended before, in whatever way.
        resources: what it needs at a time.
        references: the reference models that its cells read.
    """

    id: str
    level: int
    nodes: tuple[Node, ...]
    needs: tuple[str, ...]
    resources: Resources
    references: tuple[Node, ...] = field(default=(), repr=False)

    @property
    def title(self) -> str:
        """What it is, in words."""
        more = f" and {len(self.nodes) - 1} more" if len(self.nodes) > 1 else ""
        return f"{self.nodes[0].title}{more}"

    def write(self, run: Path, worker: str = WORKER) -> Path:
        """Write the file that ``unlearnbench run-nodes`` runs; returns its path.

        Args:
            worker: ``module:function`` that runs the node of a folder.
        """
        path = file_of(run, self.id)
        write_bytes(_list_of(run, self.id), "".join(f"{node.key}\n" for node in self.nodes).encode())
        every = (*self.nodes, *self.references)
        # Most of a spec is what all nodes of a work have in common.
        common: dict[str, dict[int, Strict]] = {
            name: {id(part): part for part in (getattr(node.spec, name) for node in every)} for name in COMMON
        }
        places = {name: {key: place for place, key in enumerate(parts)} for name, parts in common.items()}

        def stored(node: Node) -> dict[str, object]:
            spec = json.loads(node.spec.model_dump_json(exclude=set(COMMON)))
            spec |= {name: places[name][id(getattr(node.spec, name))] for name in COMMON}
            return {"needs": list(node.needs), "after": list(node.after), "spec": spec}

        write_sealed(
            path,
            {
                "worker": worker,
                **{name: [json.loads(part.model_dump_json()) for part in common[name].values()] for name in COMMON},
                "nodes": [stored(node) for node in self.nodes],
                "references": [stored(node) for node in self.references],
            },
        )
        return path


def run_name(run: Path) -> str:
    """The name by which a cluster knows a run folder's works, wherever the folder is moved."""
    path = run / WORKS / "name"
    if not path.exists():
        write_bytes(path, secrets.token_hex(4).encode())
    return path.read_text(encoding="ascii")


def file_of(run: Path, work: str) -> Path:
    """The file of a work."""
    return run / WORKS / f"{work}.json"


def _list_of(run: Path, work: str) -> Path:
    return run / WORKS / f"{work}.nodes"


def keys_of(run: Path, work: str) -> list[str]:
    """The keys of a work's nodes, without reading all that they need; empty where that is not known."""
    try:
        return _list_of(run, work).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


@dataclass(frozen=True)
class StoredWork:
    """What a work's file holds."""

    nodes: tuple[Node, ...]
    references: tuple[Node, ...]
    worker: str

    @property
    def settings(self) -> RunSettings:
        """How its nodes run."""
        return self.nodes[0].spec.run


_SPEC: TypeAdapter[ReferenceSpec | CellSpec] = TypeAdapter(AnySpec)


def read_work(path: Path) -> StoredWork:
    """Read what ``Work.write`` wrote. Raises RecordError where it is absent, damaged or of another version."""
    content = read_sealed(path, "run the study again")

    def read(stored: Mapping[str, Any]) -> Node:
        common = {name: content[name][stored["spec"][name]] for name in COMMON}
        spec = _SPEC.validate_json(json.dumps({**stored["spec"], **common}))
        return Node(spec, tuple(stored["needs"]), tuple(stored["after"]))

    try:
        nodes, references = (tuple(map(read, content[name])) for name in ("nodes", "references"))
        return StoredWork(nodes, references, content["worker"])
    except (ValidationError, LookupError, TypeError, ValueError) as error:
        raise RecordError(f"{path} is not a work of this version ({error}); run the study again") from error


def as_works(plan: Plan, nodes: Sequence[Node], held: Mapping[str, str]) -> list[Work]:
    """The works that nodes of a plan come to, each after those that it needs.

    Args:
        held: for nodes that are submitted already, the id of their work.
    """
    groups: dict[_Group, list[Node]] = {}
    levels = _levels(plan)
    for node in nodes:
        groups.setdefault(_Group.of(node, levels[node.key], plan.study), []).append(node)
    by_key = {node.key: node for node in plan.nodes}
    work_of, works = dict(held), []
    for group in sorted(groups, key=lambda group: group.level):
        for pack in _packs(groups[group], plan.study):
            before = dict.fromkeys(key for node in pack for key in (*node.needs, *node.after))
            cells = (node.spec for node in pack if isinstance(node.spec, CellSpec))
            models = dict.fromkeys(key for cell in cells for key in cell.models.values())
            work = Work(
                secrets.token_hex(6),
                group.level,
                tuple(pack),
                tuple(dict.fromkeys(work_of[key] for key in before if key in work_of)),
                group.resources,
                tuple(by_key[key] for key in models if key in by_key),
            )
            works.append(work)
            work_of.update((node.key, work.id) for node in pack)
    return works


def described(works: Sequence[Work]) -> list[str]:
    """Works as somebody would count them: a line for those of one size that stand together."""
    lines: list[str] = []
    for (size, resources, _), members in groupby(works, lambda work: (len(work.nodes), work.resources, work.level)):
        jobs = list(members)
        count = f"{len(jobs)} job{'s' if len(jobs) > 1 else ''} of {size} node{'s' if size > 1 else ''}"
        lines.append(f"{count}, each with {resources}: {jobs[0].title}{', …' if len(jobs) > 1 else ''}")
    return lines


def _levels(plan: Plan) -> dict[str, int]:
    """How many nodes lie before each one, along the longest way."""
    levels: dict[str, int] = {}
    for node in plan.nodes:
        levels[node.key] = 1 + max((levels[key] for key in (*node.needs, *node.after) if key in levels), default=-1)
    return levels


class _Group(NamedTuple):
    """Nodes that may share an allocation: of one level, one benchmark, model and seed, with the same resources."""

    level: int
    resources: Resources
    kind: str
    benchmark: str
    model: str
    seed: int

    @classmethod
    def of(cls, node: Node, level: int, study: Study) -> _Group:
        spec = node.spec
        return cls(level, resources_of(spec, study), spec.kind, spec.benchmark.name, spec.model.name, spec.seed)


def _packs(nodes: Iterable[Node], study: Study) -> list[list[Node]]:
    """Nodes in packs of the study's size, or of about ten minutes."""
    packs: list[list[Node]] = []
    most, limit = (study.run.pack, math.inf) if study.run.pack else (PACK, PACK_SECONDS)
    seconds = 0.0
    for node in nodes:
        cost = _seconds(node)
        if not packs or len(packs[-1]) == most or seconds + cost > limit:
            packs.append([])
            seconds = 0.0
        packs[-1].append(node)
        seconds += cost
    return packs


def _seconds(node: Node) -> float:
    """Estimated time of a node; models that are made here without an estimate are small."""
    cost = estimated(node.spec)
    if cost:
        return cost.seconds
    return 1.0 if node.spec.model.from_scratch else PACK_SECONDS


def resources_of(spec: ReferenceSpec | CellSpec, study: Study) -> Resources:
    """What a node needs: its estimate, and over it what the study says for all, the benchmark and the method."""
    memory = max(resident(spec).values(), default=0.0)
    found = Resources(
        processors=max(1, study.run.threads),
        gpus=study.run.processes if spec.device_kind == "cuda" else 0,
        # Estimates hold to a quarter.
        memory=round(1.5 * memory / 2**30, 1),
    )
    names = [("benchmarks", spec.benchmark.name)]
    if isinstance(spec, CellSpec):
        names.append(("methods", spec.method.name))
    return study.resources_over(found, names)
