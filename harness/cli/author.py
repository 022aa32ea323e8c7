"""Commands for authors of methods and benchmarks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import click

from ..errors import INVALID
from .options import json_option, plugin_option, registry_of
from .output import print_json, say


@click.group()
def new() -> None:
    """Write a small plugin package with tests (a method, a benchmark, an attack), or a leaderboard's repository."""


def _write_package(kind: Literal["method", "benchmark", "attack"], name: str, folder: str, form: str = "") -> None:
    from ..authoring.scaffold import write_package

    for path in write_package(kind, name, Path(folder), form):
        say(path)
    say(f"next: pip install -e {Path(folder) / name} && unlearnbench check {name}")


METHOD_KINDS = ("loss", "weights", "wrapper", "prompt")
BENCHMARK_KINDS = ("plain", "judged")
out_option = click.option("-o", "--out", default=".", metavar="DIR", help="Where the package's folder goes.")


@new.command("method")
@click.argument("name")
@click.option("--kind", type=click.Choice(METHOD_KINDS), default="loss", show_default=True, help="What the method is.")
@out_option
def new_method(name: str, kind: str, out: str) -> None:
    """Write the package of an unlearning method.

    \b
    loss     descends a loss
    weights  changes weights without a loss
    wrapper  a model that answers through another, such as a guardrail
    prompt   words before every question
    """
    _write_package("method", name, out, kind)


@new.command("benchmark")
@click.argument("name")
@click.option("--kind", type=click.Choice(BENCHMARK_KINDS), default="plain", show_default=True, help="How it scores.")
@out_option
def new_benchmark(name: str, kind: str, out: str) -> None:
    """Write the package of a benchmark.

    \b
    plain   scores from what the model gives
    judged  scores from what a judge or a classifier says of the model's answers
    """
    _write_package("benchmark", name, out, kind)


@new.command("attack")
@click.argument("name")
@out_option
def new_attack(name: str, out: str) -> None:
    """Write the package of an attack on unlearned models."""
    _write_package("attack", name, out)


@new.command("leaderboard")
@click.argument("name")
@out_option
def new_leaderboard(name: str, out: str) -> None:
    """Write a repository for bundles: rules, and workflows that verify a pull request and publish the pages."""
    from ..authoring.scaffold import write_leaderboard

    for path in write_leaderboard(name, Path(out)):
        say(path)
    say(f"next: git init {Path(out) / name}, and allow its workflows to write to gh-pages")


@click.command("check")
@click.argument("name")
@click.option("--data-dir", metavar="DIR", help="Tables for a benchmark without generated ones.")
@plugin_option
@json_option
def check_component(name: str, data_dir: str | None, plugins: tuple[str, ...], as_json: bool) -> int:
    """Try out what a component promises, on a model of 30,000 weights; exit code 7 where it does not hold.

    NAME is a method, a benchmark or an attack.
    """
    # Progress bars of libraries are not part of the output.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from ..authoring.conformance import check, checkable

    component = checkable(registry_of(plugins), name)
    checks = []
    for each in check(component, data_dir or ""):
        checks.append(each)
        if not as_json:
            message = f": {each.message}" if each.message else ""
            say(f"{'ok    ' if each.kept else 'BROKEN'}  {each.name}{message}", flush=True)
    broken = [each for each in checks if not each.kept]
    if as_json:
        print_json({"name": component.qualified, "holds": not broken, "checks": [vars(each) for each in checks]})
    else:
        say(f"{component.qualified}: {len(checks) - len(broken)} of {len(checks)} checks hold")
    return INVALID if broken else 0


@click.command()
def schema() -> None:
    """Print the JSON Schema of a record."""
    from ..records.record import Record

    print_json(Record.model_json_schema())
