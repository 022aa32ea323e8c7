"""A plan as a graph of nodes, each the work of one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..domain import CellId
from ..records.node_spec import CellSpec, ReferenceSpec
from .study import Study

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Node:
    """One unit of work in a process of its own: a reference model to prepare, or a cell to run."""

    spec: ReferenceSpec | CellSpec
    needs: tuple[str, ...] = ()
    """Keys of the nodes that must be done before."""
    after: tuple[str, ...] = ()
    """Keys of the nodes that must have ended before, in whatever way."""

    @property
    def key(self) -> str:
        return self.spec.key

    @property
    def kind(self) -> str:
        return self.spec.kind

    @property
    def title(self) -> str:
        return self.spec.title

    @property
    def id(self) -> CellId:
        return self.spec.id

    @property
    def content(self) -> str:
        return self.spec.content


@dataclass(frozen=True)
class Plan:
    """A study with its nodes, in an order in which every node follows those it needs."""

    study: Study
    nodes: tuple[Node, ...]

    @property
    def cells(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if isinstance(node.spec, CellSpec))

    def to_frame(self) -> pandas.DataFrame:
        """A row for every node, as a pandas frame."""
        import pandas

        return pandas.DataFrame([{"kind": node.kind, "title": node.title, "key": node.key} for node in self.nodes])

    def _repr_html_(self) -> str:
        found: str = self.to_frame().to_html(index=False)
        return found

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)
