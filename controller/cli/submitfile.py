"""Reads many tasks from JSON lines (`mass submit --from`).

The rule: a key is the long flag's name without its dashes, and a value means what the flag's does;
one wrong line refuses the whole file, naming the line and the key.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mass.units import size_words
from mass.v1 import types_pb2

from controller.cli.spec import Value, settle_after, spec_of
from controller.core.errors import InvalidRequest

TASKS_MAX = 10_000  # one call, one transaction
LINE_BYTES_MAX = 1 << 20
STANDARD_INPUT = "-"


def read_specs(path: str, newest: Callable[[], str]) -> list[types_pb2.TaskSpec]:
    """Return the tasks of a file, or of standard input for `-`, in order; blank lines are skipped.

    `newest` answers for the task called `last`.

    Raises:
        InvalidRequest: the file cannot be read, holds no task or more than 10,000, or a line is
            wrong.
    """
    source = "standard input" if path == STANDARD_INPUT else path
    with ExitStack() as stack:
        if path == STANDARD_INPUT:
            lines: Iterable[bytes] = _bounded_lines(sys.stdin.buffer.readline)
        else:
            try:
                file = stack.enter_context(Path(path).open("rb"))
            except OSError as error:
                raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
            lines = _bounded_lines(file.readline)
        specs = parse_specs(lines, source, newest)
    if not specs:
        raise InvalidRequest(f"{source} holds no task; write one JSON object in each line")
    return specs


def parse_specs(
    lines: Iterable[bytes], source: str, newest: Callable[[], str]
) -> list[types_pb2.TaskSpec]:
    """Return the tasks in the lines.

    Raises:
        InvalidRequest: a line is wrong, or there are more than 10,000 tasks.
    """
    specs: dict[int, types_pb2.TaskSpec] = {}  # by line
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(specs) == TASKS_MAX:
            raise InvalidRequest(
                f"{source}, line {number}: more than {TASKS_MAX:,} tasks; one call is one "
                "transaction, so split the file",
                tasks_max=TASKS_MAX,
            )
        with _naming(source, number):
            specs[number] = spec_of(_parse_object(line))
    keys = {spec.key for spec in specs.values()}
    for number, spec in specs.items():
        with _naming(source, number):
            settle_after(spec, newest, keys)
    return list(specs.values())


@contextmanager
def _naming(source: str, number: int) -> Iterator[None]:
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"{source}, line {number}: {error.message}", line=number) from None


def _bounded_lines(read_line: Callable[[int], bytes]) -> Iterable[bytes]:
    # One byte above the bound tells a line that is too long from one that just fits.
    while line := read_line(LINE_BYTES_MAX + 1):
        yield line


def _parse_object(line: bytes) -> dict[str, Value]:
    if len(line) > LINE_BYTES_MAX:
        raise InvalidRequest(f"longer than {size_words(LINE_BYTES_MAX)}")
    try:
        # Without the line's end, behind which column 1 would begin again.
        value = json.loads(line.decode().rstrip(), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError:
        raise InvalidRequest("not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"not JSON: {error.msg} at column {error.colno}") from None
    except ValueError:  # what Python says to thousands of digits
        raise InvalidRequest("not a task: a number has too many digits") from None
    except RecursionError:
        raise InvalidRequest("not a task: nested too deeply") from None
    if not isinstance(value, dict):
        raise InvalidRequest('not a JSON object; write for example {"command": ["sleep", "1"]}')
    return value


def _without_duplicates(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise InvalidRequest(f"key '{key}' stands there twice")
    return dict(pairs)
