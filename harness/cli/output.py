"""Prints lines for people and JSON for programs, without characters that control a terminal."""

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
    """Print JSON, with NaN and infinities as strings."""
    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    print(UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns, the last one without padding."""
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        say("  ".join([*cells, row[-1]]).rstrip())
