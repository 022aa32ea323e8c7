"""What a fork server imports once for all nodes. Importing this module does it, because a fork server only imports."""

from __future__ import annotations

from .worker import preload, start_node

__all__ = ["start_node"]

preload()
