"""Commands that plan and run studies, and manage the cache of reference models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import USAGE, PluginError, RecordError
from .options import executor_option, json_option, out_option, registry_of, run_options, study_of, study_options
from .output import complain, print_columns, print_json, say

if TYPE_CHECKING:
    from ..planning.nodes import Plan
    from ..planning.study import Study


@click.command()
@study_options
@out_option
@executor_option
@json_option
def plan(as_json: bool, **options: Any) -> None:
    """Show the cells of a study, what is done, and what a large model will cost, without running anything.

    \b
    STUDY is a TOML file or a built-in study:
    demo, paper-hp, paper-muse, paper-tofu, pre-merge.
    """
    from .. import api
    from ..records.run_folder import cache_folder, place_of_run
    from ..running.run_store import kept
    from ..running.session import executor_of
    from ..running.works import as_works, described

    study = study_of(options)
    registry = registry_of(study.plugins)
    made = api.plan(study, registry)
    run, cache = place_of_run(study.name, options["out"]), cache_folder()
    settled = kept(run, made.nodes, cache)
    done = [node.key in settled for node in made.nodes]
    (_print_plan_json if as_json else _print_plan)(made, done)
    executor = executor_of(study, registry)
    works = as_works(made, [node for node, is_done in zip(made.nodes, done, strict=True) if not is_done], {})
    if not executor.detached:
        executor.check(run, works)
    elif not as_json:
        for line in described(works):
            say(f"to submit: {line}")


def _print_plan_json(made: Plan, done: list[bool]) -> None:
    from ..planning.estimates import checkpoints, estimated, resident

    rows = []
    for node, is_done in zip(made.nodes, done, strict=True):
        cost = estimated(node.spec)
        rows.append(
            {
                "key": node.key,
                "kind": node.kind,
                "title": node.title,
                "state": "done" if is_done else "to run",
                "estimate": {"seconds": cost.seconds, "device_memory_bytes": cost.memory} if cost else None,
                "stage_memory_bytes": resident(node.spec) or None,
            }
        )
    needed = checkpoints(node.spec for node in made.nodes)
    print_json({"study": made.study.name, "nodes": rows, "reference_models": needed})


def _print_plan(made: Plan, done: list[bool]) -> None:
    from ..planning.estimates import checkpoints, estimated, resident
    from ..training.footprint import GIB

    costs = [estimated(node.spec) for node in made.nodes]
    states = ["done" if is_done else "to run" for is_done in done]
    rows = zip(states, made.nodes, costs, strict=True)
    print_columns([(state, node.kind, str(cost or ""), node.title) for state, node, cost in rows])
    for line in checkpoints(node.spec for node in made.nodes):
        say(f"reference model: {line}")
    known = [cost for cost in costs if cost]
    if known:
        hours = sum(cost.seconds for cost in known) / 3600
        most = max(cost.memory for cost in known) / GIB
        say(f"estimate for one H100-class GPU: {hours:.1f} h in all, {most:.0f} GiB at most")
    here = max((size for node in made.nodes for size in resident(node.spec).values()), default=0)
    if here:
        say(f"estimate for a process on this CPU: {here / GIB:.1f} GiB at most")
    say(f"{len(made.cells)} cells, {done.count(False)} of {len(done)} nodes to run")


@click.command()
@study_options
@run_options
def run(as_json: bool, strict_plugins: bool, **options: Any) -> int:
    """Run a study: train what it needs, evaluate every pairing, render its pages. Run again to resume.

    \b
    STUDY is a TOML file or a built-in study:
    demo, paper-hp, paper-muse, paper-tofu, pre-merge.
    """
    return _run(study_of(options), options, as_json, strict_plugins)


@click.command()
@click.option("--quick", is_flag=True, help="A smaller corpus and two epochs, in a third of the time.")
@click.option("--attack", "attacks", multiple=True, help="Attack on each unlearned model; 'all' for every one.")
@run_options
def demo(quick: bool, as_json: bool, strict_plugins: bool, **options: Any) -> int:
    """Every method on five generated benchmarks with a tiny model: no network, no GPU, some minutes."""
    from ..planning.overrides import merged
    from ..planning.study import read_study
    from ..records.provenance import usable_cores

    tables: dict[str, Any] = {"run": {"jobs": usable_cores()}}
    if quick:
        tables |= {"study": {"name": "demo-quick"}, "data": {"scale": "quick"}, "methods": {"*": {"epochs": 2}}}
    return _run(study_of(options, merged(read_study("demo"), tables)), options, as_json, strict_plugins)


def _run(study: Study, options: dict[str, Any], as_json: bool, strict: bool) -> int:
    from .. import api

    registry = registry_of(study.plugins)
    if strict and registry.broken:
        broken = registry.broken[0]
        raise PluginError(broken.name, f"does not load: {broken.error}")
    made = api.plan(study, registry)
    for source in options["sources"]:
        found = api.take_finished(made, source, options["out"], registry)
        say(f"{source}: {found.taken} of {found.finished} finished cells are taken", file=sys.stderr)
        for line in found.refused:
            say(f"warning: {line}", file=sys.stderr)
    ran = api.run(
        made,
        options["out"],
        registry,
        detach=options["detach"],
        tracker=options["tracker"] or "",
        follow=options["follow"] or "",
    )
    page = None
    if ran.waiting:
        where = study.run.executor
        say(f"{ran.waiting} nodes are with {where}; the same command without --detach follows them", file=sys.stderr)
        if not as_json:
            return ran.exit_code
    elif not ran.to_mend:
        site = options["site"] or ran.folder / "site"
        page = api.render(ran.folder, out=site, edition=study.edition, registry=registry).page
    with ran.results() as results:
        if as_json:
            print_json(
                {
                    "run": str(ran.folder),
                    "page": str(page) if page else None,
                    "exit_code": ran.exit_code,
                    "cells": [
                        {"key": cell.key, **vars(cell.identity), "status": cell.status, "reason": cell.reason}
                        for cell in results.cells
                    ],
                    "records": [json.loads(cell.record.model_dump_json()) for cell in results.finished],
                }
            )
        elif page:
            from ..leaderboard.terminal import print_tables

            print_tables(results.cells)
            say(f"page: {page}")
    for line in ran.to_mend:
        complain(line, USAGE)
    return ran.exit_code


@click.command("meta-evaluate")
@study_options
@out_option
@click.option("-j", "--jobs", type=int, help="Cells at a time on each device.")
@click.option("--device", help="cpu, cuda, cuda:1, …")
@click.option("--quick", is_flag=True, help="Nine pairs of models in place of thirty; the demo's with smaller data.")
@json_option
def meta_evaluate(quick: bool, as_json: bool, **options: Any) -> None:
    """Rate the metrics of a study's benchmarks by models with and without the forget set. Run again to resume.

    \b
    STUDY is a TOML file or a built-in study; without one the demo's benchmarks are rated.
    """
    from .. import api
    from ..leaderboard.terminal import print_trust
    from ..planning.overrides import merged
    from ..planning.study import read_study
    from ..records.provenance import usable_cores
    from ..records.run_folder import place_of_run

    base = None
    if not options.get("study_file"):
        more: dict[str, Any] = {"run": {"jobs": usable_cores()}}
        base = merged(read_study("demo"), {**more, "data": {"scale": "quick"}} if quick else more)
    study = study_of(options, base)
    registry = registry_of(study.plugins)
    folder = place_of_run(f"{study.name}-meta", options["out"])
    found = api.meta_evaluate(study, folder, quick, registry)
    page = api.render(folder, out=folder / "site", registry=registry).page.with_name("trust.html")
    if as_json:
        return print_json({**found.model_dump(mode="json"), "page": str(page)})
    print_trust(found)
    say(f"page: {page}")
    return None


@click.command("run-cell")
@click.argument("folder")
def run_cell(folder: str) -> int:
    """Run the cell whose spec.json lies in FOLDER (what executors call).

    Exit status 0 where the cell is done, so that what needs it may start; 1 where it ended otherwise.
    """
    if not (Path(folder) / "spec.json").is_file():
        raise RecordError(f"{folder} has no spec.json; name the folder of a planned cell")
    from ..worker.worker import start_node

    return start_node(folder)


@click.command("run-nodes")
@click.argument("file")
def run_nodes(file: str) -> int:
    """Run the nodes of a work's FILE in this allocation (what jobs of a cluster call).

    Exit status 0 where all are done, so that what needs them may start; 1 where one ended otherwise; 75 where one has
    not ended, and the same command is to be run again.
    """
    from ..running.run_nodes import run_nodes

    return run_nodes(Path(file))


@click.command()
@study_options
@out_option
@executor_option
def cancel(**options: Any) -> None:
    """Cancel what of a study is queued or runs on a cluster; what has ended stays.

    \b
    STUDY is a TOML file or a built-in study.
    """
    from ..records.run_folder import place_of_run
    from ..running.session import executor_of

    study = study_of(options)
    executor = executor_of(study, registry_of(study.plugins))
    held = executor.find(place_of_run(study.name, options["out"]))
    executor.cancel(list(held.values()))
    say(f"{len(held)} jobs of {study.run.executor} cancelled")


@click.command()
@click.option("--clear", is_flag=True, help="Delete every prepared model.")
@json_option
def cache(clear: bool, as_json: bool) -> None:
    """Show, or clear, the cache of prepared reference models."""
    import shutil

    from ..records.run_folder import cache_folder

    models = cache_folder() / "models"
    folders = sorted(path for path in models.iterdir() if path.is_dir()) if models.is_dir() else []
    sizes = {path.name: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in folders}
    if clear:
        for path in folders:
            shutil.rmtree(path)
    if as_json:
        return print_json({"folder": str(models), "models": sizes, "cleared": clear})
    print_columns([(f"{size / 2**20:.1f} MiB", name) for name, size in sizes.items()])
    say(f"{sum(sizes.values()) / 2**20:.1f} MiB in {models}" + (", cleared" if clear else ""))
    return None


@click.command("bench-gpu")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    type=click.Choice(["tiny", "135m", "1b", "7b"]),
    help="Shape of a model with random weights; by default 135m, 1b and 7b.",
)
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, … or cpu.")
@click.option(
    "--optimiser",
    type=click.Choice(["adamw", "adamw-8bit", "adamw-bf16", "lora"]),
    default="adamw",
    show_default=True,
    help="What training steps are taken with, as run.optimiser.",
)
@json_option
def bench_gpu(shapes: tuple[str, ...], device: str, optimiser: str, as_json: bool) -> None:
    """Measure this device, and how near training, scoring and decoding come to what it can do."""
    import torch

    from ..training.device_benchmark import as_json as all_of_it
    from ..training.device_benchmark import measured_limits, stages
    from ..worker.setup import device_of

    place = device_of(device)
    limits = measured_limits(place, torch.bfloat16 if place.type == "cuda" else torch.float32)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    if not as_json:
        say(f"{name}: matrix products {limits.operations / 1e12:.2f} TFLOP/s, copies {limits.bandwidth / 1e9:.0f} GB/s")
    measured = []
    for shape in shapes or ("135m", "1b", "7b"):
        for stage in stages(shape, limits, place, optimiser):
            measured.append(stage)
            if not as_json:
                bound = "bandwidth bound" if stage.stage == "decoding" else "matrix rate"
                figures = f"{stage.tokens_per_second:,.0f} tokens/s, {stage.utilisation:.0%} of the {bound}"
                say(f"{stage.shape:>5} {stage.stage:<9} {stage.missing or figures}", flush=True)
    if as_json:
        print_json({"device": name, **all_of_it(limits, measured)})
