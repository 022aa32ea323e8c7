"""A site of ten thousand cells with their samples: time and memory linear in the cells, and pages that stay small."""

from __future__ import annotations

import gc
import json
import time
import tracemalloc
from dataclasses import replace
from itertools import count, islice

import pytest

from unlearnbench.leaderboard.render import render
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records.record import Record
from unlearnbench.records.results import Results
from unlearnbench.records.run_folder import StoredCell
from unlearnbench.results.opening import opened

CELLS = 10_000
SECONDS, BYTES = 60, 2**30
"""What a site of so many cells may cost on two cores, and in memory beside what Python had before."""


class Many(Results):
    """Results whose cells have the samples of a few."""

    def samples_of(self, key):
        return super().samples_of(key.partition("#")[0])


def many(run, number):
    """``number`` different results like those of a run: other hyperparameters, other values, its samples."""

    def made():
        for copy in count():
            for cell in run.cells:
                if cell.record.identity.reference and copy:
                    continue
                raw = json.loads(cell.record.model_dump_json())
                raw["cell"] = f"{raw['cell']}#{copy}" if copy else raw["cell"]
                raw["identity"]["hyperparameters"]["learning_rate"] = 1e-4 * (1 + copy)
                for score in raw["scores"].values():
                    score["value"] = float(score["value"]) * (1 + copy / CELLS)
                record = Record.model_validate(raw)
                yield StoredCell(record.cell, cell.identity, "done", "", cell.folder, record)

    return Many("many", tuple(islice(made(), number)), folder=run.folder)


@pytest.fixture(scope="module")
def run(small_run):
    with opened([small_run[0]]) as (found,):
        yield replace(found, cells=tuple(cell for cell in found.cells if cell.record))


def rendered(run, number, out):
    """Seconds of a site of so many cells."""
    results = many(run, number)
    gc.collect()
    start = time.perf_counter()
    render([results], out, load_plugins())
    return time.perf_counter() - start


@pytest.mark.benchmark(group="a site of 10,000 cells with samples")
def test_a_site_of_ten_thousand_cells(benchmark, run, tmp_path):
    tenth = rendered(run, CELLS // 10, tmp_path / "tenth")
    seconds = benchmark.pedantic(rendered, (run, CELLS, tmp_path / "site"), rounds=1)
    benchmark.extra_info |= {"seconds": seconds, "seconds of a tenth": tenth}
    assert seconds < SECONDS
    assert seconds < 1.5 * 10 * tenth, "cost is linear in records"
    assert (tmp_path / "site" / "index.html").stat().st_size < 500_000
    pages = [page.stat().st_size for page in (tmp_path / "site" / "b").glob("*.html")]
    benchmark.extra_info |= {"largest page of a benchmark": max(pages), "pages of benchmarks": len(pages)}
    assert max(pages) < 2_000_000
    assert len(list((tmp_path / "site" / "cells").glob("*.html"))) == CELLS


def test_memory_of_a_tenth_of_it(run, tmp_path):
    tracemalloc.start()
    try:
        rendered(run, CELLS // 10, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak * 10 < BYTES
