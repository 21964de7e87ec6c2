"""Builds what is submitted, from flags or from a line of a file: the one place that checks both.

The rule: a value means the same as a flag and in a file, and is refused with the same sentence.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mass.units import told_apart
from mass.v1 import types_pb2

from controller.cli.selectors import LAST
from controller.cli.units import parse_duration, parse_size
from controller.core.arrays import array_indexes
from controller.core.constraint import parse_constraint
from controller.core.errors import InvalidRequest

PRIORITY_MAX = 1_000_000
CPUS_MAX = 4_096.0
RETRIES_MAX = 100
GPUS_MAX = 1_024
INPUT_FILES_MAX = 100_000  # below one directory: about a second of looking
ARRAY_ELEMENTS_MAX = 100_000
DEPENDENCY_KINDS = {
    "ok": types_pb2.DEPENDENCY_KIND_OK,
    "any": types_pb2.DEPENDENCY_KIND_ANY,
    "fail": types_pb2.DEPENDENCY_KIND_FAIL,
}

SIZE_WORDS = {"mem": "memory", "mem-limit": "memory limit", "input-size": "input size"}

# A flag's value or a value of JSON; what it must be is said by its key's converter below.
Value = Any


def spec_of(values: Mapping[str, Value]) -> types_pb2.TaskSpec:
    """Return the task for values by the long flags' names (without dashes) and `command`.

    What is absent is left to the controller. A relative directory is taken from the current one.

    Raises:
        InvalidRequest: an unknown key, a value that cannot be, or no command.
    """
    fields: dict[str, Value] = {}
    durations: dict[str, int] = {}
    for key, value in values.items():
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(KEYS)}"
            raise InvalidRequest(f"unknown key '{key}'{hint}", key=key)
        field, convert = KEYS[key]
        converted = convert(key, value)
        if field == "preference" and not value:
            continue  # a false says nothing, least of all against the other one
        if field in ("time_limit", "retry_delay"):
            durations[field] = converted
        else:
            fields[field] = converted
    if "input" in values and "input-size" in values:
        raise InvalidRequest("input and input-size exclude each other; leave one out")
    if values.get("mem-exact") and not fields.get("memory_request_bytes"):
        raise InvalidRequest("mem-exact needs mem with a size: what would be reserved exactly?")
    if values.get("spread") and values.get("pack"):
        raise InvalidRequest("spread and pack exclude each other; leave one out")
    if not fields.get("command"):
        raise InvalidRequest("no command; it is the program and its arguments")
    _check_text(fields)
    spec = types_pb2.TaskSpec(**fields)
    for field, duration_ns in durations.items():
        getattr(spec, field).FromNanoseconds(duration_ns)
    if 0 < spec.memory_limit_bytes < spec.memory_request_bytes:
        limit, request = told_apart(spec.memory_limit_bytes, spec.memory_request_bytes)
        raise InvalidRequest(
            f"mem-limit {limit} is below mem {request}; raise the limit or lower the request"
        )
    return spec


def settle_after(
    spec: types_pb2.TaskSpec, newest: Callable[[], str], keys: Collection[str] | None = None
) -> None:
    """Put the id that `newest` answers in the place of `last`; `keys` are those of a file's lines.

    Raises:
        InvalidRequest: it is to wait for what is neither an id nor such a key.
    """
    for wanted in spec.after:
        if not wanted.key or wanted.key in (keys or ()):
            continue
        if wanted.key != LAST:
            known = "12 or last" if keys is None else "12, last or the key of a line"
            raise InvalidRequest(f"after '{wanted.key[:80]}' is no task; write {known}")
        wanted.key, wanted.task_id = "", newest()


def parse_environment(pairs: Sequence[str]) -> dict[str, str]:
    """Return variables from `KEY=VALUE` texts; a later one of the same key wins.

    Raises:
        InvalidRequest: no '=', or nothing before it.
    """
    environment = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise InvalidRequest(f"env '{pair}' is not KEY=VALUE")
        environment[key] = value
    return environment


def _check_text(fields: Mapping[str, Value]) -> None:
    places = ("working_directory", "stdout_path", "stderr_path")
    texts = [fields.get(field, "") for field in ("name", "category", "constraint", *places)]
    environment = fields.get("environment", {})
    for text in (*fields["command"], *texts, *environment.keys(), *environment.values()):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"{text!r} is not valid UTF-8") from None


def _command(key: str, value: Value) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise InvalidRequest(f"{key} must be a list of text, the program and its arguments")
    return tuple(value)


def _size(key: str, value: Value) -> int:
    if key == "mem" and value == "auto":
        return 0
    if isinstance(value, str | int) and not isinstance(value, bool):
        return parse_size(value, SIZE_WORDS[key])
    raise InvalidRequest(f'{key} must be text with a unit, "2GiB", or whole bytes')


def _duration(key: str, value: Value) -> int:
    return parse_duration(_text(key, value), key)


def _text(key: str, value: Value) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{key} must be text")
    return value


def _cpus(key: str, value: Value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{key} must be a number")
    # Written so that NaN is refused too.
    if not 0 < value <= CPUS_MAX:
        typed = str(value).removesuffix(".0")  # a flag's 0 comes as 0.0
        raise InvalidRequest(f"{key} {typed} must be above 0 and at most {CPUS_MAX:g}")
    return float(value)


def _whole(lowest: int, highest: int) -> Callable[[str, Value], int]:
    def convert(key: str, value: Value) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequest(f"{key} must be a whole number")
        if not lowest <= value <= highest:
            raise InvalidRequest(f"{key} {value} must be between {lowest} and {highest}")
        return value

    return convert


def _directory(key: str, value: Value) -> str:
    path = _text(key, value)
    return os.path.abspath(path) if path else ""


def _array(key: str, value: Value) -> types_pb2.ArraySpec:
    """Return an array of "1-1000%20": its indexes, and how many may be placed at once."""
    indexes, _, at_once = _text(key, value).partition("%")
    if "%" in str(value) and not re.fullmatch(r"[1-9]\d{0,5}", at_once):
        raise InvalidRequest(f"{key} '{value}': behind % stands how many may run at once, from 1")
    array_indexes(indexes, ARRAY_ELEMENTS_MAX)
    return types_pb2.ArraySpec(indexes=indexes, running_max=int(at_once or 0))


def _after(key: str, value: Value) -> list[types_pb2.Dependency]:
    """Return what a task waits for, of "12", "12:any" or "prepare:fail", one or a list of them."""
    texts = value if isinstance(value, list) else [value]
    parts = [part.strip() for text in texts for part in str(text).split(",")]
    found = []
    for text in parts:
        name, colon, kind = text.rpartition(":")
        if not colon or kind not in DEPENDENCY_KINDS:
            name, kind = text, "ok"
        if not name or ":" in name:
            raise InvalidRequest(f"{key} '{text}' is not ID, ID:ok, ID:any or ID:fail")
        is_id = re.fullmatch(r"[1-9]\d{0,17}", name, re.ASCII)
        found.append(
            types_pb2.Dependency(
                task_id=name if is_id else "",
                key="" if is_id else name,
                kind=DEPENDENCY_KINDS[kind],
            )
        )
    return found


def _key(key: str, value: Value) -> str:
    text = _text(key, value)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", text):
        raise InvalidRequest(f"{key} '{text[:80]}' must be letters, digits, '_', '.' and '-'")
    return text


def _constraint(key: str, value: Value) -> str:
    parse_constraint(_text(key, value))
    return str(value)


def _inputs(key: str, value: Value) -> int:
    """Return the sum of the sizes of files here, and of those below directories; they must be
    there."""
    paths = value if isinstance(value, list) else [value]
    total = 0
    for path in paths:
        try:
            is_directory = os.path.isdir(_text(key, path))
            total += _bytes_below(key, path) if is_directory else os.stat(path).st_size
        except (OSError, ValueError) as error:
            place, reason = path, str(error)
            if isinstance(error, OSError):
                place, reason = error.filename, str(error.strerror)
            raise InvalidRequest(f"{key} '{place}' cannot be looked at: {reason}") from error
    return total


def _bytes_below(key: str, directory: str) -> int:
    """Return the sum of the sizes of the files below a directory, links to files followed."""
    total = count = 0
    for parent, directories, names in os.walk(directory, onerror=_refuse):
        count += len(directories) + len(names)
        if count > INPUT_FILES_MAX:
            raise InvalidRequest(
                f"{key} '{directory}' holds more than {INPUT_FILES_MAX:,} files; say input-size"
            )
        for name in names:
            with suppress(FileNotFoundError):  # a link to nothing, or removed meanwhile
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _refuse(error: OSError) -> None:
    raise error


def _preference(key: str, value: Value) -> Value:
    if not _yes_or_no(key, value):
        return types_pb2.PREFERENCE_UNSPECIFIED
    return types_pb2.PREFERENCE_PACK if key == "pack" else types_pb2.PREFERENCE_SPREAD


def _yes_or_no(key: str, value: Value) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{key} must be true or false")
    return value


def _environment(key: str, value: Value) -> dict[str, str]:
    if isinstance(value, list) and all(isinstance(pair, str) for pair in value):
        return parse_environment(value)
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    raise InvalidRequest(f'{key} must be {{"KEY": "VALUE"}} or ["KEY=VALUE"], all of it text')


KEYS: dict[str, tuple[str, Callable[[str, Value], Value]]] = {
    "command": ("command", _command),
    "mem": ("memory_request_bytes", _size),
    "mem-limit": ("memory_limit_bytes", _size),
    "mem-exact": ("memory_exact", _yes_or_no),
    "oom-group": ("oom_group", _yes_or_no),
    "input": ("input_bytes", _inputs),
    "input-size": ("input_bytes", _size),
    "cpus": ("cpus", _cpus),
    "name": ("name", _text),
    "category": ("category", _text),
    "priority": ("priority", _whole(-PRIORITY_MAX, PRIORITY_MAX)),
    "time": ("time_limit", _duration),
    "retries": ("retries", _whole(0, RETRIES_MAX)),
    "no-requeue": ("no_requeue", _yes_or_no),
    "env": ("environment", _environment),
    "cwd": ("working_directory", _directory),
    "array": ("array", _array),
    "after": ("after", _after),
    "key": ("key", _key),
    "constraint": ("constraint", _constraint),
    "spread": ("preference", _preference),
    "pack": ("preference", _preference),
    "gpus": ("gpus", _whole(0, GPUS_MAX)),
    "hold": ("hold", _yes_or_no),
    "stdout": ("stdout_path", _directory),
    "stderr": ("stderr_path", _directory),
    "retry-delay": ("retry_delay", _duration),
}
