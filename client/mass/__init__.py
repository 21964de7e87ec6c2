"""The Python face of MASS: submit tasks, wait for them, read their output, run Python calls.

The rule: importing `mass` imports nothing else. Agent and controller import `mass.v1` for its
messages, and what they read alike from `address`, `configfile`, `systemd` and `units`; so the
client, and gRPC with it, is loaded when one of its names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mass.aio import AsyncClient, AsyncTask
    from mass.client import Client, Task
    from mass.errors import (
        CallError,
        InvalidValue,
        MassClientError,
        NotFound,
        Refused,
        Unreachable,
        WaitTimeout,
    )
    from mass.executor import Executor
    from mass.failures import TaskCancelled, TaskFailed, TaskLost, TaskOutOfMemory, TaskTimedOut
    from mass.model import OomCause, TaskInfo, TaskOptions, TaskSpec, TaskState

_HOMES = {
    "AsyncClient": "aio",
    "AsyncTask": "aio",
    "CallError": "errors",
    "Client": "client",
    "Executor": "executor",
    "InvalidValue": "errors",
    "MassClientError": "errors",
    "NotFound": "errors",
    "OomCause": "model",
    "Refused": "errors",
    "Task": "client",
    "TaskCancelled": "failures",
    "TaskFailed": "failures",
    "TaskInfo": "model",
    "TaskLost": "failures",
    "TaskOptions": "model",
    "TaskOutOfMemory": "failures",
    "TaskSpec": "model",
    "TaskState": "model",
    "TaskTimedOut": "failures",
    "Unreachable": "errors",
    "WaitTimeout": "errors",
}

__all__ = [
    "AsyncClient",
    "AsyncTask",
    "CallError",
    "Client",
    "Executor",
    "InvalidValue",
    "MassClientError",
    "NotFound",
    "OomCause",
    "Refused",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskInfo",
    "TaskLost",
    "TaskOptions",
    "TaskOutOfMemory",
    "TaskSpec",
    "TaskState",
    "TaskTimedOut",
    "Unreachable",
    "WaitTimeout",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mass' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"mass.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
