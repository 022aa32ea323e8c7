"""The work of one process: prepare a reference model, or run one cell. The only code that meets a model."""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import transformers

from ..engine import process_group
from ..engine.memory import lacks_memory
from ..errors import (
    DISK_REFUSED,
    Diverged,
    HarnessError,
    NotApplicable,
    StorageError,
)
from ..storage import (
    as_storage_error,
    file_digest,
    read_json,
    write_sealed,
)
from .cell import run_cell
from .reference import prepare_reference
from .setup import set_threads


def run_node(folder: str) -> int:
    """Run the node whose ``spec.json`` lies in ``folder`` and leave ``status.json`` there.

    Returns the exit status of the process: 0 where a status was written, DISK_REFUSED where it could not be.
    """
    path = Path(folder)
    written = path / "spec.json"
    spec = read_json(written, "run the study again")
    began = time.time()
    clock = time.perf_counter()
    try:
        status = _guarded(path, spec)
        status |= {"key": spec["key"], "content": spec["content"], "started": round(began, 3)}
        status["spec_sha256"] = file_digest(written)
        status["seconds"] = round(time.perf_counter() - clock, 3)
        if process_group.rank():
            # The first process writes; its companions say by their exit status that something is wrong.
            return 0 if status["status"] in ("done", "not-applicable", "diverged") else 1
        write_sealed(path / "status.json", status)
    except StorageError as error:
        print(error, file=sys.stderr)
        return DISK_REFUSED
    return 0


def _guarded(path: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Run, and turn every failure but a full disk into a status with its reason."""
    try:
        set_threads(spec["run"].get("threads", 0))
        notes = prepare_reference(spec) if spec["kind"] == "model" else run_cell(path, spec)
        return {"status": "done", "reason": "", **notes}
    except StorageError:
        raise
    except NotApplicable as error:
        return {"status": "not-applicable", "reason": _line(error)}
    except Diverged as error:
        return {"status": "diverged", "reason": _line(error)}
    except HarnessError as error:
        traceback.print_exc()
        return {"status": "failed", "reason": _line(error), "error": type(error).__name__, "exit_code": error.exit_code}
    except OSError as error:
        translated = as_storage_error(error, path)
        if isinstance(translated, StorageError):
            raise translated from error
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {_line(error)}"}
    except Exception as error:  # noqa: BLE001 - a method may raise anything; its cell fails alone
        if lacks_memory(error):
            return {"status": "out-of-memory", "reason": _line(error) or "out of memory"}
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {_line(error)}"}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


# Logs are read later, not watched.
transformers.utils.logging.disable_progress_bar()


# A process forked after this has them ready; benchmarks import them anyway (1 s in each process otherwise).
for _module in (
    "transformers.models.llama.modeling_llama",
    "unlearnbench.metrics.statistics",
    "unlearnbench.metrics.overlap",
):
    importlib.import_module(_module)


# Before any checkpoint is loaded, transformers compiles some nine hundred patterns for all models (60 ms).
with suppress(ImportError):
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")
