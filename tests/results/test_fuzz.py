"""Files of strangers, changed at random: whatever is in them, a reader gives results or one of our errors.

A corpus of small valid files is made without training anything. Every mutation follows from the reader's name and its
number. ``UNLEARNBENCH_FUZZ`` is the number of mutations of each reader.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import traceback
import unicodedata
import warnings
import zipfile
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import pytest
import tomli_w

from unlearnbench.cli.main import run_command
from unlearnbench.data.sources import DataSource, read_tables
from unlearnbench.domain import Measurement
from unlearnbench.errors import HarnessError
from unlearnbench.leaderboard import comparisons
from unlearnbench.leaderboard.render import render
from unlearnbench.leaderboard.terminal import print_tables
from unlearnbench.planning.overrides import assigned
from unlearnbench.planning.plan import make_plan
from unlearnbench.planning.study import check_study, read_study
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.plugin.specs import resolve
from unlearnbench.records.gates import read_gates
from unlearnbench.records.node_spec import write_spec
from unlearnbench.records.recomputation import scores_of
from unlearnbench.records.record import (
    SAMPLES,
    Cost,
    Identity,
    Record,
    Samples,
    comparability,
    read_record,
    score_entries,
)
from unlearnbench.records.run_folder import read_own_study, read_plan, stored_cells
from unlearnbench.results.bundle import write_bundle
from unlearnbench.results.bundle_reader import bundled_rows
from unlearnbench.results.comparison import compare, judged
from unlearnbench.results.opening import opened
from unlearnbench.results.published_logs import scored_log
from unlearnbench.results.verification import badge_path, distances, read_badge, study_of, verify, write_badge
from unlearnbench.running.run_store import finished, folder_of, write_plan
from unlearnbench.storage import digest, file_digest, read_rows, rows_as_bytes, write_json, write_sealed

MUTATIONS = int(os.environ.get("UNLEARNBENCH_FUZZ", "25"))
SECONDS, BYTES = 10, 2**30
"""The most processor time and the most further memory that one file may cost."""
CODES = (0, 4, 5, 6, 7)
ROWS = 2
WORDS = {"contact": "ada@example.org", "licence": "CC-BY-4.0", "budget": "one setting", "selection": "defaults"}
REGISTRY = load_plugins()

# -- the corpus -------------------------------------------------------------------------------------------------------


def study(name, benchmarks, seeds, metric):
    return {
        "study": {"name": name, "methods": ["npo"], "benchmarks": benchmarks, "models": ["tiny"], "seeds": seeds},
        "data": {"source": "generated", "scale": "quick"},
        "benchmarks": {"*": {"limit": ROWS}},
        "methods": {"npo": {"beta": 0.2}},
        "run": {"device": "cpu"},
        "submission": WORDS,
        "gates": [{"metric": metric, "max_drop": 0.1, "confidence": 0.9},
                  {"metric": "cost.unlearn_seconds", "max_ratio": 2.0, "relative_to": "npo"}],
    }  # fmt: skip


def rows_of(name, rng):
    """What a model might have said to a benchmark's first questions."""
    if name == "hp":
        texts = {"prompt": "It was", "truth": "a dark night", "truth_released": "a dark night"}
        said = {"generation": "a bright night", "generation_released": "a night of stars", "generated_tokens": 4}
        rows = [{"part": "excerpts", "index": index, **texts, **said} for index in range(ROWS)]
        rows += [{"part": "local_prose", "index": i, "loglikelihood": -rng.random() * 9, "words": 5} for i in range(2)]
        return rows + [{"part": part, "index": i, "loglikelihoods": [-rng.random(), -1.0], "right": [0]}
                       for part in ("local_trades", "local_opposites") for i in range(2)]  # fmt: skip
    spec = REGISTRY.find("benchmark", name).spec
    tables = read_tables(spec.data, DataSource("generated", scale="quick"))
    rows = []
    for part, asked in resolve(spec.questions, name)(tables).items():
        for index, question in enumerate(asked[:ROWS]):
            row = {"part": part, "index": index, **question}
            if "text_sha256" in question:
                rows.append({**row, "tokens": 50, "min40": 1 + rng.random()})
                continue
            row |= {"truth": question.get("truth", "one two"), "generation": "Ada said so", "generated_tokens": 3}
            losses = [[1 + rng.random(), 5] for _ in range(4)]
            if name.startswith("tofu"):
                row |= {"answer": losses[0], "paraphrase": losses[1], "perturbed": losses[2:]}
            rows.append(row)
    return rows


def make_run(folder, raw):
    """A run folder as a finished run leaves it, with one cell that failed where it has two seeds."""
    plan = make_plan(check_study(raw), REGISTRY)
    write_plan(folder, plan)
    said = {}
    for node in plan.cells:
        spec, cell = node.spec, folder_of(folder, node)
        write_spec(cell, spec)
        facts = {"key": node.key, "content": node.content, "seconds": 1.5, "reason": ""}
        if spec.seed == 1 and spec.method.name == "npo":
            write_sealed(cell / "status.json", {**facts, "status": "failed", "reason": "its process was killed"})
            continue
        name = spec.benchmark.name
        said[node.key] = Measurement(tuple(rows_of(name, random.Random(node.key))))
        content = rows_as_bytes(said[node.key].rows)
        cell.joinpath(SAMPLES).write_bytes(content)
        record = record_of(node, said, sha256(content).hexdigest())
        write_json(cell / "record.json", json.loads(record.model_dump_json()))
        hashes = {"record_sha256": file_digest(cell / "record.json"), "samples_sha256": record.samples.sha256,
                  "spec_sha256": file_digest(cell / "spec.json")}  # fmt: skip
        write_sealed(cell / "status.json", {**facts, "status": "done", **hashes})
    return plan


def record_of(node, said, sample_hash):
    spec = node.spec
    method, benchmark = spec.method, spec.benchmark
    identity = Identity(
        method=method.name, method_qualified=method.qualified, method_edition=method.values.get("edition", ""),
        hyperparameters=method.hyperparameters, requires=method.requires, reference=method.reference,
        benchmark=benchmark.name, benchmark_qualified=benchmark.qualified, benchmark_version=benchmark.version,
        model=spec.model.name, seed=spec.seed,
    )  # fmt: skip
    target = resolve(benchmark.target, "")(**benchmark.settings)
    others = {role: said[key] for role, key in spec.references.items()}
    found = scores_of(target, identity, said[node.key], others)
    values, defaults = benchmark.values, benchmark.defaults
    limits = {name.replace("_", " "): value for name, value in values.items() if value != defaults[name]}
    return Record(
        cell=node.key,
        content=node.content,
        edition="paper",
        identity=identity,
        scores=score_entries(found, benchmark.metrics, "paper"),
        samples=Samples(file=SAMPLES, sha256=sample_hash, rows=len(said[node.key].rows),
                        references=dict(spec.references)),
        cost=Cost(seconds={"unlearn": 1.0, "measure": 2.0}, cpu_seconds={"unlearn": 1.0, "measure": 2.0},
                  optimiser_steps=3, training_tokens=100, peak_memory_bytes=2**28),
        comparability=comparability({
            "benchmark": benchmark.qualified, "benchmark_version": benchmark.version,
            "benchmark_settings": benchmark.settings, "data": digest(benchmark.fingerprints),
            "data_source": "generated", "model": spec.model.name, "edition": "paper", "precision": "float32",
            "prompt_format": "plain", "prompt": "Who wrote it?\n", "ends": [0], "lora_rank": 0,
            "model_weights": "0" * 64,
            "references": {role: {"published": "", "recipe": spec.recipe} for role in ("original", "retained")},
            "benchmark_packages": benchmark.packages, "data_departures": [],
        }),
        provenance={**spec.provenance, "plugins": {part: asdict(plugin) for part, plugin in spec.plugins.items()},
                    "device": "cpu", "threads": 1, "recipe": spec.recipe,
                    "data": asdict(spec.source) | {"tables": benchmark.fingerprints},
                    "method_source": method.source, "templates": "", "prompt_format": "plain", "paths": {},
                    "model": {"path": "", "revision": "", "fingerprint": ""}},
        limits={**limits, "data": "generated, not the published data set"},
        notes=[],
        losses=[1.0, 0.5],
    )  # fmt: skip


def tofu_log(rows):
    """The rows as locuslab/tofu's release writes them."""
    log = {}
    for part, section in (
        ("retain", "eval_log.json"),
        ("real_authors", "eval_real_author_wo_options.json"),
        ("world_facts", "eval_real_world_wo_options.json"),
        ("forget", "eval_log_forget.json"),
    ):
        mine = [row for row in rows if row["part"] == part]
        columns = {
            "avg_gt_loss": [row["answer"][0] for row in mine],
            "num_token_gt": [row["answer"][1] for row in mine],
            "average_perturb_loss": [[pair[0] for pair in row["perturbed"]] for row in mine],
            "num_token_perturb": [[pair[1] for pair in row["perturbed"]] for row in mine],
            "avg_paraphrased_loss": [row["paraphrase"][0] for row in mine],
            "num_token_paraphrased": [row["paraphrase"][1] for row in mine],
            "generated_text": [[row["prompt"], row["generation"], row["truth"]] for row in mine],
        }
        log[section] = {name: {str(i): value for i, value in enumerate(column)} for name, column in columns.items()}
    return log


def muse_log():
    """The files of a folder of muse_bench's evaluation."""
    entry = {"prompt": "p", "gt": "one two", "response": "one three"}
    files = {f"{part}/log.json": [entry, entry] for part in ("verbmem_f", "knowmem_f", "knowmem_r")}
    texts = {"forget": (2.0, 1.0), "holdout": (3.0, 4.0)}
    files["privleak/log.json"] = {name: [{"text": "", "Min-40%": v} for v in values] for name, values in texts.items()}
    return files


class Corpus:
    """Valid files, one of each kind or a few; they are changed in copies."""

    def __init__(self, folder):
        self.folder = folder
        self.runs, self.plans, self.files = {}, {}, {}
        kinds = {"questions": (["tofu-forget05"], [0, 1], "model_utility"),
                 "texts": (["muse-news", "hp"], [0], "rouge_l")}  # fmt: skip
        for name, given in kinds.items():
            self.runs[name] = folder / name
            self.plans[name] = make_run(folder / name, study(name, *given))
            bundle = folder / f"{name}.zip"
            write_bundle(folder / name, bundle, WORDS, "0.1.0")
            with opened([bundle]) as (results,):
                found = verify(results, REGISTRY)
                render([results], folder / "site", REGISTRY)
            assert not found.faults
            write_badge(bundle, found, "0.1.0")
            with zipfile.ZipFile(bundle) as archive:
                self.files[name] = {entry: archive.read(entry) for entry in archive.namelist()}
        records = [json.loads(content) for name in self.files for path, content in self.files[name].items()
                   if path.endswith("record.json")]  # fmt: skip
        self.printed = {"records": records}
        self.tofu = tofu_log(rows_of("tofu-forget05", random.Random(1)))
        self.muse = muse_log()
        self.write(folder / "tofu.json", self.tofu)
        for name, content in self.muse.items():
            self.write(folder / "muse" / name, content)
        self.write(folder / "printed.json", self.printed)

    @staticmethod
    def write(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def zip(self, name):
        return self.folder / f"{name}.zip"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("corpus"))


# -- mutations --------------------------------------------------------------------------------------------------------

TWICE, DEEPER, OVERFLOWING = "@twice@", "@deeper@", "@overflowing@"
"""JSON that json.dumps does not write stands as these texts until it is written."""


def deep(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


def values(rng):
    return [
        None, True, 0, -1, 1e308, -1e308, 5e-324, 0.1, 10**400, 2**63, "NaN", "Infinity", float("nan"), float("-inf"),
        "", "x" * 10_000, "\u001b]0;title\u0007", "\u009b31m", "\ud800", "\u202eabc", "a\nb\tc", "\0", "../../x",
        "=1+1", "<b>&", "[/x]", "tofu-forget05", "hub", "1e999", "unlearnbench/original", rng.random(),
        [], {}, deep(20), deep(200), TWICE, DEEPER, OVERFLOWING, {"k" * 5000: 1}, {"": []}, {"a": {"b": None}},
        [None], [[]], [{}], list(range(2000)), {str(n): n for n in range(2000)},
    ]  # fmt: skip


def place(rng, value):
    """A container somewhere in the value and the place of one of its items; None of an empty one."""
    found = None
    while isinstance(value, dict | list) and value:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        found = value, key
        if rng.random() < 0.2:
            break
        value = value[key]
    return found


def change(rng, value):
    """The value with one thing in it changed."""
    found = place(rng, value)
    if found is None or rng.random() < 0.01:
        return rng.choice(values(rng))
    holder, key = found
    kind = rng.randrange(12)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder[key : key + 1] = [copy.deepcopy(holder[key]) for _ in range(rng.choice([2, 2, 1000]))]
    elif kind == 1:
        holder[f"{key}{rng.choice(['', ' ', '.', '2'])}{key}"] = copy.deepcopy(holder[key])
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice(["", "x", "x" * 5000, "\u001b[2J", "\ud800", "\u202e", "0", "k\n"])] = holder.pop(key)
    elif kind == 3 and isinstance(holder, dict):
        holder |= {f"extra {n}": rng.choice(values(rng)) for n in range(rng.choice([1, 3]))}
    elif kind == 4:
        holder[key] = swapped(holder[key])
    elif kind == 5 and len(holder) > 1:
        other = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        holder[key], holder[other] = holder[other], holder[key]
    elif kind == 6 and isinstance(holder, list):
        rng.shuffle(holder)
    elif kind == 6:
        holder[key] = {} if isinstance(holder[key], dict) else []
    else:
        holder[key] = rng.choice(values(rng))
    return value


def swapped(value):
    """The value as another type."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list):
        return {str(n): item for n, item in enumerate(value)}
    return float(len(value)) if isinstance(value, str) else str(value)


def dumped(rng, value):
    text = json.dumps(value, ensure_ascii=True)
    for name, json_text in ((TWICE, '{"a": 1, "a": 2}'), (DEEPER, "[" * 100_000 + "]" * rng.choice([0, 100_000])),
                            (OVERFLOWING, "1e999")):  # fmt: skip
        text = text.replace(f'"{name}"', json_text)
    return text.encode()


def bytes_changed(rng, content):
    """The bytes with a few of them changed, lost or there twice."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(content) + 1)
        end = start + rng.choice([0, 1, 1, 2, 50])
        piece = rng.choice([bytes([rng.randrange(256)]), b"", b"null", b"-1", b'"', b"[[[[", b"1e999", b"\0", b"{}",
                            b"\xff", b"\\ud800", b"\x1b[2J", bytes(content[start:end]) * 2])  # fmt: skip
        content[start:end] = piece
    return bytes(content[: rng.randrange(len(content) + 1)]) if rng.random() < 0.15 else bytes(content)


def json_changed(rng, content):
    if rng.random() < 0.15:
        return bytes_changed(rng, content)
    value = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = change(rng, value)
    return dumped(rng, value)


def rows_changed(rng, content):
    """A sample file with a few rows changed, all alike or as bytes."""
    lines = gzip.decompress(content).splitlines()
    rows = [json.loads(line) for line in lines]
    kind = rng.randrange(10)
    if kind == 0:
        return bytes_changed(rng, content)
    if kind == 1:
        return gzip.compress(bytes_changed(rng, b"\n".join(lines)))
    if kind == 2:
        rows = change(rng, rows)
        rows = rows if isinstance(rows, list) else [rows]
    elif kind < 5:
        name, value = rng.choice(list(rng.choice(rows))), rng.choice(values(rng))
        rows = [{**row, name: copy.deepcopy(value)} for row in rows]
    else:
        for _ in range(rng.choice([1, 1, 3])):
            number = rng.randrange(len(rows))
            rows[number] = change(rng, rows[number])
    return gzip.compress(b"".join(dumped(rng, row) + b"\n" for row in rows), 1)


TOML = (
    "x = 1979-05-27T07:32:00Z", "x = 07:32:00", "seeds = [1979-05-27]", "x = inf", "x = nan", "timeout = inf",
    "x = 1" + "0" * 400, "x = 1" + "0" * 5000, "limit = 1e400", "seeds = 9" + "9" * 400, "seeds = [true]",
    "[x]", "[[study]]", "[study]", "a.b.c = 1", ".".join("a" * 500) + " = 1", "[methods.'\u202e']", "gates = 3",
    "x = " + "[" * 500 + "]" * 500, "x = " + "[" * 50_000, "x = " + "{a=" * 300 + "1" + "}" * 300,
    r'"\u001b[2J" = 1', r'x = "\u001b[2J"', r'x = "\u0000"', r'name = "\u001b]0;t\u0007"', "x = '''\n'''",
    "methods = [['npo']]",
)  # fmt: skip


def toml_changed(rng, content):
    kind = rng.randrange(4)
    if kind == 0:
        return bytes_changed(rng, content)
    if kind == 1:
        lines = content.decode().splitlines()
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(TOML))
        return "\n".join(lines).encode()
    value = tomllib.loads(content.decode())
    for _ in range(rng.choice([1, 1, 2])):
        value = change(rng, value)
    with suppress(TypeError, ValueError, AttributeError, RecursionError):
        return tomli_w.dumps(value).encode("utf-8", "surrogatepass")
    return bytes_changed(rng, content)


def changed_file(rng, name, content):
    if name.endswith(".gz"):
        return rows_changed(rng, content)
    return toml_changed(rng, content) if name.endswith(".toml") else json_changed(rng, content)


def mend(files, rng):
    """Hashes and names that fit, as an author of malice would make them."""
    for name in [name for name in files if name.endswith("record.json")]:
        with suppress(ValueError, KeyError, TypeError, RecursionError, AttributeError):
            record = json.loads(files[name])
            samples = files[name.replace("record.json", SAMPLES)]
            record["samples"]["sha256"] = sha256(samples).hexdigest()
            if rng.random() < 0.7:
                record["comparability"]["sha256"] = digest(record["comparability"]["key"])
            files[name] = json.dumps(record).encode()
    with suppress(ValueError, KeyError, TypeError, RecursionError, AttributeError):
        manifest = json.loads(files["manifest.json"])
        manifest["files"] = {name: {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
                             for name, content in files.items() if name != "manifest.json"}  # fmt: skip
        for cell in manifest["cells"]:
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                identity = json.loads(files[f"cells/{cell['key']}/record.json"])["identity"]
                cell.update({part: identity[part] for part in ("method", "benchmark", "model", "seed")})
        files["manifest.json"] = json.dumps(manifest).encode()


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def odd_zip(rng, path, files):
    """An archive that is odd as an archive."""
    names = sorted(files)
    extra = rng.choice(["/etc/passwd", "../x", "cells/../../x", "C:\\x", "cells/x/record.json", "manifest.json",
                        "a\0b", "study.toml/", "STUDY.TOML", "\u202e", "x" * 60_000, "cells/a/\u001b[2J",
                        "inner.zip"])  # fmt: skip
    with zipfile.ZipFile(path, "w", rng.choice([0, 8, 12, 14])) as archive:
        for name in names:
            archive.writestr(name, files[name])
        if extra == "inner.zip":
            inner = zipped(path.with_name("inner.zip"), files).read_bytes()
            archive.writestr(rng.choice(["inner.zip", "study.toml"]), inner)
        else:
            archive.writestr(extra, rng.choice([b"", b"{}", b"x" * 10**6]))
        if rng.random() < 0.5:
            archive.comment = b"x" * rng.choice([1, 65_535])
    content = bytearray(path.read_bytes())
    # Fields of the central directory: flags, method, CRC, sizes, offset.
    spot = content.rfind(b"PK\1\2") if rng.random() < 0.5 else content.find(b"PK\1\2")
    if rng.random() < 0.7:
        first, size = rng.choice([(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (38, 4), (42, 4)])
        content[spot + first : spot + first + size] = rng.choice([b"\xff", b"\0", b"\x7f", b"\1"]) * size
    path.write_bytes(content)
    return path


def mutated_bundle(corpus, rng, folder):
    name = rng.choice(["questions", "questions", "texts"])
    path = folder / "b.zip"
    files = dict(corpus.files[name])
    kind = rng.random()
    if kind < 0.1:
        path.write_bytes(bytes_changed(rng, corpus.zip(name).read_bytes()))
        return path
    if kind < 0.2:
        return odd_zip(rng, path, files)
    ends = rng.choice(["manifest.json", "record.json", "record.json", SAMPLES, SAMPLES, "study.toml"])
    chosen = [entry for entry in sorted(files) if entry.endswith(ends)]
    seed = rng.random()
    for entry in chosen if rng.random() < 0.25 else [rng.choice(chosen)]:
        # The same change in all records is more than one that no other cell shares.
        files[entry] = changed_file(random.Random(seed), entry, files[entry])
    if rng.random() < 0.75:
        mend(files, rng)
    return zipped(path, files)


# -- readers ----------------------------------------------------------------------------------------------------------


def said_in(*texts):
    """Lines that a command prints go through the stream that it prints to."""
    for text in texts:
        print(text)


def look(results, out, corpus, use):
    """One of the uses of results; which of them is a number."""
    if use == 0:
        for some in results:
            for cell in some.cells:
                with suppress(HarnessError):
                    some.samples_of(cell.key)
        print_tables([cell for some in results for cell in some.cells])
    elif use == 1:
        for some in results:
            found = verify(some, REGISTRY)
            said_in(*found.notes, *found.faults)
    elif use == 2:
        render(results, out / "site", REGISTRY)
    elif use == 3:
        base = corpus.zip("questions" if "tofu" in str(results[0].cells[:1]) else "texts")
        with opened([base]) as (ours,):
            for sides in ((ours, results[0]), (results[0], ours), (results[0], results[0])):
                try:
                    found = compare(*sides, REGISTRY)
                    gates = read_gates(sides[1].study)
                    found = replace(found, findings=tuple(judged(found, gates)))
                except HarnessError as error:
                    said_in(error)
                    continue
                comparisons.print_comparison(found)
                for write in (comparisons.as_markdown, comparisons.as_junit, comparisons.as_json):
                    json.dumps(write(found)).encode()
    else:
        for cell in (cell for some in results for cell in some.cells if cell.record):
            with suppress(HarnessError):
                check_study(study_of(cell.record, REGISTRY))
            distances(cell.record, cell.record)
            for edition in ("paper", "as-released", "\u001b"):
                with suppress(HarnessError):
                    cell.record.in_edition(edition)


def read_bundle(corpus, rng, folder):
    path = mutated_bundle(corpus, rng, folder)
    with opened([path], rng.choice(["", "", "as-released"])) as results:
        look(results, folder, corpus, rng.randrange(5))


def read_one_record(corpus, rng, folder):
    files = corpus.files[rng.choice(["questions", "texts"])]
    name = rng.choice([name for name in sorted(files) if name.endswith("record.json")])
    path = folder / "record.json"
    path.write_bytes(json_changed(rng, files[name]))
    record = read_record(path)
    for edition in ("paper", "as-released", "none"):
        record.in_edition(edition).model_dump_json()


def read_samples(corpus, rng, folder):
    files = corpus.files[rng.choice(["questions", "texts"])]
    name = rng.choice([name for name in sorted(files) if name.endswith(SAMPLES)])
    path = folder / SAMPLES
    path.write_bytes(rows_changed(rng, files[name]))
    with suppress(HarnessError):
        read_rows(path)
    bundled_rows(path)


def read_printed(corpus, rng, folder):
    path = folder / "records.json"
    content = copy.deepcopy(corpus.printed)
    if rng.random() < 0.5:
        content["records"] = [rng.choice(content["records"])]
    path.write_bytes(json_changed(rng, json.dumps(content).encode()))
    with opened([path], rng.choice(["", "as-released"])) as results:
        look(results, folder, corpus, rng.choice([0, 2, 3, 4]))


def read_tofu_log(corpus, rng, folder):
    path = folder / "log.json"
    path.write_bytes(json_changed(rng, json.dumps(corpus.tofu).encode()))
    paths = [str(path), str(corpus.folder / "tofu.json")]
    rng.shuffle(paths)
    retained = rng.choice([None, paths[1]])
    mine = paths[0] if retained else str(path)
    record = scored_log(REGISTRY, "tofu-log", mine, retained, rng.random() < 0.5, "paper")
    record.model_dump_json()
    said_in(*record.notes)


def read_muse_log(corpus, rng, folder):
    changed = rng.choice(sorted(corpus.muse))
    for name, content in corpus.muse.items():
        corpus.write(folder / "log" / name, content)
    path = folder / "log" / changed
    path.write_bytes(json_changed(rng, path.read_bytes()))
    paths = [str(folder / "log"), str(corpus.folder / "muse")]
    rng.shuffle(paths)
    retained = rng.choice([None, paths[1]])
    record = scored_log(REGISTRY, "muse-log", paths[0] if retained else str(folder / "log"), retained, False, "paper")
    record.model_dump_json()
    said_in(*record.notes)


def read_a_study(corpus, rng, folder):
    path = folder / "study.toml"
    path.write_bytes(toml_changed(rng, corpus.files[rng.choice(["questions", "texts"])]["study.toml"]))
    raw = read_study(str(path))
    with suppress(HarnessError):
        said_in(*map(str, read_gates(raw)))
    check_study(raw)
    checked = check_study(assigned(raw, ["methods.npo.beta=0.1", "study.seeds=[3]", "run.jobs=2"]))
    for section in ("methods", "benchmarks", "models"):
        checked.given(section, ("npo", "tiny", "tofu-forget05"), ("beta",))
    checked.recipe_for("tofu-forget05")


def read_run(corpus, rng, folder):
    name = rng.choice(["questions", "texts"])
    run = folder / "run"
    shutil.copytree(corpus.runs[name], run)
    ends = rng.choice(["plan.json", "plan.json", "status.json", "spec.json", "record.json", "study.toml", SAMPLES])
    path = rng.choice(sorted(run.rglob(ends)))
    path.write_bytes(changed_file(rng, path.name, path.read_bytes()))
    if rng.random() < 0.75:
        seal(run, path)
    for read in (read_plan, read_own_study, stored_cells):
        with suppress(HarnessError):
            read(run)
    for node in corpus.plans[name].cells:
        finished(run, node, folder)
    use = rng.randrange(6)
    with opened([run]) as results:
        if use == 5:
            write_bundle(run, folder / "b.zip", WORDS, "0.1.0")
        look(results, folder, corpus, use)


def seal(run, path):
    """Hashes that fit what was changed."""
    with suppress(ValueError, KeyError, TypeError, RecursionError, AttributeError, OSError):
        if path.name in ("record.json", SAMPLES, "spec.json"):
            status = json.loads((path.parent / "status.json").read_text())
            status.pop("sha256")
            names = {"record.json": "record_sha256", SAMPLES: "samples_sha256", "spec.json": "spec_sha256"}
            if path.name == SAMPLES:
                record = json.loads((path.parent / "record.json").read_text())
                record["samples"]["sha256"] = file_digest(path)
                (path.parent / "record.json").write_text(json.dumps(record))
            for name, fact in names.items():
                status[fact] = file_digest(path.parent / name)
            write_sealed(path.parent / "status.json", status)
        elif path.name == "study.toml":
            plan = json.loads((run / "plan.json").read_text())
            plan.pop("sha256")
            plan["study_sha256"] = digest(tomllib.loads(path.read_text()))
            write_sealed(run / "plan.json", plan)
        else:
            content = json.loads(path.read_text())
            content.pop("sha256", None)
            path.write_text(json.dumps({**content, "sha256": digest(content)}))


def read_a_badge(corpus, rng, folder):
    path = folder / "b.zip"
    shutil.copy(corpus.zip("texts"), path)
    badge_path(path).write_bytes(json_changed(rng, badge_path(corpus.zip("texts")).read_bytes()))
    read_badge(path)
    with opened([path]) as results:
        render(results, folder / "site", REGISTRY)


def command_line(corpus, rng, folder):
    path = str(mutated_bundle(corpus, rng, folder))
    if rng.random() < 0.25:
        path = str(folder / "records.json")
        Path(path).write_bytes(json_changed(rng, json.dumps(corpus.printed).encode()))
    base, study_file = str(corpus.zip(rng.choice(["questions", "texts"]))), folder / "study.toml"
    study_file.write_bytes(toml_changed(rng, corpus.files["questions"]["study.toml"]))
    words = rng.choice([
        ("verify", path), ("verify", path, "--json"), ("results", path), ("results", path, "--json"),
        ("results", path, "--edition", "as-released"), ("render", path, "-o", str(folder / "site")),
        ("compare", base, path), ("compare", path, base, "--json"), ("compare", base, base, "--gates", str(study_file)),
        ("compare", path, path, "--markdown", str(folder / "c.md"), "--junit", str(folder / "c.xml")),
    ])  # fmt: skip
    code = run_command(words)
    if code not in CODES:
        raise ExitCode(words[0], code)


class ExitCode(Exception):
    """A command ended as none may end."""


READERS = {
    "bundle": read_bundle,
    "record": read_one_record,
    "samples": read_samples,
    "printed records": read_printed,
    "tofu log": read_tofu_log,
    "muse log": read_muse_log,
    "study": read_a_study,
    "run folder": read_run,
    "badge": read_a_badge,
    "command line": command_line,
}

# -- what must hold ---------------------------------------------------------------------------------------------------


class TooSlow(BaseException):
    """Not an Exception, so that nothing on its way takes it for a fault of the file."""


@contextmanager
def processor_time(seconds):
    """Stop what takes longer. The alarm of wall time is the verification's own."""

    def stop(*_):
        raise TooSlow(f"more than {seconds} s")

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def resident(what):
    """Bytes that this process holds (``VmRSS``), or held at most since its peak was reset (``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise AssertionError(what)


def innermost(error):
    """Where in the project an error came from, as file:line."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "unlearnbench" in frame.filename
        or "harness" in frame.filename
        or "leaderboard" in frame.filename
        or "benchmarks" in frame.filename
    ]
    shown = frames or traceback.extract_tb(error.__traceback__)
    return f"{Path(shown[-1].filename).name}:{shown[-1].lineno} {shown[-1].name}"


def unprintable(text):
    """Control characters, and what turns the reading direction of a terminal's line."""
    return sorted({ascii(letter) for letter in text if letter != "\n"
                   and (unicodedata.category(letter) in ("Cc", "Cs") or "\u202a" <= letter <= "\u202e"
                        or "\u2066" <= letter <= "\u2069")})  # fmt: skip


def faults(work):
    """What a reader did that none may do, as (kind, where); what it printed is looked through, and what errors say."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogatepass", write_through=True) for _ in range(2))
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    found = []
    began = time.process_time()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with processor_time(SECONDS):
                work()
        except HarnessError as error:
            if unprintable(str(error)):
                where = f"{type(error).__name__} from {innermost(error)}: {unprintable(str(error))[:3]}"
                found.append(("unprintable", where))
        except ExitCode as error:
            lines = err.buffer.getvalue().decode("utf-8", "replace").splitlines()
            ours = [line.strip() for line in lines if line.lstrip().startswith("File") and "/unlearnbench/" in line]
            last = next((line for line in reversed(lines) if line and not line.startswith("unlearnbench:")), "")
            found.append((f"exit {error.args}", f"{last[:80]} at {ours[-1] if ours else ''}"))
        except (Exception, TooSlow) as error:  # noqa: BLE001 - any other is what is looked for
            found.append((type(error).__name__, innermost(error)))
    seconds = time.process_time() - began
    grown = resident("VmHWM") - before
    if grown > BYTES:
        found.append(("memory", f"{grown / 2**20:.0f} MiB more"))
    if seconds > SECONDS and not any(kind == "TooSlow" for kind, _ in found):
        found.append(("time", f"{seconds:.1f} s"))
    for name, stream in (("stdout", out), ("stderr", err)):
        text = stream.buffer.getvalue().decode("utf-8", "surrogatepass")
        if "Traceback" in text and not any(kind.startswith("exit") for kind, _ in found):
            found.append(("traceback", name))
        if unprintable(text):
            line = next(line for line in text.split("\n") if unprintable(line))
            found.append(("unprintable", f"{name}: {unprintable(text)[:3]} in {ascii(line.strip())[:60]}"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_changed_file_is_an_error_of_ours_or_harmless(reader, corpus, tmp_path):
    found, first = Counter(), {}
    for number in range(MUTATIONS):
        folder = tmp_path / str(number)
        folder.mkdir()
        for fault in faults(lambda: READERS[reader](corpus, random.Random(f"{reader} {number}"), folder)):  # noqa: B023
            found[fault] += 1
            first.setdefault(fault, number)
        shutil.rmtree(folder)
    lines = [f"{reader} {first[fault]}: {' '.join(fault)} ({count} such)" for fault, count in found.most_common()]
    assert not lines, "\n".join(lines)


# -- single files that cost much --------------------------------------------------------------------------------------


def edited(corpus, path, edit):
    """A copy of the bundle of questions whose files ``edit`` has changed, with hashes that fit."""
    files = dict(corpus.files["questions"])
    edit(files)
    mend(files, random.Random(0))
    return zipped(path, files)


def many_parts(files):
    name = next(name for name in files if "npo" in name and name.endswith(SAMPLES))
    row = json.loads(gzip.decompress(files[name]).splitlines()[0])
    files[name] = rows_as_bytes({**row, "part": f"part {n}", "index": n} for n in range(20_000))


def many_cells(**facts):
    def edit(files):
        manifest = json.loads(files["manifest.json"])
        failed = next(cell for cell in manifest["cells"] if cell["status"] == "failed")
        manifest["cells"] += [
            {**failed, "key": f"failed-{n}", **{name: text.format(n=n) for name, text in facts.items()}}
            for n in range(3000)
        ]
        files["manifest.json"] = json.dumps(manifest).encode()

    return edit


def greatest_scores(files):
    for number, name in enumerate(sorted(name for name in files if name.endswith("record.json"))):
        record = json.loads(files[name])
        for score in record["scores"].values():
            for entry in (score, *score["editions"].values()):
                entry["value"] = 1e308 * (-1) ** number
                entry["interval"] = [-1e308, 1e308]
        files[name] = json.dumps(record).encode()


def long_texts(files):
    """As long as a text may be, of as many words as it may have."""
    name = next(name for name in files if "npo" in name and name.endswith(SAMPLES))
    rows = [json.loads(line) for line in gzip.decompress(files[name]).splitlines()]
    files[name] = rows_as_bytes([*rows, {**rows[0], "truth": "a b " * 12_000, "generation": "b c " * 12_000}])


def labels(text):
    """A stranger's text in every place of a record and of the manifest that a terminal shows."""

    def edit(files):
        for name in [name for name in files if name.endswith("record.json")]:
            record = json.loads(files[name])
            record["unranked"] = [text] if text.isprintable() else []
            for score in record["scores"].values():
                score |= {"label": text, "criterion": text}
            files[name] = json.dumps(record).encode()
        manifest = json.loads(files["manifest.json"])
        for cell in manifest["cells"]:
            cell["reason"] = text
        files["manifest.json"] = json.dumps(manifest).encode()

    return edit


LARGE = {
    "markup of a terminal": labels("[/x]"),
    "control characters": labels("\u001b]0;title\u0007"),
    "the longest texts": long_texts,
    "20,000 parts": many_parts,
    "3,000 failed cells of a seed": many_cells(),
    "3,000 failed methods": many_cells(method="method {n}"),
    "1,000 benchmarks": many_cells(benchmark="benchmark {n}"),
    "the greatest scores": greatest_scores,
}


@pytest.mark.slow
@pytest.mark.parametrize("use", range(5))
@pytest.mark.parametrize("name", LARGE)
def test_a_bundle_that_is_odd_or_large_costs_little(name, use, corpus, tmp_path):
    path = edited(corpus, tmp_path / "b.zip", LARGE[name])

    def work():
        with opened([path]) as results:
            look(results, tmp_path, corpus, use)

    assert not faults(work)


BOMBS = {
    "a gibibyte of line ends": (b"\n" * 2**24, 64),
    "rows of nothing": (b"{}\n" * (2**24 // 3), 19),
    "empty lists": (b'{"a": [' + b"[]," * 300_000 + b"[]]}\n", 330),
    "nested lists": (b'{"a": ' + b"[" * 29 + b"[]," * 300_000 + b"[]" + b"]" * 29 + b"}\n", 330),
    "one long line": (b"[" * 2**24, 19),
}
READ = """
import resource, sys, time
from pathlib import Path
from unlearnbench.results.bundle_reader import bundled_rows
from unlearnbench.errors import HarnessError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
try:
    said = f"{len(bundled_rows(Path(sys.argv[1])))} rows"
except HarnessError as error:
    said = str(error)
used = resource.getrusage(resource.RUSAGE_SELF)
print(f"{(used.ru_maxrss - before) * 1024} {used.ru_utime + used.ru_stime} {said}")
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_sample_file_that_unpacks_to_much_costs_little(name, tmp_path):
    """In a process of its own, whose memory is bounded."""
    piece, times = BOMBS[name]
    path = tmp_path / SAMPLES
    # A gzip file may be of several members.
    path.write_bytes(gzip.compress(piece, 1) * times)
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    grown, seconds, said = done.stdout.split(maxsplit=2)
    assert int(grown) < BYTES, f"{int(grown) / 2**20:.0f} MiB: {said}"
    assert float(seconds) < SECONDS, said
