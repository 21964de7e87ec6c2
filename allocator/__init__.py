"""The C memory pool and the task launcher; knows nobody else in MASS.

Rule: importing this package imports nothing. Agents use `allocator.launcher` where neither cffi nor
numpy is installed, so the pool's names are looked up when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from allocator.pool import (
        Block,
        Pool,
        PoolError,
        PoolExhausted,
        PoolStatistics,
        PoolUnsound,
        WrongFree,
    )

__all__ = [
    "Block",
    "Pool",
    "PoolError",
    "PoolExhausted",
    "PoolStatistics",
    "PoolUnsound",
    "WrongFree",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("allocator.pool"), name)
    raise AttributeError(f"module 'allocator' has no attribute {name!r}")
