"""A plan as a graph of nodes, each the work of one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .study import Study


@dataclass(frozen=True)
class Node:
    """One unit of work in a process of its own: a reference model to prepare, or a cell to run.

    ``spec`` is all that the process is given; ``content`` is the hash of what can change its result.
    """

    key: str
    kind: str
    title: str
    needs: tuple[str, ...]
    content: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """A study with its nodes, in an order in which every node follows those it needs."""

    study: Study
    nodes: tuple[Node, ...]

    @property
    def cells(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.kind == "cell")
