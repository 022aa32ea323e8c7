"""Commands that pack, verify and rescore results."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import FAILED, INVALID, USAGE, BundleError, UnknownName, UsageError
from .options import json_option, plugin_option, registry_of
from .output import complain, print_columns, print_json, say

if TYPE_CHECKING:
    from ..plugin.registry import Registry
    from ..records.results import Results
    from ..results.verification import Verification


@click.command()
@click.argument("run_folder", metavar="RUN")
@click.option("-o", "--out", default="submission.zip", show_default=True, metavar="FILE")
@click.option("--contact", help="Whom to ask.")
@click.option("--licence", help="Licence of records and samples.")
@click.option("--budget", help="How many settings of each method were tried.")
@click.option("--selection", help="The rule that chose the settings, and the data it looked at.")
@click.option("--paper", help="Address or citation of the paper.")
@click.option("--code", help="Address of the code.")
@json_option
def bundle(run_folder: str, out: str, as_json: bool, **given: str | None) -> None:
    """Pack a run to hand in: records, samples, study, checksums and a manifest.

    What is not given stands in the study's [submission] table. Samples hold the benchmark's texts.
    """
    from ..records.run_folder import read_own_study
    from ..results.bundle import write_bundle

    told = read_own_study(Path(run_folder)).get("submission", {})
    submission = {**told, **{name: text for name, text in given.items() if text}}
    manifest = write_bundle(Path(run_folder), Path(out), submission, metadata.version("unlearnbench"))
    if as_json:
        return print_json({"bundle": out, "manifest": json.loads(manifest.model_dump_json())})
    done = sum(cell.status == "done" for cell in manifest.cells)
    say(
        f"{out}: {done} of {len(manifest.cells)} cells{', partial' if manifest.partial else ''}; "
        f"check it with: unlearnbench verify {out}"
    )
    return None


@click.command()
@click.argument("source", metavar="BUNDLE")
@click.option("--data-dir", metavar="DIR", help="The benchmark's tables, to hold prompts and truths against.")
@click.option("--badge/--no-badge", default=True, help="Write BUNDLE.verified.json, which pages show.")
@click.option("--rerun", metavar="CELL", help="Train and evaluate this cell again on this machine.")
@click.option("-o", "--out", metavar="DIR", help="Run folder of the rerun (default: runs/rerun).")
@click.option("--device", help="Device of the rerun.")
@plugin_option
@json_option
def verify(
    source: str,
    data_dir: str | None,
    badge: bool,
    rerun: str | None,
    out: str | None,
    device: str | None,
    plugins: tuple[str, ...],
    as_json: bool,
) -> int:
    """Recompute every score of a bundle (or run folder) from its samples, and say what does not hold.

    Exit code 7 where something does not. No code from a bundle is imported.
    """
    from .. import api
    from ..results.verification import write_badge

    registry = registry_of(plugins)
    if rerun:
        with api.open_results(source) as (results,):
            return _rerun(results, rerun, out or "runs/rerun", data_dir, device, registry, as_json)
    verification = api.verify(source, data_dir, registry)
    path = None
    if badge and verification.of_bundle:
        path = write_badge(Path(source), verification, metadata.version("unlearnbench"))
    if as_json:
        facts = {name: getattr(verification, name) for name in ("cells", "scores", "rows", "faults", "notes")}
        print_json({"source": source, **facts, "badge": str(path) if path else None})
        return 0 if verification.holds else INVALID
    _print_verification(verification)
    if path:
        say(f"badge: {path} (recomputed: scores follow from the samples; whether a model wrote them takes a rerun)")
    return 0


def _print_verification(verification: Verification) -> None:
    """Print a verification. Raises BundleError where there are faults."""
    for note in dict.fromkeys(verification.notes):
        say(f"note: {note}")
    for fault in verification.faults:
        say(f"FAULT {fault}")
    say(f"{len(verification.cells)} cells, {verification.scores} scores recomputed from {verification.rows} samples")
    if verification.faults:
        raise BundleError(
            f"{verification.source}: {len(verification.faults)} faults, the first: {verification.faults[0]}"
        )


def _rerun(
    results: Results, cell: str, out: str, data_dir: str | None, device: str | None, registry: Registry, as_json: bool
) -> int:
    """Run one cell of a bundle again and print its distance from the stored scores."""
    from .. import api
    from ..results.verification import distances, study_of

    records = {stored.key: stored.record for stored in results.finished}
    chosen = [key for key in records if key == cell or key.startswith(f"{cell}--")]
    if not chosen:
        raise UnknownName("cell", cell, {key.rpartition("--s")[0] for key in records})
    if len(chosen) > 1:
        # The beginning of a cell's name also begins those of the attacks on it.
        chosen = [key for key in chosen if not records[key].attack] or chosen
    if len(chosen) > 1:
        names = ", ".join(key.rpartition("--")[0] for key in chosen[:5]) + (", …" if len(chosen) > 5 else "")
        raise UsageError(f"--rerun {cell}: {len(chosen)} cells begin so ({names}); name one")
    record = records[chosen[0]]
    study = api.load_study(study_of(record, registry, data_dir or ""), {"run": {"device": device}} if device else None)
    ran = api.run(study, out, registry)
    for line in ran.to_mend:
        complain(line, USAGE)
    with api.open_results(out, edition=record.edition) as reran:
        wanted = record.identity.method, record.identity.attack
        again = next((c.record for c in reran.finished if (c.identity.method, c.identity.attack) == wanted), None)
    if again is None:
        return ran.exit_code or FAILED
    apart = distances(record, again)
    if as_json:
        print_json({"cell": record.cell, "rerun": out, "distances": [vars(distance) for distance in apart]})
    else:
        rows = [(d.metric, f"{d.stored:.6g}", f"{d.rerun:.6g}", f"{d.half_widths:.2f}") for d in apart]
        print_columns([("metric", "stored", "rerun", "half widths of the stored interval"), *rows])
    return ran.exit_code


@click.command()
@click.argument("run_folder", metavar="RUN")
@click.option("--judge", is_flag=True, help="Ask the outside scorers of benchmarks again first.")
@plugin_option
@json_option
def rescore(run_folder: str, judge: bool, plugins: tuple[str, ...], as_json: bool) -> None:
    """Score the cells of a run again from their stored samples, after a change of what scores; nothing is trained."""
    from ..results.rescoring import rescore as scored_again

    made = scored_again(Path(run_folder), registry_of(plugins), judge)
    if as_json:
        return print_json({"cells": [{"key": cell.key, "changes": list(cell.changes)} for cell in made]})
    for cell in made:
        for change in cell.changes:
            say(change)
    changed = sum(bool(cell.changes) for cell in made)
    say(f"{len(made)} cells scored again, {changed} of them with other scores or words")
    return None
