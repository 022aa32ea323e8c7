"""What commands print: lines for people, JSON for programs, and nothing that moves a terminal's cursor."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import UNPRINTABLE, printable
from ..storage import finite


def say(text: object, **options: Any) -> None:
    """Print a line."""
    print(printable(str(text)), **options)


def complain(message: str, code: int) -> int:
    """Print one line on stderr; returns the exit code."""
    say(f"unlearnbench: {' '.join(message.split())}", file=sys.stderr)
    return code


def print_json(value: Any) -> None:
    """Print JSON; numbers that it does not know are strings."""
    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    print(UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Left-aligned columns; the last one is as long as it is."""
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        say("  ".join([*cells, row[-1]]).rstrip())
