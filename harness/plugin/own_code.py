"""Where in a plugin's own code an error arose."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from pathlib import Path


def line_of(error: BaseException, targets: Iterable[str]) -> str:
    """The last line of a plugin's own code on the way to an error, ``my_method.py:23, in loss``; empty without one.

    Args:
        targets: of the components that ran, as ``"pkg.mod:Name"``; modules beside one in its package are its own.
    """
    own = [place for target in targets for place in _places(target.partition(":")[0])]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path in own or path.parent in own:
            return f"{path.name}:{frame.lineno}, in {frame.name}"
    return ""


def with_line(text: str, error: BaseException, targets: Iterable[str], otherwise: str = "") -> str:
    """What is said of an error, with the last line of a plugin's own code, or ``otherwise``, in brackets behind it."""
    where = line_of(error, targets) or otherwise
    return f"{text} ({where})" if where else text


def _places(name: str) -> list[Path]:
    """The file of a module, and its folder where it is part of a package."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if not file:
        return []
    return [Path(file), Path(file).parent] if "." in name else [Path(file)]
