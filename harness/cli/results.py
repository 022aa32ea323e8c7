"""Commands that show, compare and publish results."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..domain import EDITIONS
from ..errors import INVALID, TRIPPED, UsageError
from .options import edition_option, json_option, plugin_option, registry_of
from .output import complain, print_columns, print_json, say

sources_argument = click.argument("runs", nargs=-1, required=True, metavar="RUN…")


@click.command()
@sources_argument
@click.option("-o", "--out", default="site", show_default=True, help="Folder for the pages.")
@click.option("--reporter", default="html", show_default=True, metavar="NAME", help="What is made of the results.")
@edition_option
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of the reporter; 'show html' lists those of the pages.",
)
@click.option("--strict", is_flag=True, help="Write nothing where a bundle cannot be read or does not recompute.")
@click.option("--allow-empty", is_flag=True, help="Make pages without rows of a folder without bundles.")
@plugin_option
def render(
    runs: tuple[str, ...],
    out: str,
    reporter: str,
    edition: str | None,
    assignments: tuple[str, ...],
    strict: bool,
    allow_empty: bool,
    plugins: tuple[str, ...],
) -> int:
    """Render the pages of run folders, bundles, or folders of bundles.

    Scores of bundles are recomputed first, unless 'verify' left a badge. What does not recompute, or cannot be read in
    a folder of bundles, is shown apart with its fault, and the exit code is 7.
    """
    from .. import api
    from ..planning.overrides import plain_assigned

    registry = registry_of(plugins)
    site = api.render(
        *runs,
        out=out,
        reporter=reporter,
        edition=edition or "",
        strict=strict,
        registry=registry,
        parameters=plain_assigned(assignments),
        allow_empty=allow_empty,
    )
    say(site.page)
    for fault in site.faults:
        complain(fault, INVALID)
    return INVALID if site.faults else 0


@click.command()
@click.argument("site", metavar="SITE")
@click.option("--to", "where", required=True, metavar="TARGET", help="dir:PATH, gh-pages or hf-space:ORG/NAME.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@json_option
def publish(site: str, where: str, dry_run: bool, as_json: bool) -> None:
    """Put a site's pages where readers find them; what was not published from here stays as it is."""
    from ..leaderboard.publishing import publish as put
    from ..leaderboard.publishing import target_of

    target = target_of(where)
    changes, address = put(Path(site), target, dry_run)
    if as_json:
        facts = {name: list(getattr(changes, name)) for name in ("added", "replaced", "removed")}
        return print_json({"target": target.name, "published": address, "same": changes.same, **facts})
    for sign, names in (("+", changes.added), ("~", changes.replaced), ("-", changes.removed)):
        for name in names if dry_run else ():
            say(f"{sign} {name}")
    counts = (
        f"{len(changes.added)} added, {len(changes.replaced)} replaced, {len(changes.removed)} removed, "
        f"{changes.same} as before"
    )
    say(f"{'dry run, nothing written' if dry_run else address or 'nothing to publish'}: {target.name}: {counts}")
    return None


@click.command()
@sources_argument
@edition_option
@plugin_option
@json_option
def results(runs: tuple[str, ...], edition: str | None, plugins: tuple[str, ...], as_json: bool) -> None:
    """Print the tables of run folders, bundles, folders of bundles, or meta-evaluations."""
    from .. import api

    registry_of(plugins)
    with api.open_results(*runs, edition=edition or "") as opened:
        if as_json:
            records = [json.loads(cell.record.model_dump_json()) for cell in opened.finished]
            gates = [gate for some in opened for gate in some.study.get("gates", [])]
            metas = [some.meta.model_dump(mode="json") for some in opened if some.meta]
            more = {"meta_evaluations": metas} if metas else {}
            return print_json({"records": records, "gates": gates, **more})
        from ..leaderboard.terminal import print_tables, print_trust

        print_tables(opened.cells)
        for some in opened:
            if some.meta:
                print_trust(some.meta)
    return None


@click.command("import")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@json_option
def import_scores(paths: tuple[str, ...], as_json: bool) -> None:
    """Print scores from files in other tools' formats that 'render --reporter' wrote.

    PATH is a file or a folder: Every-Eval-Ever JSON, lm-eval JSON, a hub model card, or a CSV of the pages' downloads.
    """
    from dataclasses import asdict

    from ..leaderboard.exchange.reading import read_scores

    lines = [line for path in paths for line in read_scores(Path(path))]
    if as_json:
        return print_json({"scores": [asdict(line) for line in lines]})
    heads = ("cell", "metric", "edition", "value", "n")
    print_columns([[str(getattr(line, name)) for name in heads] for line in lines])
    return None


@click.command()
@click.argument("baseline")
@click.argument("candidate")
@click.option("--gates", "gates_file", metavar="STUDY", help="Take [[gates]] from this study, not the candidate's.")
@click.option("--no-gates", is_flag=True, help="Compare alone, and judge no gate.")
@edition_option
@click.option("--markdown", metavar="FILE", help="Write Markdown for a job summary.")
@click.option("--junit", metavar="FILE", help="Write JUnit XML, a test case for each check.")
@plugin_option
@json_option
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
    from .. import api
    from ..leaderboard import comparisons
    from ..planning.study import read_study
    from ..records.gates import read_gates
    from ..storage import write_bytes

    gates = [] if no_gates else read_gates(read_study(gates_file)) if gates_file else None
    comparison = api.compare(baseline, candidate, gates, edition or "", registry_of(plugins))
    for file, write in ((markdown, comparisons.as_markdown), (junit, comparisons.as_junit)):
        if file:
            write_bytes(Path(file), write(comparison).encode())
    if as_json:
        print_json(comparisons.as_json(comparison))
    else:
        comparisons.print_comparison(comparison)
    if not comparison.gates and not no_gates:
        raise UsageError(
            f"no gate was judged: {candidate} has no [[gates]]; name a study that has with --gates, or say --no-gates"
        )
    return TRIPPED if comparison.tripped else 0


@click.command()
@click.option("--from", "log_format", required=True, metavar="FORMAT", help="Log format, for example tofu-log.")
@click.argument("log", metavar="FILE")
@click.option("--retained", metavar="FILE", help="The retained model's log, for forget quality.")
@click.option("--align", is_flag=True, help="Score the rows that both logs share.")
@click.option("--edition", type=click.Choice(EDITIONS), default="paper", show_default=True)
@plugin_option
@json_option
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

    record = scored_log(registry_of(plugins), log_format, log, retained, align, edition)
    if as_json:
        return print_json(json.loads(record.model_dump_json()))
    print_columns([(n, str(e.value), f"n = {e.n}", e.reason) for n, e in record.scores.items()])
    for note in record.notes:
        say(f"note: {note}")
    return None
