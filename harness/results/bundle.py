"""Packs a run into one file for submission: records, samples, study and a manifest with every file's hash.

Bundles are untrusted: readers accept fixed names and bounded sizes, import and run nothing from a bundle, and believe
its claims only where they can recompute them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..domain import CellStatus
from ..errors import UsageError
from ..plugin.validation import validated
from ..records.badge import BADGE_SCHEMA, Badge
from ..records.manifest import MANIFEST, BundledCell, BundledFile, Manifest, Submission
from ..records.record import SAMPLES, Record
from ..records.run_folder import RECORD, STUDY, FinishedCell, read_plan, stored_cells
from ..storage import file_digest, write_bytes


def write_bundle(run: Path, out: Path, submission: Mapping[str, str], version: str) -> Manifest:
    """Pack a run folder; equal runs give equal bytes.

    Raises:
        UsageError: the submission lacks a field, or no cell is done.
        RecordError: the run folder is broken.
    """
    told = validated(Submission, submission, "submission")
    if told.lacking:
        words = "; ".join(f"{name} ({Submission.model_fields[name].description})" for name in told.lacking)
        raise UsageError(f"the submission lacks {words}: give --{told.lacking[0]} or a [submission] table in the study")
    plan = read_plan(run)
    cells = stored_cells(run)
    done = [cell for cell in cells if isinstance(cell, FinishedCell)]
    if not done:
        raise UsageError(f"{run} has no finished cell to hand in; run its study first")
    files = {STUDY: run / STUDY}
    for cell in done:
        for name in (RECORD, SAMPLES):
            files[f"cells/{cell.key}/{name}"] = cell.folder / name
    manifest = Manifest(
        unlearnbench=version,
        study=plan.study,
        edition=plan.edition,
        partial=any(cell.status == CellStatus.PENDING for cell in cells),
        submission=told,
        plugins=_plugins([cell.record for cell in done]),
        cells=[
            BundledCell(key=cell.key, status=cell.status, reason=cell.reason, **vars(cell.identity)) for cell in cells
        ],
        files={name: BundledFile(sha256=file_digest(path), bytes=path.stat().st_size) for name, path in files.items()},
    )
    _write_zip(out, {MANIFEST: manifest.model_dump_json(indent=1).encode() + b"\n"}, files)
    return manifest


def _plugins(records: Sequence[Record]) -> list[dict[str, str]]:
    plugins = {}
    for record in records:
        for plugin in record.provenance["plugins"].values():
            entry = {"dist": plugin["dist"], "version": plugin["version"], "name": plugin["name"]}
            plugins[tuple(entry.values())] = entry
    return [plugins[key] for key in sorted(plugins)]


def _write_zip(out: Path, texts: Mapping[str, bytes], files: Mapping[str, Path]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (*texts, *sorted(files)):
            # A fixed time stamp: equal runs give equal bytes.
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, texts[name] if name in texts else files[name].read_bytes())
    write_bytes(out, buffer.getvalue())


def badge_path(bundle: Path) -> Path:
    """The path of a bundle's badge, beside the bundle."""
    return bundle.with_name(bundle.name + ".verified.json")


def read_badge(bundle: Path) -> Badge | None:
    """The badge of a bundle; None where it is absent, broken, of a newer schema or of another file."""
    path = badge_path(bundle)
    try:
        badge = Badge.model_validate_json(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    fits = badge is not None and badge.schema_version <= BADGE_SCHEMA and badge.bundle_sha256 == file_digest(bundle)
    return badge if fits else None
