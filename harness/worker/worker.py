"""The work of one process: prepare a reference model, or run one cell. The only code that meets a model."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from .._compat import compile_key_patterns
from ..domain import CellStatus
from ..engine import process_group
from ..engine.memory import lacks_memory
from ..errors import (
    DISK_REFUSED,
    FAILED,
    Diverged,
    HarnessError,
    NotApplicable,
    StorageError,
    UndeclaredAccess,
)
from ..plugin.own_code import with_line
from ..records.code_digest import engine_digest
from ..records.node_spec import SPEC, CellSpec, ReferenceSpec, read_spec
from ..records.provenance import provenance
from ..records.run_folder import STATUS, NodeStatus
from ..storage import as_storage_error, file_digest, write_sealed
from .cell import run_cell
from .reference import prepare_reference
from .setup import check_environment, set_threads, use_deterministic


def start_node(folder: str) -> int:
    """Run the node whose ``spec.json`` lies in ``folder``, in as many processes as its spec says.

    Returns an exit status as ``run_node``, and raises the same. A process that a launcher has already made one of
    several runs its part.
    """
    count = read_spec(Path(folder)).run.processes
    if count == 1 or process_group.processes() > 1:
        return run_node(folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    return subprocess.call([*command, "-m", "unlearnbench", "run-cell", folder])


def run_node(folder: str) -> int:
    """Run the node whose ``spec.json`` lies in ``folder`` and leave ``status.json`` there.

    Returns the exit status of the process, by which a cluster's queue knows whether what needs the node may start: 0
    where it is done, FAILED where it ended otherwise, DISK_REFUSED where its status could not be written.

    Raises:
        RecordError: there is no spec, or a broken one.
    """
    preload()
    path = Path(folder)
    spec = read_spec(path)
    began, clock = time.time(), time.perf_counter()
    try:
        status = _ended(path, spec).model_copy(
            update={
                "key": spec.key,
                "content": spec.content,
                "started": round(began, 3),
                "seconds": round(time.perf_counter() - clock, 3),
                "spec_sha256": file_digest(path / SPEC),
            }
        )
        if process_group.rank():
            # The first process writes; its companions say by their exit status that something is wrong.
            return 0 if status.status.settled or status.status == CellStatus.DIVERGED else FAILED
        write_sealed(path / STATUS, status.model_dump(mode="json"))
    except StorageError as error:
        print(error, file=sys.stderr)
        return DISK_REFUSED
    return 0 if status.status == CellStatus.DONE else FAILED


def _ended(path: Path, spec: ReferenceSpec | CellSpec) -> NodeStatus:
    """Run, and turn every failure but a full disk into a status with its reason."""
    try:
        set_threads(spec.run.threads)
        if spec.run.deterministic:
            use_deterministic()
        check_environment(spec)
        if isinstance(spec, ReferenceSpec):
            return NodeStatus(status=CellStatus.DONE, facts=prepare_reference(spec))
        return NodeStatus.model_validate({"status": CellStatus.DONE, **run_cell(path, spec)})
    except StorageError:
        raise
    except Exception as error:  # A method may raise anything; its cell fails alone.
        translated = as_storage_error(error, path) if isinstance(error, OSError) else error
        if isinstance(translated, StorageError):
            raise translated from error
        return _failed(error, _targets(spec))


def _targets(spec: ReferenceSpec | CellSpec) -> list[str]:
    """The components whose code a node runs."""
    if isinstance(spec, ReferenceSpec):
        return [spec.benchmark.target]
    return [spec.method.target, spec.benchmark.target, *([spec.attack.target] if spec.attack else [])]


def _failed(error: Exception, targets: Sequence[str]) -> NodeStatus:
    """The status of a node that raised; what is nobody's expectation leaves its traceback in the log.

    Args:
        targets: of the components whose own line a reason names.
    """
    reason = " ".join(str(error).split())
    if isinstance(error, NotApplicable):
        return NodeStatus(status=CellStatus.NOT_APPLICABLE, reason=reason)
    if isinstance(error, Diverged):
        return NodeStatus(status=CellStatus.DIVERGED, reason=reason)
    if lacks_memory(error):
        return NodeStatus(status=CellStatus.OUT_OF_MEMORY, reason=reason or "out of memory")
    traceback.print_exception(error)
    if isinstance(error, HarnessError):
        if isinstance(error, UndeclaredAccess):
            reason = with_line(reason, error, targets)
        return NodeStatus(
            status=CellStatus.FAILED, reason=reason, error=type(error).__name__, exit_code=error.exit_code
        )
    return NodeStatus(status=CellStatus.FAILED, reason=with_line(f"{type(error).__name__}: {reason}", error, targets))


def preload() -> None:
    """Import what a node needs; a process that is forked after this finds it ready (1 s in each otherwise)."""
    import transformers

    # Logs are read later, not watched.
    transformers.utils.logging.disable_progress_bar()
    compile_key_patterns()
    engine_digest()
    provenance()
    root = __package__.partition(".")[0]
    for module in ("metrics.statistics", "metrics.overlap"):
        importlib.import_module(f"{root}.{module}")
