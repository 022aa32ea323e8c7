"""What runs a node in tests of what runs nodes: writes what a real one leaves, without a model, in milliseconds.

A file ``behaviour.json`` beside the run folder tells it how to behave: ``seconds`` that a node takes, and for titles of
nodes that contain a text, under ``ends``, a status to end as, or ``dies``, ``hangs`` or ``eats`` (memory).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

from unlearnbench.data.model_folder import REFERENCE, prepared_folder
from unlearnbench.records.node_spec import SPEC, CellSpec, read_spec
from unlearnbench.records.record import SAMPLES
from unlearnbench.records.run_folder import RECORD, STATUS
from unlearnbench.storage import as_storage_error, file_digest, rows_as_bytes, write_bytes, write_sealed

WORKER = "noop_worker:start_node"


def content_of(key: str) -> tuple[bytes, bytes]:
    """Record and samples of a cell, which depend on its key alone."""
    rows = [{"id": f"{key}/{number}", "value": number} for number in range(5)]
    samples = rows_as_bytes(rows)
    record = {"cell": key, "samples": hashlib.sha256(samples).hexdigest(), "scores": {"x": len(key)}}
    return json.dumps(record).encode(), samples


def start_node(folder: str) -> int:
    path = Path(folder)
    spec = read_spec(path)
    run = path.parent.parent
    behaviour = {}
    told = run.parent / "behaviour.json"
    if told.exists():
        behaviour = json.loads(told.read_text())
    # One line for every time that a node was begun, whoever asked for it.
    with (run.parent / "executions.txt").open("a") as file:
        file.write(f"{spec.key}\n")
    ends = next((how for text, how in behaviour.get("ends", {}).items() if text in spec.title), "done")
    print(f"{spec.title} began on {os.uname().nodename}", flush=True)
    time.sleep(behaviour.get("seconds", 0.0))
    if ends == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if ends == "hangs":
        time.sleep(600)
    if ends == "eats":
        kept = bytearray(os.urandom(2**20)) * 4000
        time.sleep(600 + len(kept))
    try:
        status = {
            "status": ends,
            "content": spec.content,
            "key": spec.key,
            "reason": "" if ends == "done" else "as told",
        }
        if ends == "done" and isinstance(spec, CellSpec):
            record, samples = content_of(spec.key)
            write_bytes(path / SAMPLES, samples)
            write_bytes(path / RECORD, record)
            status |= {
                "record_sha256": hashlib.sha256(record).hexdigest(),
                "samples_sha256": hashlib.sha256(samples).hexdigest(),
                "scoring": spec.benchmark.scoring,
            }
        elif ends == "done":
            write_sealed(prepared_folder(spec.cache, spec.key) / REFERENCE, {"files": {}, "notes": []})
        write_sealed(path / STATUS, {**status, "spec_sha256": file_digest(path / SPEC)})
    except OSError as error:
        raise as_storage_error(error, path) from error
    return 0 if ends == "done" else 1
