"""A benchmark-and-evaluation harness for unlearning in large language models.

What plugin authors, notebooks and scripts need, in one place. Names are imported when they are first used
(``__init__.pyi`` lists them with their homes), so that a plugin which only lists what it offers never imports torch.
"""

from __future__ import annotations

import os
import tempfile

import lazy_loader

if os.path.expanduser("~") == "~":
    # A container's user may have no home. Without one nltk, which rouge-score needs, does not import, and others make
    # a folder called "~".
    os.environ["HOME"] = tempfile.gettempdir()

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("unlearnbench")
    return _attribute(name)
