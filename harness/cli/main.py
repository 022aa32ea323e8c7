"""The command line. Nothing is imported before it is needed: ``list`` and ``--help`` never meet torch.

Exit codes: 0 all done · 1 some cell failed · 2 interrupted, state saved · 3 internal error or full disk ·
4 usage or configuration error, or rows that may not be compared · 5 nothing selected · 6 a gate tripped ·
7 a submission or a conformance check does not hold.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UNPRINTABLE, HarnessError, PluginError, RecordError, UsageError, printable

if TYPE_CHECKING:
    from ..planning.nodes import Plan
    from ..planning.study import Study
    from ..plugin.registry import Registry
    from ..records.run_folder import StoredCell


KINDS = ("methods", "benchmarks", "models", "plugins", "executors", "reporters")
FAILED, INTERRUPTED, INTERNAL, USAGE, TRIPPED, INVALID = 1, 2, 3, 4, 6, 7


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """The exit code of a command line; every expected error is one line on stderr."""
    try:
        code = cli.main(args=list(arguments), prog_name="unlearnbench", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except HarnessError as error:
        return _complain(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        _say(error.ctx.get_help() if error.ctx else error.format_message())
        return 0
    except click.ClickException as error:
        return _complain(error.format_message(), USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted; what is finished is kept, and the same command resumes", INTERRUPTED)
    except BrokenPipeError:
        # The reader has gone (head, less): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:  # noqa: BLE001 - the last resort must be a line and a code of its own
        import traceback

        traceback.print_exc()
        return _complain(f"internal error: {type(error).__name__}: {error}", INTERNAL)


def _say(text: object, **options: Any) -> None:
    print(printable(str(text)), **options)


def _complain(message: str, code: int) -> int:
    _say(f"unlearnbench: {' '.join(message.split())}", file=sys.stderr)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="unlearnbench")
def cli() -> None:
    """Benchmark unlearning methods for large language models."""


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else.")(command)


def _plugin_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Load a plugin from a file.")(
        command
    )


def _study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that ``plan`` and ``run`` share; each overrides a key of the study file."""
    options = (
        click.argument("study_file", required=False, metavar="[STUDY]"),
        click.option("-m", "--method", "methods", multiple=True, help="Method to run; 'all' for every one."),
        click.option("-b", "--benchmark", "benchmarks", multiple=True, help="Benchmark to run on."),
        click.option("--model", "models", multiple=True, help="Registered model, folder or hub id."),
        click.option("--seed", "seeds", multiple=True, type=int, help="Seed; several give a spread."),
        click.option("--data-dir", metavar="DIR", help="Read tables from a folder in the hub's layout."),
        click.option("--book", metavar="FILE", help="Text of the book to forget (benchmark hp)."),
        click.option("--other-text", metavar="FILE", help="Text to retain beside the book; default: C4."),
        click.option("--allow-missing", multiple=True, metavar="TABLE", help="Do without a table; rows are unranked."),
        click.option("--stand-in", "stand_ins", multiple=True, metavar="TABLE=TABLE",
                     help="Read another table in place of one; rows are unranked."),
        click.option("--data", type=click.Choice(["hub", "local", "generated"]), help="Where tables come from."),
        click.option("--edition", type=click.Choice(["paper", "as-released"]), help="Metric edition shown."),
        click.option("--limit", type=int, help="Score the first rows of each part only."),
        click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE",
                     help="Any key of the study, e.g. methods.npo.beta=0.1."),
        click.option("--name", help="Name of the study and of its run folder."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return _plugin_option(command)


def _registry(plugins: Sequence[str]) -> Registry:
    from ..plugin.registry import load_plugins

    registry = load_plugins(plugins)
    for plugin in registry.broken:
        _say(f"warning: plugin {plugin.name} ({plugin.dist}) did not load: {plugin.error}", file=sys.stderr)
    return registry


def _study(options: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> Study:
    """The study of the file, or ``base``, with the command line over it."""
    from ..planning.study import assigned, check_study, placed, read_study, selected_by

    raw: dict[str, Any] = dict(base or {})
    if options.get("study_file"):
        raw = read_study(options["study_file"])
    also = selected_by(raw)
    settings: list[tuple[tuple[str, ...], Any]] = []
    for key in ("methods", "benchmarks", "models", "seeds"):
        if options[key]:
            settings.append((("study", key), list(options[key])))
    for option, path in (("name", ("study", "name")), ("edition", ("study", "edition")), ("data_dir", ("data", "dir")),
                         ("data", ("data", "source"))):  # fmt: skip
        if options[option]:
            settings.append((path, options[option]))
    if options["data_dir"] and not options["data"]:
        settings.append((("data", "source"), "local"))
    for option, table in (("book", "book"), ("other_text", "retain")):
        if options.get(option):
            settings.append((("data", "files", table), options[option]))
    if options.get("allow_missing"):
        settings.append((("data", "allow_missing"), list(options["allow_missing"])))
    for swap in options.get("stand_ins", ()):
        table, equals, other = swap.partition("=")
        if not equals or not other:
            raise UsageError(f"--stand-in {swap!r}: expected TABLE=TABLE, for example raw/retain1=raw/retain1_standin")
        settings.append((("data", "stand_ins", table), other))
    if options["limit"] is not None:
        settings.append((("benchmarks", "*", "limit"), options["limit"]))
    for option in ("jobs", "timeout", "memory_limit", "device", "keep_model"):
        if options.get(option) is not None:
            settings.append((("run", option), options[option]))
    return check_study(placed(assigned(raw, options["assignments"]), settings), options["plugins"], also)


# -- looking ------------------------------------------------------------------------------------------------------


@cli.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@_plugin_option
@_json_option
def list_components(kind: str, plugins: tuple[str, ...], as_json: bool) -> None:
    """List what is registered: methods, benchmarks, models, plugins, executors, reporters."""
    registry = _registry(plugins)
    if kind == "plugins":
        rows = [
            {"name": p.name, "dist": p.dist, "version": p.version, "status": p.error or "ok", "offers": list(p.offers)}
            for p in registry.plugins
        ]
        conflicts = registry.conflicts()
        if as_json:
            return _print_json({"plugins": rows, "conflicts": conflicts})
        _print_columns([(f"{r['dist']}/{r['name']}", str(r["version"]), str(r["status"])) for r in rows])
        for name, offers in conflicts.items():
            _say(f"conflict: {name} is offered by {' and '.join(offers)}; use the qualified name")
        return None
    components = registry.of_kind(kind.removesuffix("s"))  # type: ignore[arg-type]
    if as_json:
        return _print_json({kind: [{"name": c.spec.name, "qualified": c.qualified, "summary": c.spec.summary}
                                   for c in components]})  # fmt: skip
    conflicted = {name for offers in registry.conflicts().values() for name in offers}
    _print_columns([(c.qualified if c.qualified in conflicted else c.spec.name, c.spec.summary) for c in components])
    return None


@cli.command()
@click.argument("name")
@_plugin_option
@_json_option
def show(name: str, plugins: tuple[str, ...], as_json: bool) -> None:
    """Show a method, benchmark or model: hyperparameters, data needs, citation; 'paper': its published tables."""
    from .description import described, description_lines

    registry = _registry(plugins)
    if name == "paper":
        return _reporter(registry, "paper")(as_json)  # type: ignore[no-any-return]
    facts = described(registry, name)
    if as_json:
        return _print_json(facts)
    return _say("\n".join(description_lines(facts)))


@cli.command()
@_study_options
@click.option("-o", "--out", metavar="DIR", help="Run folder (default: runs/<name of the study>).")
@_json_option
def plan(as_json: bool, **options: Any) -> None:
    """Show the cells of a study, what is done, and what a large model will cost, without running anything.

    \b
    STUDY is a TOML file or a built-in study:
    demo, paper-hp, paper-muse, paper-tofu, pre-merge.
    """
    from ..planning.estimates import GIB, checkpoints, estimated, resident
    from ..planning.plan import make_plan
    from ..records.run_folder import cache_folder
    from ..running.run_folder_writer import finished

    study = _study(options)
    made = make_plan(study, _registry(study.plugins))
    run = Path(options["out"] or Path("runs") / study.name)
    cache = cache_folder()
    rows: list[dict[str, Any]]
    rows = [{"key": node.key, "kind": node.kind, "title": node.title,
             "state": "done" if finished(run, node, cache) else "to run"} for node in made.nodes]  # fmt: skip
    costs = [estimated({**node.spec, "kind": node.kind}) for node in made.nodes]
    stages = [resident({**node.spec, "kind": node.kind}) for node in made.nodes]
    needed = checkpoints([{**node.spec, "kind": node.kind} for node in made.nodes])
    if as_json:
        for row, cost, memory in zip(rows, costs, stages, strict=True):
            row["estimate"] = {"seconds": cost.seconds, "device_memory_bytes": cost.memory} if cost else None
            row["stage_memory_bytes"] = memory or None
        return _print_json({"study": study.name, "nodes": rows, "reference_models": needed})
    _print_columns([(row["state"], row["kind"], str(cost or ""), row["title"])
                    for row, cost in zip(rows, costs, strict=True)])  # fmt: skip
    for line in needed:
        _say(f"reference model: {line}")
    known = [cost for cost in costs if cost]
    if known:
        hours = sum(cost.seconds for cost in known) / 3600
        most = max(cost.memory for cost in known) / GIB
        _say(f"estimate for one H100-class GPU: {hours:.1f} h in all, {most:.0f} GiB at most")
    here = max((bytes_ for memory in stages for bytes_ in memory.values()), default=0)
    if here:
        _say(f"estimate for a process on this CPU: {here / GIB:.1f} GiB at most")
    _say(f"{len(made.cells)} cells, {sum(row['state'] == 'to run' for row in rows)} of {len(rows)} nodes to run")
    return None


@cli.group()
def new() -> None:
    """Write a small plugin package: a method or a benchmark with its tests."""


def _write_package(kind: Any, name: str, folder: str) -> None:
    from ..authoring.scaffold import write_package

    for path in write_package(kind, name, Path(folder)):
        _say(path)
    _say(f"next: pip install -e {Path(folder) / name} && unlearnbench check {name}")


@new.command("method")
@click.argument("name")
@click.option("-o", "--out", default=".", metavar="DIR", help="Where the package's folder goes.")
def new_method(name: str, out: str) -> None:
    """Write the package of an unlearning method."""
    _write_package("method", name, out)


@new.command("benchmark")
@click.argument("name")
@click.option("-o", "--out", default=".", metavar="DIR", help="Where the package's folder goes.")
def new_benchmark(name: str, out: str) -> None:
    """Write the package of a benchmark."""
    _write_package("benchmark", name, out)


@cli.command("check")
@click.argument("name")
@click.option("--data-dir", metavar="DIR", help="Tables for a benchmark without generated ones.")
@_plugin_option
@_json_option
def check_component(name: str, data_dir: str | None, plugins: tuple[str, ...], as_json: bool) -> int:
    """Try out what a method or benchmark promises, on a model of 30,000 weights; exit code 7 where it does not hold."""
    # What libraries say while they work is not part of the answer.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from ..authoring.conformance import check, checkable

    registry = _registry(plugins)
    component = checkable(registry, name)
    found = []
    for each in check(component, data_dir or ""):
        found.append(each)
        if not as_json:
            message = f": {each.message}" if each.message else ""
            _say(f"{'ok    ' if each.kept else 'BROKEN'}  {each.name}{message}", flush=True)
    broken = [each for each in found if not each.kept]
    if as_json:
        _print_json({"name": component.qualified, "holds": not broken, "checks": [vars(each) for each in found]})
    else:
        _say(f"{component.qualified}: {len(found) - len(broken)} of {len(found)} checks hold")
    return INVALID if broken else 0


# -- running ------------------------------------------------------------------------------------------------------


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("-o", "--out", metavar="DIR", help="Run folder (default: runs/<name of the study>)."),
        click.option("-j", "--jobs", type=int, help="Cells at a time on each device."),
        click.option("--timeout", type=float, help="Seconds a cell may take."),
        click.option("--memory-limit", type=float, help="GiB of memory a cell may use."),
        click.option("--device", help="cpu, cuda, cuda:1, …"),
        click.option("--keep-model", is_flag=True, default=None, help="Keep unlearned weights."),
        click.option("--site", metavar="DIR", help="Where the pages go (default: <run folder>/site)."),
        click.option("--strict-plugins", is_flag=True, help="Fail where any plugin does not load."),
    )
    for option in reversed(options):
        command = option(command)
    return _json_option(command)


@cli.command()
@_study_options
@_run_options
def run(as_json: bool, strict_plugins: bool, **options: Any) -> int:
    """Run a study: train what it needs, evaluate every pairing, render its pages. Run again to resume.

    \b
    STUDY is a TOML file or a built-in study:
    demo, paper-hp, paper-muse, paper-tofu, pre-merge.
    """
    study = _study(options)
    return _run(study, options, as_json, strict_plugins)


@cli.command()
@click.option("--quick", is_flag=True, help="A smaller corpus, in a quarter of the time.")
@_run_options
def demo(quick: bool, as_json: bool, strict_plugins: bool, **options: Any) -> int:
    """Every method on five generated benchmarks with a tiny model: no network, no GPU, some minutes."""
    import tomllib
    from importlib.resources import files

    base = tomllib.loads(files("unlearnbench.planning").joinpath("presets/demo.toml").read_text(encoding="utf-8"))
    if quick:
        base["study"]["name"] = "demo-quick"
        base["data"]["scale"] = "quick"
        base["methods"] = {"*": {"epochs": 3}}
    from ..planning.provenance import usable_cores

    base["run"].setdefault("jobs", usable_cores())
    nothing: dict[str, Any] = dict.fromkeys(("study_file", "data_dir", "data", "edition", "limit", "name"))
    nothing |= dict.fromkeys(("methods", "benchmarks", "models", "seeds", "assignments", "plugins"), ())
    return _run(_study({**nothing, **options}, base), options, as_json, strict_plugins)


def _run(study: Study, options: Mapping[str, Any], as_json: bool, strict: bool) -> int:
    from ..planning.plan import make_plan

    registry = _registry(study.plugins)
    if strict and registry.broken:
        broken = registry.broken[0]
        raise PluginError(broken.name, f"does not load: {broken.error}")
    made = make_plan(study, registry)
    folder = Path(options["out"] or Path("runs") / study.name)
    code, failures = _execute(folder, made, registry)
    page = None
    if not failures:
        page, _ = _render([folder], options["site"] or str(folder / "site"), registry, study.edition)
    if as_json:
        _print_json(_run_summary(folder, code, page))
    elif page:
        _reporter(registry, "table")(_cells([folder], study.edition))
        _say(f"page: {page}")
    for line in failures:
        _complain(line, USAGE)
    return code


def _execute(folder: Path, made: Plan, registry: Registry) -> tuple[int, list[str]]:
    """Run the plan in its folder; the exit code, and what the user must mend before anything can be shown."""
    import signal
    import threading

    from ..plugin.specs import resolve
    from ..records.run_folder import cache_folder
    from ..running.progress import Progress
    from ..running.run_folder_writer import OK, locked, write_plan, write_study
    from ..running.scheduler import execute

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    executor = registry.find("executor", str(made.study.run["executor"]))
    with locked(folder), Progress(len(made.nodes)) as progress:
        write_plan(folder, made)
        write_study(folder, made)
        registry.notify("unlearnbench_run_started", progress.say, run=str(folder), cells=len(made.cells))

        def observe(outcome: Any, done: int, total: int) -> None:
            progress(outcome, done, total)
            if outcome.node.kind == "cell":
                status = {"status": outcome.status, "reason": outcome.reason, "seconds": outcome.seconds}
                registry.notify("unlearnbench_cell_finished", progress.say, cell=outcome.node.key, status=status)

        # Signals are the main thread's; who calls from another has to stop its process.
        main = threading.current_thread() is threading.main_thread()
        previous = signal.signal(signal.SIGTERM, interrupt) if main else None
        try:
            outcomes = execute(folder, made, cache_folder(), observe, resolve(executor.spec.target, "executor")())
        finally:
            if main:
                signal.signal(signal.SIGTERM, previous)
        bad = [outcome for outcome in outcomes if outcome.status not in OK]
        mine = [outcome for outcome in bad if outcome.node.kind == "model" and outcome.exit_code == USAGE]
        code = USAGE if mine else FAILED if bad else 0
        registry.notify("unlearnbench_run_finished", progress.say, run=str(folder), exit_code=code)
    return code, [f"{outcome.node.title}: {outcome.reason}" for outcome in mine]


def _run_summary(folder: Path, code: int, page: str | None) -> dict[str, Any]:
    cells = _cells([folder])
    return {
        "run": str(folder),
        "page": page,
        "exit_code": code,
        "cells": [{"key": c.key, **c.identity, "status": c.status, "reason": c.reason} for c in cells],
        "records": [json.loads(c.record.model_dump_json()) for c in cells if c.record],
    }


def _cells(folders: Sequence[Path], edition: str = "") -> list[StoredCell]:
    from ..records.run_folder import stored_cells

    return [cell for folder in folders for cell in stored_cells(folder, edition)]


def _reporter(registry: Registry, name: str) -> Any:
    from ..plugin.specs import resolve

    component = registry.find("reporter", name)
    return resolve(component.spec.target, component.qualified)


def _render(
    sources: Sequence[str | Path], out: str, registry: Registry, edition: str, strict: bool = True
) -> tuple[str, list[str]]:
    """The first page, and what is wrong with the sources, a line each."""
    from ..errors import BundleError
    from ..results.opening import opened
    from ..results.verification import held

    with opened(sources, edition, lenient=not strict) as found:
        shown = [held(results, registry) for results in found]
        faults = [some.fault for some in shown if some.fault]
        faults += [f"{some.source}: {some.badge.faults[0]} ({len(some.badge.faults)} in all)"
                   for some in shown if some.badge and some.badge.faults]  # fmt: skip
        if strict and faults:
            raise BundleError(faults[0])
        return str(_reporter(registry, "html")(shown, Path(out), registry)), faults


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…")
@click.option("-o", "--out", default="site", show_default=True, help="Folder for the pages.")
@click.option("--edition", type=click.Choice(["paper", "as-released"]), help="Metric edition shown.")
@click.option("--strict", is_flag=True, help="Write nothing where a bundle cannot be read or does not recompute.")
@_plugin_option
def render(runs: tuple[str, ...], out: str, edition: str | None, strict: bool, plugins: tuple[str, ...]) -> int:
    """Render the pages of run folders, bundles, or folders of bundles.

    Scores of bundles are recomputed first, unless 'verify' left a badge. What does not recompute, or cannot be read in
    a folder of bundles, is shown apart with its fault, and the exit code is 7.
    """
    page, faults = _render(runs, out, _registry(plugins), edition or "", strict)
    _say(page)
    for fault in faults:
        _complain(fault, INVALID)
    return INVALID if faults else 0


@cli.command()
@click.argument("site", metavar="SITE")
@click.option("--to", "where", required=True, metavar="TARGET", help="dir:PATH, gh-pages or hf-space:ORG/NAME.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@_json_option
def publish(site: str, where: str, dry_run: bool, as_json: bool) -> None:
    """Put a site's pages where readers find them; what was not published from here stays as it is."""
    from ..leaderboard.publishing import publish as put
    from ..leaderboard.publishing import target_of

    target = target_of(where)
    changes, address = put(Path(site), target, dry_run)
    if as_json:
        facts = {name: list(getattr(changes, name)) for name in ("added", "replaced", "removed")}
        return _print_json({"target": target.name, "published": address, "same": changes.same, **facts})
    for sign, names in (("+", changes.added), ("~", changes.replaced), ("-", changes.removed)):
        for name in names if dry_run else ():
            _say(f"{sign} {name}")
    counts = (f"{len(changes.added)} added, {len(changes.replaced)} replaced, {len(changes.removed)} removed, "
              f"{changes.same} as before")  # fmt: skip
    _say(f"{'dry run, nothing written' if dry_run else address or 'nothing to publish'}: {target.name}: {counts}")
    return None


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…")
@click.option("--edition", type=click.Choice(["paper", "as-released"]), help="Metric edition shown.")
@_plugin_option
@_json_option
def results(runs: tuple[str, ...], edition: str | None, plugins: tuple[str, ...], as_json: bool) -> None:
    """Print the tables of run folders, bundles, or folders of bundles."""
    from ..results.opening import opened

    with opened(runs, edition or "") as found:
        cells = [cell for results in found for cell in results.cells]
        gates = [gate for results in found for gate in results.study.get("gates", [])]
    if as_json:
        records = [json.loads(cell.record.model_dump_json()) for cell in cells if cell.record]
        return _print_json({"records": records, "gates": gates})
    _reporter(_registry(plugins), "table")(cells)
    return None


@cli.command()
@click.argument("baseline")
@click.argument("candidate")
@click.option("--gates", "gates_file", metavar="STUDY", help="Take [[gates]] from this study, not the candidate's.")
@click.option("--no-gates", is_flag=True, help="Compare alone, and judge no gate.")
@click.option("--edition", type=click.Choice(["paper", "as-released"]), help="Metric edition compared.")
@click.option("--markdown", metavar="FILE", help="Write Markdown for a job summary.")
@click.option("--junit", metavar="FILE", help="Write JUnit XML, a test case for each check.")
@_plugin_option
@_json_option
def compare(
    baseline: str,
    candidate: str,
    gates_file: str | None,
    no_gates: bool,
    edition: str | None,
    markdown: str | None,
    junit: str | None,
    plugins: tuple[str, ...],
    as_json: bool,
) -> int:
    """Compare two results row by row, with paired intervals, and judge the gates of the study.

    BASELINE and CANDIDATE are run folders, bundles, or records printed by 'results --json'. Exit code 6 where a gate
    trips, 4 where rows may not be compared or no gate was there to be judged.
    """
    from ..planning.study import read_study
    from ..records.gates import read_gates
    from ..results.comparison import compare as compared
    from ..results.comparison import judged
    from ..results.opening import opened
    from ..storage import write_bytes

    registry = _registry(plugins)
    with opened([baseline, candidate], edition or "") as found:
        if len(found) != 2:
            raise UsageError(f"{baseline} and {candidate} hold {len(found)} results; compare two")
        gates = [] if no_gates else read_gates(read_study(gates_file) if gates_file else found[1].study)
        comparison = compared(found[0], found[1], registry)
    findings = judged(comparison, gates)
    from ..plugin.specs import resolve

    def output(name: str) -> Any:
        return resolve(f"unlearnbench.leaderboard.comparisons:{name}", "unlearnbench")(comparison, findings)

    for file, name in ((markdown, "as_markdown"), (junit, "as_junit")):
        if file:
            write_bytes(Path(file), output(name).encode())
    if as_json:
        _print_json(output("as_json"))
    else:
        output("print_comparison")
    if not gates and not no_gates:
        raise UsageError(
            f"no gate was judged: {candidate} has no [[gates]]; name a study that has with --gates, or say --no-gates"
        )
    return TRIPPED if any(finding.tripped for finding in findings) else 0


@cli.command()
@click.argument("run_folder", metavar="RUN")
@click.option("-o", "--out", default="submission.zip", show_default=True, metavar="FILE")
@click.option("--contact", help="Whom to ask.")
@click.option("--licence", help="Licence of records and samples.")
@click.option("--budget", help="How many settings of each method were tried.")
@click.option("--selection", help="The rule that chose the settings, and the data it looked at.")
@click.option("--paper", help="Address or citation of the paper.")
@click.option("--code", help="Address of the code.")
@_json_option
def bundle(run_folder: str, out: str, as_json: bool, **given: str | None) -> None:
    """Pack a run to hand in: records, samples, study, checksums and a manifest.

    What is not given stands in the study's [submission] table. Samples hold the benchmark's texts.
    """
    from importlib import metadata

    from ..records.run_folder import read_own_study
    from ..results.bundle import write_bundle

    told = read_own_study(Path(run_folder)).get("submission", {})
    submission = {**told, **{name: text for name, text in given.items() if text}}
    manifest = write_bundle(Path(run_folder), Path(out), submission, metadata.version("unlearnbench"))
    if as_json:
        return _print_json({"bundle": out, "manifest": json.loads(manifest.model_dump_json())})
    done = sum(cell.status == "done" for cell in manifest.cells)
    _say(f"{out}: {done} of {len(manifest.cells)} cells{', partial' if manifest.partial else ''}; "
          f"check it with: unlearnbench verify {out}")  # fmt: skip
    return None


@cli.command()
@click.argument("source", metavar="BUNDLE")
@click.option("--data-dir", metavar="DIR", help="The benchmark's tables, to hold prompts and truths against.")
@click.option("--badge/--no-badge", default=True, help="Write BUNDLE.verified.json, which pages show.")
@click.option("--rerun", metavar="CELL", help="Train and evaluate this cell again on this machine.")
@click.option("-o", "--out", metavar="DIR", help="Run folder of the rerun (default: runs/rerun).")
@click.option("--device", help="Device of the rerun.")
@_plugin_option
@_json_option
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
    from importlib import metadata

    from ..data.sources import DataSource
    from ..errors import BundleError
    from ..results.opening import opened
    from ..results.verification import verify as verified
    from ..results.verification import write_badge

    registry = _registry(plugins)
    with opened([source]) as (results,):
        if rerun:
            return _rerun(results, rerun, out or "runs/rerun", data_dir, device, registry, as_json)
        found = verified(results, registry, DataSource("local", data_dir) if data_dir else None)
        path = None
        if badge and results.manifest:
            path = write_badge(Path(source), found, metadata.version("unlearnbench"))
    if as_json:
        _print_json({"source": source, "cells": found.cells, "scores": found.scores, "rows": found.rows,
                     "faults": found.faults, "notes": found.notes, "badge": str(path) if path else None})  # fmt: skip
        return 0 if found.holds else INVALID
    for note in dict.fromkeys(found.notes):
        _say(f"note: {note}")
    for fault in found.faults:
        _say(f"FAULT {fault}")
    _say(f"{len(found.cells)} cells, {found.scores} scores recomputed from {found.rows} samples")
    if found.faults:
        raise BundleError(f"{source}: {len(found.faults)} faults, the first: {found.faults[0]}")
    if path:
        _say(f"badge: {path} (recomputed: scores follow from the samples; whether a model wrote them takes a rerun)")
    return 0


def _rerun(
    results: Any, cell: str, out: str, data_dir: str | None, device: str | None, registry: Registry, as_json: bool
) -> int:
    """Run one cell of a bundle again and print how far it came out from what is stored."""
    from ..errors import UnknownName
    from ..planning.plan import make_plan
    from ..planning.study import check_study
    from ..results.verification import distances, study_of

    records = {stored.key: stored.record for stored in results.cells if stored.record}
    chosen = [key for key in records if key == cell or key.startswith(f"{cell}--")]
    if not chosen:
        raise UnknownName("cell", cell, {key.rpartition("--s")[0] for key in records})
    if len(chosen) > 1:
        names = ", ".join(key.rpartition("--")[0] for key in chosen[:5]) + (", …" if len(chosen) > 5 else "")
        raise UsageError(f"--rerun {cell}: {len(chosen)} cells begin so ({names}); name one")
    record = records[chosen[0]]
    raw = study_of(record, registry, data_dir or "")
    raw["run"] = {"device": device} if device else {}
    code, failures = _execute(Path(out), make_plan(check_study(raw), registry), registry)
    for line in failures:
        _complain(line, USAGE)
    again = next((c.record for c in _cells([Path(out)], record.edition)
                  if c.record and c.identity["method"] == record.identity.method), None)  # fmt: skip
    if again is None:
        return code or FAILED
    found = distances(record, again)
    if as_json:
        _print_json({"cell": record.cell, "rerun": str(Path(out)), "distances": [vars(d) for d in found]})
    else:
        _print_columns([("metric", "stored", "rerun", "half widths of the stored interval")] + [
            (d.metric, f"{d.stored:.6g}", f"{d.rerun:.6g}", f"{d.half_widths:.2f}") for d in found])  # fmt: skip
    return code


@cli.command()
@click.option("--from", "log_format", required=True, metavar="FORMAT", help="Log format, for example tofu-log.")
@click.argument("log", metavar="FILE")
@click.option("--retained", metavar="FILE", help="The retained model's log, for forget quality.")
@click.option("--align", is_flag=True, help="Score the rows that both logs share.")
@click.option("--edition", type=click.Choice(["paper", "as-released"]), default="paper", show_default=True)
@_plugin_option
@_json_option
def score(
    log_format: str,
    log: str,
    retained: str | None,
    align: bool,
    edition: str,
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Read a publisher's evaluation log into scores."""
    from ..results.published_logs import scored_log

    record = scored_log(_registry(plugins), log_format, log, retained, align, edition)
    if as_json:
        return _print_json(json.loads(record.model_dump_json()))
    _print_columns([(n, str(e.value), f"n = {e.n}", e.reason) for n, e in record.scores.items()])
    for note in record.notes:
        _say(f"note: {note}")
    return None


@cli.command()
@click.option("--clear", is_flag=True, help="Delete every prepared model.")
@_json_option
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
        return _print_json({"folder": str(models), "models": sizes, "cleared": clear})
    _print_columns([(f"{size / 2**20:.1f} MiB", name) for name, size in sizes.items()])
    _say(f"{sum(sizes.values()) / 2**20:.1f} MiB in {models}" + (", cleared" if clear else ""))
    return None


@cli.command()
@click.argument("run_folder", metavar="RUN")
@_plugin_option
@_json_option
def rescore(run_folder: str, plugins: tuple[str, ...], as_json: bool) -> None:
    """Score the cells of a run again from their stored samples, after a change of what scores; nothing is trained."""
    from ..results.rescoring import rescore as scored_again

    made = scored_again(Path(run_folder), _registry(plugins))
    if as_json:
        return _print_json({"cells": [{"key": cell.key, "changes": list(cell.changes)} for cell in made]})
    for cell in made:
        for change in cell.changes:
            _say(change)
    changed = sum(bool(cell.changes) for cell in made)
    _say(f"{len(made)} cells scored again, {changed} of them with other scores or words")
    return None


@cli.command("bench-gpu")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    type=click.Choice(["tiny", "135m", "1b", "7b"]),
    help="Shape of a model with random weights; by default 135m, 1b and 7b.",
)
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, … or cpu.")
@click.option("--lora-rank", type=click.IntRange(min=0), default=0, help="Train adapters of this rank.")
@_json_option
def bench_gpu(shapes: tuple[str, ...], device: str, lora_rank: int, as_json: bool) -> None:
    """Measure this device, and how near training, scoring and decoding come to what it can do."""
    import torch

    from ..training.device_benchmark import as_json as all_of_it
    from ..training.device_benchmark import measured_limits, stages
    from ..worker.setup import device_of

    place = device_of({"device": device})
    limits = measured_limits(place, torch.bfloat16 if place.type == "cuda" else torch.float32)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    if not as_json:
        _say(
            f"{name}: matrix products {limits.operations / 1e12:.2f} TFLOP/s, copies {limits.bandwidth / 1e9:.0f} GB/s"
        )
    found = []
    for shape in shapes or ("135m", "1b", "7b"):
        for stage in stages(shape, limits, place, lora_rank):
            found.append(stage)
            if not as_json:
                bound = "bandwidth bound" if stage.stage == "decoding" else "matrix rate"
                figures = f"{stage.tokens_per_second:,.0f} tokens/s, {stage.utilisation:.0%} of the {bound}"
                _say(f"{stage.shape:>5} {stage.stage:<9} {stage.missing or figures}", flush=True)
    if as_json:
        _print_json({"device": name, **all_of_it(limits, found)})


@cli.command("run-cell")
@click.argument("folder")
def run_cell(folder: str) -> int:
    """Run the cell whose spec.json lies in FOLDER (what executors call)."""
    if not (Path(folder) / "spec.json").is_file():
        raise RecordError(f"{folder} has no spec.json; name the folder of a planned cell")
    from ..worker.worker import run_node

    return run_node(folder)


@cli.command()
def schema() -> None:
    """Print the JSON Schema of a record."""
    from ..records.record import Record

    _print_json(Record.model_json_schema())


def _print_json(value: Any) -> None:
    from ..storage import finite

    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    print(UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Left-aligned columns; the last one is as long as it is."""
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        _say("  ".join([*cells, row[-1]]).rstrip())
