"""One promise tried out, and what came of it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import HarnessError


@dataclass(frozen=True)
class Check:
    """One promise, and whether it was kept; ``message`` says what was found."""

    name: str
    kept: bool
    message: str = ""
    seconds: float = 0.0


class Broken(Exception):
    """A promise that was not kept, in words."""


def attempt(name: str, work: Callable[[], str | None]) -> Check:
    began = time.perf_counter()
    try:
        message, kept = work() or "", True
    except (Broken, HarnessError) as error:
        message, kept = str(error), False
    except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        message, kept = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})", False
    return Check(name, kept, message, time.perf_counter() - began)
