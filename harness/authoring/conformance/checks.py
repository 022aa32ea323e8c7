"""One conformance check and its result."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import HarnessError, UndeclaredAccess
from ...plugin.own_code import with_line


@dataclass(frozen=True)
class Check:
    """The result of one check: whether the promise was kept, and details in ``message``."""

    name: str
    kept: bool
    message: str = ""
    seconds: float = 0.0


class Broken(Exception):
    """A promise is not kept; the message says how."""


def attempt(name: str, work: Callable[[], str | None], targets: Sequence[str] = ()) -> Check:
    """What came of one check.

    Args:
        targets: the components whose own line is named where their code raises.
    """
    began = time.perf_counter()
    try:
        message, kept = work() or "", True
    except (Broken, HarnessError) as error:
        message, kept = str(error), False
        if isinstance(error, UndeclaredAccess):
            message = with_line(message, error, targets)
    except Exception as error:  # noqa: BLE001 - third-party code may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = with_line(f"{type(error).__name__}: {error}", error, targets, f"{last.filename}:{last.lineno}")
        kept = False
    return Check(name, kept, message, time.perf_counter() - began)
