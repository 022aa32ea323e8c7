"""Writes the specs of method classes to a file, from which a plugin lists them cheaply.

``python -m unlearnbench.authoring.component_specs pkg.catalogue:specs FILE`` calls the function, which returns the
specs, and writes them. A plugin's hook returns what ``unlearnbench.stored_specs`` reads from that file, and a test of
the package compares the file with ``unlearnbench.written_specs(specs())``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import HarnessError
from ..plugin.specs import resolve
from ..plugin.stored_specs import written_specs

USAGE = "usage: python -m unlearnbench.authoring.component_specs PACKAGE.MODULE:FUNCTION FILE"


def main(arguments: list[str]) -> str:
    """Write the file; return a fault for ``sys.exit``, empty on success."""
    if len(arguments) != 2:
        return USAGE
    target, file = arguments
    try:
        specs = resolve(target, target.partition(".")[0])()
    except HarnessError as error:
        return str(error)
    Path(file).write_text(written_specs(specs), encoding="utf-8")
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) or 0)
