"""Runs a work within an allocation of a cluster: what a job of an executor does."""

from __future__ import annotations

import sys
from pathlib import Path

from ..domain import CellStatus
from ..errors import AGAIN, FAILED, StorageError
from ..records.run_folder import cache_folder
from .local_executor import slots_here
from .node_pool import NodePool
from .run_store import folder_of, whole_status
from .session import sigterm_interrupts
from .works import read_work


def run_nodes(file: Path) -> int:
    """Run the nodes of a work's file that have not ended.

    Returns the exit status, by which a cluster knows what to do: 0 where all are done, so that what needs them may
    start; FAILED where one ended otherwise; AGAIN where one has not ended, and the work is to be run again.

    Raises:
        RecordError: the file is absent or damaged.
    """
    work = read_work(file)
    # RUN/works/ID.json
    run = file.resolve().parent.parent
    settings = work.settings
    if settings.device == "auto":
        # What the plan took it for; a node of the cluster may have a GPU that the study does not ask for.
        settings = settings.model_copy(update={"device": work.nodes[0].spec.device_kind})
    try:
        with sigterm_interrupts(), NodePool(run, cache_folder(), settings, slots_here(settings), work.worker) as pool:
            pool.add(work.nodes, work.references)
            while pool.busy:
                for node in pool.step():
                    status = whole_status(folder_of(run, node))
                    print(f"{node.title}: {status.status if status else 'cannot start'}", flush=True)
    except KeyboardInterrupt:
        print("stopped by a signal; what was running begins again", file=sys.stderr)
        return AGAIN
    except StorageError as error:
        print(error, file=sys.stderr)
        return AGAIN
    found = [whole_status(folder_of(run, node)) for node in work.nodes]
    if any(status is None for status in found):
        return AGAIN
    return 0 if all(status and status.status == CellStatus.DONE for status in found) else FAILED
