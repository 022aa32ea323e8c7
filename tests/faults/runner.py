"""Runs a study as a script would, without pages: ``runner.py STUDY.toml RUN EXECUTOR JOBS PACK``."""

from __future__ import annotations

import sys
from pathlib import Path

import unlearnbench

if __name__ == "__main__":
    study, run, executor, jobs, pack = sys.argv[1:]
    settings = {"run": {"executor": executor, "jobs": int(jobs), "device": "cpu", "threads": 1, "pack": int(pack)}}
    plugin = str(Path(__file__).parent.parent / "noop_plugin.py")
    try:
        ran = unlearnbench.run(unlearnbench.load_study(study, settings, [plugin]), run, progress=False)
    except unlearnbench.HarnessError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(2)
    sys.exit(ran.exit_code)
