"""The files through which a Python call goes to its task and its outcome comes back.

The rule: a file appears whole or not at all, so a reader never sees half an outcome. Both files
are pickles: who can write into the directory can run code as the caller, and as the agent's user.
This module is loaded in every called task and imports the standard library alone.
"""

from __future__ import annotations

import io
import os
import pickle
import runpy
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mass.errors import CallError

CALL_SUFFIX = ".call"
OUTCOME_SUFFIX = ".outcome"
PART_SUFFIX = ".part"
# The name multiprocessing gives the main module in its children; libraries know it.
MAIN_IN_TASK = "__mp_main__"


@dataclass(slots=True)
class _Process:
    importing_main: bool = False


# True while a task imports its caller's main module: what is then at that module's top level would
# make calls of its own, and each of those again.
process = _Process()


@dataclass(frozen=True, slots=True)
class Header:
    """What a task needs before it can read the call."""

    import_paths: tuple[str, ...]
    main_name: str | None = None
    main_path: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended: with a value, or with an error and the text of its traceback."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""


def call_bytes(
    function: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any]
) -> bytes:
    """Return the content of a call's file.

    Raises:
        CallError: function or arguments cannot be pickled, or are of an interactive session.
    """
    name = getattr(function, "__qualname__", repr(function))
    try:
        call = pickle.dumps((function, tuple(arguments), dict(named)))
    except Exception as error:  # a class's own reduction may raise anything
        raise CallError(f"the call of {name} cannot be pickled: {error}") from error
    header = Header(tuple(os.path.abspath(path) for path in sys.path))
    if b"__main__" in call:
        header = _with_main(header, name)
    return pickle.dumps(header) + call


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it appears with all of its content, readable by its owner alone."""
    part = path.with_name(f"{path.name}.{os.getpid()}{PART_SUFFIX}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    part.replace(path)


def carry_out(path: Path) -> bool:
    """Carry out the call in a file, write its outcome beside it, and tell whether it returned."""
    outcome_path = path.with_suffix(OUTCOME_SUFFIX)
    # An earlier attempt's outcome must not be taken for this one's, should this one crash.
    outcome_path.unlink(missing_ok=True)
    try:
        with path.open("rb") as file:
            header: Header = pickle.load(file)
            sys.path[:] = [*sys.path, *(p for p in header.import_paths if p not in sys.path)]
            _import_main(header)
            function, arguments, named = pickle.load(file)
        outcome = Outcome(function(*arguments, **named))
    except BaseException as error:  # SystemExit too: whoever waits is told what happened
        traceback.print_exc()
        outcome = Outcome(error=error, trace=traceback.format_exc())
    write_whole(outcome_path, _outcome_bytes(outcome))
    return outcome.error is None


def read_outcome(path: Path) -> Outcome:
    """Return the outcome in a file.

    Raises:
        FileNotFoundError: there is none (yet).
        CallError: it cannot be unpickled here.
    """
    content = path.read_bytes()
    try:
        outcome = _OutcomeReader(io.BytesIO(content)).load()
    except Exception as error:  # a class's own reduction may raise anything
        raise CallError(f"the outcome in {path} cannot be unpickled: {error}") from error
    if not isinstance(outcome, Outcome):
        raise CallError(f"the outcome in {path} is no outcome")
    return outcome


def remove_files(path: Path, *, ended_well: bool) -> None:
    """Remove a call's file and its outcome; what an attempt killed while writing left, too."""
    outcome_path = path.with_suffix(OUTCOME_SUFFIX)
    left = [path, outcome_path]
    if not ended_well:  # the directory is not searched for each call of thousands
        left.extend(path.parent.glob(f"{outcome_path.name}.*{PART_SUFFIX}"))
    for file in left:
        file.unlink(missing_ok=True)


def run_chunk(function: Callable[..., Any], chunk: Iterable[Sequence[Any]]) -> list[Any]:
    """Return the function's values for a chunk of a map's arguments."""
    return [function(*arguments) for arguments in chunk]


class _OutcomeReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class("__main__" if module == MAIN_IN_TASK else module, name)


def _with_main(header: Header, name: str) -> Header:
    main = sys.modules["__main__"]
    if main.__spec__ is not None and main.__spec__.name:
        return Header(header.import_paths, main_name=main.__spec__.name)
    path = getattr(main, "__file__", None)
    if path is None or not os.path.isfile(path):
        raise CallError(
            f"{name} or one of its arguments is defined in an interactive session, which a task "
            "cannot import; put it into a module"
        )
    return Header(header.import_paths, main_path=os.path.abspath(path))


def _import_main(header: Header) -> None:
    if header.main_name is None and header.main_path is None:
        return
    process.importing_main = True
    try:
        if header.main_name is not None:
            found = runpy.run_module(header.main_name, run_name=MAIN_IN_TASK, alter_sys=True)
        else:
            found = runpy.run_path(str(header.main_path), run_name=MAIN_IN_TASK)
    finally:
        process.importing_main = False
    module = types.ModuleType(MAIN_IN_TASK)
    module.__dict__.update(found)
    sys.modules["__main__"] = sys.modules[MAIN_IN_TASK] = module


def _outcome_bytes(outcome: Outcome) -> bytes:
    try:
        content = pickle.dumps(outcome)
        pickle.loads(content)
    except Exception as error:  # a class's own reduction may raise anything
        what = f"result {type(outcome.value).__name__}"
        if outcome.error is not None:
            what = f"error {type(outcome.error).__name__}: {outcome.error}"
        why = CallError(f"the call's {what} cannot be pickled: {error}")
        content = pickle.dumps(Outcome(error=why, trace=outcome.trace))
    return content
