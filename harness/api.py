"""What notebooks and scripts do with a study: load, plan, run, open, compare, verify, render.

The command line is a thin layer over these functions. Every expected error is a ``HarnessError`` with one line that
names the value and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data.sources import DataSource
from .errors import BundleError, RecordError, UsageError
from .leaderboard.trackers import TrackerObserver
from .planning.nodes import Plan
from .planning.overrides import merged
from .planning.plan import make_plan
from .planning.study import Study, check_study, read_study, selected_by
from .plugin.parameters import parse_parameters
from .plugin.registry import Registry, load_plugins
from .plugin.specs import resolve
from .records.comparison import Comparison
from .records.gates import Gate, read_gates
from .records.meta_evaluation import MetaEvaluation, write_meta_evaluation
from .records.results import Reporter, ResultSet
from .records.run_folder import place_of_run
from .results.opening import is_empty, opened
from .results.resumption import Resumption, resume_from
from .results.verification import Verification, held
from .results.verification import verify as verify_results
from .running.session import RunOutcome, placed, run_plan

if TYPE_CHECKING:
    import pandas

Source = str | Path
"""A run folder, a bundle, a folder of bundles, or a file of records that ``results --json`` printed."""


def load_study(
    study: Source | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
) -> Study:
    """Read and check a study.

    Args:
        study: a TOML file, the name of a built-in study (``"demo"``), or tables as TOML has them.
        settings: tables over it, for example ``{"methods": {"npo": {"beta": 0.1}}, "run": {"jobs": 2}}``.
        plugins: plugin files to load.

    Raises:
        UnknownName: an unknown section or key, with the nearest known one.
        UsageError: the file is absent or not TOML, or a value cannot be used.
    """
    raw = {} if study is None else study if isinstance(study, Mapping) else read_study(str(study))
    return check_study(merged(raw, settings or {}), plugins, selected_by(raw))


def plan(study: Study, registry: Registry | None = None) -> Plan:
    """The graph of nodes that a study comes to; nothing is run and torch is not imported.

    Raises:
        UnknownName, UsageError, DataError, ModelError, NothingSelected: what of the study cannot be used.
    """
    registry = registry or load_plugins(study.plugins)
    return make_plan(placed(study, registry), registry)


def _planned(study: Study | Plan, registry: Registry | None) -> tuple[Plan, Registry]:
    """The plan of a study, and the plugins of which it is."""
    if isinstance(study, Plan):
        return study, registry or load_plugins(study.study.plugins)
    registry = registry or load_plugins(study.plugins)
    return plan(study, registry), registry


@dataclass(frozen=True)
class Run:
    """A study that was run.

    Args:
        exit_code: 0 where every cell is done or not applicable; otherwise as the command line's.
        to_mend: what must be mended before anything can be shown, such as a model that does not load.
        waiting: how many nodes have not ended, of a run that is not waited for.
    """

    folder: Path
    edition: str
    exit_code: int
    to_mend: tuple[str, ...]
    waiting: int = 0

    def results(self) -> ResultSet:
        """The run's cells with their records."""
        return open_results(self.folder, edition=self.edition)

    def to_frame(self) -> pandas.DataFrame:
        """A row for every cell, a column for every metric."""
        return self.results().to_frame()

    def _repr_html_(self) -> str:
        return self.results()._repr_html_()


def run(
    study: Study | Plan,
    out: Source | None = None,
    registry: Registry | None = None,
    progress: bool = True,
    detach: bool = False,
    tracker: str = "",
    follow: str = "",
) -> Run:
    """Run what of a study is not finished. Run again to resume.

    Args:
        out: the run folder; ``runs/<name of the study>`` by default.
        progress: show a bar in a terminal, a line for each node elsewhere, both on stderr.
        detach: return once everything is submitted to a cluster; run again to follow it.
        tracker: ``trackio``, ``wandb`` or ``mlflow``: keep losses, scores, cost and samples of every cell there.
        follow: the beginning of a cell's name, whose log is shown as it is written.

    Raises:
        KeyboardInterrupt: after every running cell was stopped, on a cluster none; what is finished is kept.
        UnknownName, UsageError, DataError, ModelError, NothingSelected: what of the study cannot be used.
        StorageError: the disk refused a write.
    """
    made, registry = _planned(study, registry)
    folder = place_of_run(made.study.name, out)
    if tracker:
        registry.manager.register(TrackerObserver(tracker, folder), f"tracker {tracker}")
    outcome: RunOutcome = run_plan(folder, made, registry, not progress, detach, follow)
    return Run(folder, made.study.edition, outcome.exit_code, outcome.to_mend, outcome.waiting)


def take_finished(
    study: Study | Plan, source: Source, out: Source | None = None, registry: Registry | None = None
) -> Resumption:
    """Put into a study's run folder the finished cells that a bundle or another run folder has of it.

    Run the study then: what was taken is not run again, and no reference model is made for it.

    Args:
        out: the run folder; ``runs/<name of the study>`` by default.

    Raises:
        UnknownName, UsageError, DataError, ModelError, NothingSelected: what of the study cannot be used.
        RecordError, BundleError: the source cannot be read.
        StorageError: the disk refused a write.
    """
    made, registry = _planned(study, registry)
    return resume_from(Path(source), place_of_run(made.study.name, out), made, registry)


def open_results(*sources: Source, edition: str = "", lenient: bool = False) -> ResultSet:
    """Results to look at, compare or render; bundles stay unpacked until the set is closed or forgotten.

    Args:
        edition: the metric edition that is read; each source's own by default.
        lenient: keep a bundle of a folder that cannot be read as results with a ``fault``.

    Raises:
        UsageError: a source does not exist, or none is named.
        RecordError, BundleError: a source is broken, or not results at all.
    """
    if not sources:
        raise UsageError("open_results: name a run folder, a bundle, or records in JSON")
    with ExitStack() as stack:
        results = stack.enter_context(opened(sources, edition, lenient))
        return ResultSet(tuple(results), stack.pop_all())


def compare(
    baseline: Source,
    candidate: Source,
    gates: Iterable[Gate | Mapping[str, Any]] | None = None,
    edition: str = "",
    registry: Registry | None = None,
) -> Comparison:
    """Two results row by row, with paired intervals, and what the gates find.

    Args:
        gates: what may not get worse; those of the candidate's study by default.

    Raises:
        UsageError: rows that may not be compared, or a gate that is for nothing there.
        NothingSelected: no pairing is on both sides.
    """
    # What resamples imports scipy's statistics, which takes half a second.
    from .results.comparison import compare as compare_results
    from .results.comparison import judged

    with open_results(baseline, candidate, edition=edition) as results:
        if len(results) != 2:
            raise UsageError(f"{baseline} and {candidate} hold {len(results)} results; compare two")
        if gates is None:
            chosen = read_gates(results[1].study)
        else:
            given = list(gates)
            chosen = [gate for gate in given if isinstance(gate, Gate)]
            chosen += read_gates({"gates": [gate for gate in given if not isinstance(gate, Gate)]})
        found = compare_results(results[0], results[1], registry or load_plugins())
    return replace(found, gates=tuple(chosen), findings=tuple(judged(found, chosen)))


def verify(source: Source, data_dir: Source | None = None, registry: Registry | None = None) -> Verification:
    """Every score of a bundle or run folder once more, from its samples; no code of a bundle is imported.

    Args:
        data_dir: the benchmark's tables, which prompts and truths are held against.

    Raises:
        RecordError, BundleError: the source cannot be read.
    """
    data = DataSource("local", str(data_dir)) if data_dir else None
    with open_results(source) as results:
        if len(results) != 1:
            raise UsageError(f"{source} holds {len(results)} results; verify one")
        return verify_results(results[0], registry or load_plugins(), data)


@dataclass(frozen=True)
class Rendered:
    """What a reporter wrote: its first page, and what is wrong with the sources, a line each."""

    page: Path
    faults: tuple[str, ...]


def render(
    *sources: Source,
    out: Source = "site",
    reporter: str = "html",
    edition: str = "",
    strict: bool = True,
    registry: Registry | None = None,
    parameters: Mapping[str, object] | None = None,
    allow_empty: bool = False,
) -> Rendered:
    """Write pages of results, or whatever else a reporter makes of them.

    Scores of bundles are recomputed first, unless ``verify`` left a badge beside them.

    Args:
        reporter: the reporter's name; ``html`` writes the leaderboard's pages.
        strict: write nothing where a bundle cannot be read or does not recompute; otherwise it is shown apart.
        allow_empty: a folder that holds nothing of ours gives no rows instead of an error.
        parameters: values for parameters of the reporter, which ``unlearnbench show NAME`` lists.

    Raises:
        UnknownName: no such reporter, or it has no such parameter.
        RecordError, BundleError: a source is broken.
        StorageError, UsageError: ``out`` cannot be written.
    """
    registry = registry or load_plugins()
    component = registry.find("reporter", reporter)
    values = parse_parameters(component.spec.parameters, parameters or {}, f"reporter {reporter}")
    write: Reporter = resolve(component.spec.target, component.qualified)
    named = [source for source in sources if not (allow_empty and is_empty(Path(source)))]
    found = open_results(*named, edition=edition, lenient=not strict) if named else ResultSet((), ExitStack())
    with found as results:
        shown = [held(some, registry) for some in results]
        faults = [some.fault for some in shown if some.fault]
        faults += [
            f"{some.source}: {some.badge.faults[0]} ({len(some.badge.faults)} in all)"
            for some in shown
            if some.badge and some.badge.faults
        ]
        if strict and faults:
            raise BundleError(faults[0])
        return Rendered(write(shown, Path(out), registry, **values), tuple(faults))


RECIPES: tuple[Mapping[str, float], ...] = ({}, {"epochs": 0.5}, {"learning_rate": 0.5})
"""Factors on the fine-tuning of reference models, one for each group of pairs in a meta-evaluation."""
PAIRS, QUICK_PAIRS = 10, 3
"""Seeds of each recipe."""
META_ATTACKS = ("quantise", "relearn")


def meta_evaluate(
    study: Study,
    out: Source | None = None,
    quick: bool = False,
    registry: Registry | None = None,
    progress: bool = True,
) -> MetaEvaluation:
    """Train pairs of models with and without the forget set, and rate the metrics of a study's benchmarks by them.

    Of the study count its benchmarks, models, data and settings; the attacks are its own, or quantisation and
    relearning. Run again to resume.

    Args:
        out: the folder of the runs and of the record; ``runs/<name of the study>-meta`` by default.
        quick: nine pairs in place of thirty.

    Raises:
        RecordError: some model could not be trained or measured.
        UnknownName, UsageError, DataError, ModelError, NothingSelected: what of the study cannot be used.
    """
    from .results.meta_evaluation import rated_metrics

    registry = registry or load_plugins(study.plugins)
    folder = place_of_run(f"{study.name}-meta", out)
    seeds = list(range(QUICK_PAIRS if quick else PAIRS))
    runs = []
    for number, factors in enumerate(RECIPES):
        made = make_plan(_reference_study(study, factors, seeds, registry), registry)
        ran = run(made, folder / f"recipe-{number}", registry, progress)
        if ran.exit_code:
            raise RecordError(
                f"{ran.folder}: some models have no scores, so that metrics cannot be rated; see: unlearnbench results "
                f"{ran.folder}"
            )
        runs.append(ran.folder)
    with open_results(*runs, edition=study.edition) as results:
        found = MetaEvaluation(
            study=study.name,
            edition=study.edition,
            recipes=[dict(factors) for factors in RECIPES],
            seeds=seeds,
            attacks=list(dict.fromkeys(cell.identity.attack for cell in results.cells if cell.identity.attack)),
            metrics=rated_metrics(results, registry, study.edition),
        )
    write_meta_evaluation(folder, found)
    return found


def _reference_study(study: Study, factors: Mapping[str, float], seeds: Sequence[int], registry: Registry) -> Study:
    """The study of reference models alone, with another recipe."""
    head = {
        **study.raw.get("study", {}),
        "methods": ["unlearnbench/original"],
        "seeds": list(seeds),
        "attacks": list(study.selected("attacks") or META_ATTACKS),
    }
    raw = {name: table for name, table in study.raw.items() if name not in ("sweep", "selection", "gates", "methods")}
    base = check_study({**raw, "study": head}, study.plugins, study.also)
    recipes = {node.spec.benchmark.name: dict(node.spec.recipe) for node in make_plan(base, registry).nodes}
    own = {**base.raw.get("recipe", {})}
    scaled = {name: {**own.get(name, {}), **_scaled(recipe, factors)} for name, recipe in recipes.items()}
    return check_study({**base.raw, "recipe": {**own, **scaled}}, study.plugins, study.also)


def _scaled(recipe: Mapping[str, Any], factors: Mapping[str, float]) -> dict[str, float]:
    """The values of a recipe that factors change."""
    changed = {key: float(recipe[key]) * factor for key, factor in factors.items()}
    return {key: max(1, round(value)) if key == "epochs" else value for key, value in changed.items()}
