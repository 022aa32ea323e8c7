"""Errors that the harness raises on purpose; every message names the value at fault and the remedy.

HarnessError                  one line for the user; carries the exit code of the command
├── UsageError                a study, option or hyperparameter that cannot be used
│   └── UnknownName           no such method, benchmark, model or key; names the nearest
├── NothingSelected           a valid request that selects no cell
├── DataError                 a data set that is missing, incomplete or inconsistent
├── ModelError                a model or tokenizer that cannot be loaded as asked
├── RecordError               a run folder, plan or record that cannot be read
├── BundleError               a submission that is broken, incomplete or hostile
├── StorageError              the disk refused a write
├── PluginError               a plugin that breaks its contract; carries the plugin's name
│   └── UndeclaredAccess      a method touched what its ``requires`` does not declare
├── NotApplicable             this pairing makes no sense; the reason goes in the record
└── Diverged                  a loss or the weights stopped being finite
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

FAILED, INTERRUPTED, INTERNAL, USAGE, NOTHING, TRIPPED, INVALID = 1, 2, 3, 4, 5, 6, 7
"""Exit codes of commands: a cell failed · interrupted, state saved · internal error or full disk · usage error, or rows
that may not be compared · nothing selected · a gate tripped · a submission or a conformance check does not hold."""

AGAIN = 75
"""Exit status of a work with nodes that have not ended, and are to be run again (EX_TEMPFAIL)."""
DISK_REFUSED = 74
"""Exit status of a node that could not write its status (EX_IOERR)."""

# Control characters except line ends, halves of surrogate pairs, and overrides of the writing direction.
UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Replace characters that would move a terminal's cursor, set its title or reverse its text."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


class HarnessError(Exception):
    """Base of all errors that the user sees as one line; makes third-party text in the message printable."""

    exit_code = USAGE

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class UsageError(HarnessError):
    """The request cannot be carried out as given."""


class UnknownName(UsageError):
    """A name that is not registered; the message suggests the nearest that is."""

    def __init__(self, kind: str, name: str, available: Iterable[str], hint: str = "") -> None:
        self.name = name
        super().__init__(f"unknown {kind} {name!r}{_suggestion(name, available)}{hint}")


class NothingSelected(HarnessError):
    """The request is valid and selects nothing."""

    exit_code = NOTHING


class DataError(HarnessError):
    """A data set is missing, incomplete or inconsistent."""


class ModelError(HarnessError):
    """A model or tokenizer cannot be loaded as asked."""


class RecordError(HarnessError):
    """A run folder, plan or record cannot be read."""


class BundleError(HarnessError):
    """A submission is broken, incomplete or hostile."""

    exit_code = INVALID


class StorageError(HarnessError):
    """The disk refused a write."""

    exit_code = INTERNAL


class PluginError(HarnessError):
    """A plugin does not load, or breaks its contract."""

    def __init__(self, plugin: str, message: str) -> None:
        self.plugin = plugin
        super().__init__(f"plugin {plugin}: {message}")


class UndeclaredAccess(PluginError):
    """A method touched data or a model that its ``requires`` does not declare."""


class NotApplicable(HarnessError):
    """This pairing makes no sense; the message is the reason shown in the empty cell."""


class Diverged(HarnessError):
    """A loss or the weights stopped being finite."""


def _suggestion(name: str, available: Iterable[str]) -> str:
    names = sorted(available)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"{meant} (available: {', '.join(names) or 'none'})"
