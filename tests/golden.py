"""Scores that a change of the code's form must not move: every score of a run, to the last digit.

``python tests/golden.py RUN`` holds a run folder against ``tests/fixtures/golden-<study>.json``; ``--write`` renews the
file, which a change of a definition does in a commit of its own. Numbers of a trained model depend on the processor's
instructions and on torch, so that a file of another machine is compared within ``LOOSE`` alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

DATA = Path(__file__).parent / "fixtures"
# Between processors a sum has another order: what a short training makes of it, relative to a score's own size or 1.
LOOSE = 0.05


def machine():
    """What the last digits of a score depend on, beside the code."""
    import torch

    return {"processor": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def scores_of(run):
    """Cell without its hash → metric → edition → value, as JSON holds it."""
    found = {}
    for path in sorted(run.glob("cells/*/record.json")):
        record = json.loads(path.read_text())
        entries = {metric: {name: edition["value"] for name, edition in entry["editions"].items()}
                   for metric, entry in record["scores"].items()}  # fmt: skip
        setting = record["identity"]["setting"]
        name = record["cell"].rpartition("--")[0] + (f" ({setting})" if setting else "")
        found[name] = entries | {"losses": dict(enumerate(record["losses"]))}
    return json.loads(json.dumps(found))


def flat(scores):
    return {(cell, metric, edition): float(value) for cell, metrics in scores.items()
            for metric, editions in metrics.items() for edition, value in editions.items()}  # fmt: skip


def same(mine, theirs, exact):
    if math.isnan(mine) or math.isnan(theirs):
        return math.isnan(mine) and math.isnan(theirs)
    return mine == theirs or (not exact and abs(mine - theirs) <= LOOSE * max(1.0, abs(theirs)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--write", action="store_true", help="renew the golden file from this run")
    options = parser.parse_args()
    name = json.loads((options.run / "plan.json").read_text())["study"]
    file, found = DATA / f"golden-{name}.json", scores_of(options.run)
    if options.write:
        file.write_text(json.dumps({"machine": machine(), "scores": found}, indent=1, sort_keys=True) + "\n")
        return print(f"{file}: {len(flat(found))} numbers of {len(found)} cells")
    golden = json.loads(file.read_text())
    exact = golden["machine"] == machine()
    mine, theirs = flat(found), flat(golden["scores"])
    unlike = [key for key in sorted({*mine, *theirs})
              if key not in mine or key not in theirs or not same(mine[key], theirs[key], exact)]  # fmt: skip
    for key in unlike[:20]:
        print(" ".join(key), "golden", theirs.get(key), "now", mine.get(key))
    print(f"{len(theirs)} numbers of {len(golden['scores'])} cells, {len(unlike)} differ"
          + ("" if exact else f"; made on {golden['machine']}, so compared within {LOOSE:.0%}"))  # fmt: skip
    return 1 if unlike else 0


if __name__ == "__main__":
    sys.exit(main())
