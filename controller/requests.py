"""What users ask for: API requests to checked core values. The only place that validates them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from mass.units import told_apart
from mass.v1 import task_pb2, types_pb2

from controller.core.arrays import array_indexes
from controller.core.constraint import parse_constraint
from controller.core.errors import InvalidRequest
from controller.core.limits import SECOND_NS, Limits
from controller.core.model import (
    Dependency,
    DependencyKind,
    Preference,
    TaskAction,
    TaskSpec,
    TaskState,
)

ENVIRONMENT_RESERVED = "MASS_"
NAME_DEFAULT_LENGTH_MAX = 60
ID_DIGITS_MAX = 19
PATH_LENGTH_MAX = 4_096
INSTANT_MAX_NS = (1 << 63) - 1
PREFERENCES = {
    types_pb2.PREFERENCE_SPREAD: Preference.SPREAD,
    types_pb2.PREFERENCE_PACK: Preference.PACK,
}
DEPENDENCY_KINDS = {
    types_pb2.DEPENDENCY_KIND_UNSPECIFIED: DependencyKind.OK,
    types_pb2.DEPENDENCY_KIND_OK: DependencyKind.OK,
    types_pb2.DEPENDENCY_KIND_ANY: DependencyKind.ANY,
    types_pb2.DEPENDENCY_KIND_FAIL: DependencyKind.FAIL,
}
TASK_ACTIONS = {
    task_pb2.TASK_ACTION_HOLD: TaskAction.HOLD,
    task_pb2.TASK_ACTION_RELEASE: TaskAction.RELEASE,
    task_pb2.TASK_ACTION_PAUSE: TaskAction.PAUSE,
    task_pb2.TASK_ACTION_RESUME: TaskAction.RESUME,
    task_pb2.TASK_ACTION_PRIORITY: TaskAction.PRIORITY,
}
_ELEMENT = re.compile(r"([1-9]\d{0,17})_(\d{1,9})", re.ASCII)


def submission(
    request: task_pb2.SubmitTasksRequest, limits: Limits
) -> tuple[str, str, tuple[TaskSpec, ...]]:
    """Return request id, user and specs of a submit, with the defaults filled in.

    Raises:
        InvalidRequest: names the field, its value and the bound, and which task it was.
    """
    count = len(request.tasks)
    if not 1 <= count <= limits.tasks_per_call_max:
        raise InvalidRequest(
            f"{count} tasks in one call; it takes 1 to {limits.tasks_per_call_max}"
        )
    if len(request.request_id) > limits.request_id_length_max:
        raise InvalidRequest(
            f"request_id has {len(request.request_id)} characters; the bound is"
            f" {limits.request_id_length_max}"
        )
    if len(request.user) > limits.name_length_max:
        raise InvalidRequest(f"user has more than {limits.name_length_max} characters")
    keys = _keys(request.tasks)
    specs = []
    for index, message in enumerate(request.tasks):
        try:
            specs.append(spec(message, limits, keys))
        except InvalidRequest as error:
            where = f"task {index + 1} of {count}: " if count > 1 else ""
            raise InvalidRequest(f"{where}{error.message}") from None
    names = {place: key for key, place in keys.items()}
    _refuse_circles(specs, names)
    return request.request_id, request.user, tuple(specs)


def _keys(tasks: Iterable[types_pb2.TaskSpec]) -> dict[str, int]:
    """Return the keys of a call's tasks, with the number by which Dependency names them."""
    keys: dict[str, int] = {}
    for index, message in enumerate(tasks):
        if message.key:
            if message.key in keys:
                raise InvalidRequest(f"key '{message.key[:80]}' stands at two tasks")
            keys[message.key] = -index - 1
    return keys


def _refuse_circles(specs: Sequence[TaskSpec], names: Mapping[int, str]) -> None:
    """Raise InvalidRequest when tasks of one call wait for each other in a circle."""
    done: set[int] = set()
    for start in range(len(specs)):
        path: dict[int, None] = {}  # those being looked at, in order
        stack = [(start, False)]
        while stack:
            index, left = stack.pop()
            if left:
                del path[index]
                done.add(index)
                continue
            if index in done:
                continue
            if index in path:
                circle = [*list(path)[list(path).index(index) :], index]
                shown = " after ".join(names[-i - 1] for i in circle)
                raise InvalidRequest(f"tasks wait for each other in a circle: {shown}")
            path[index] = None
            stack.append((index, True))
            own = [-wanted.task_id - 1 for wanted in specs[index].after if wanted.task_id < 0]
            stack += [(other, False) for other in own]


def spec(
    message: types_pb2.TaskSpec, limits: Limits, keys: Mapping[str, int] | None = None
) -> TaskSpec:
    """Return one checked spec with the defaults filled in; `keys` are those of its call.

    Raises:
        InvalidRequest: names the field, its value and the bound.
    """
    command = tuple(message.command)
    if not command or not command[0]:
        raise InvalidRequest("the command is empty")
    _bytes_within("command", sum(len(word.encode()) + 1 for word in command),
                  limits.command_bytes_max)  # fmt: skip
    for word in command:
        if "\0" in word:
            raise InvalidRequest("the command has a NUL character")
    environment = dict(message.environment)
    _check_environment(environment, limits)
    request, limit = _memory(message, limits)
    input_bytes = _whole("input-size", message.input_bytes, 0, limits.memory_request_max_bytes)
    name, category = _names(message, limits)
    cpus = message.cpus or limits.cpus_default
    if not 0 < cpus <= limits.cpus_max:
        raise InvalidRequest(f"cpus is {cpus:g}; it must be above 0, at most {limits.cpus_max:g}")
    if abs(message.priority) > limits.priority_max:
        raise InvalidRequest(
            f"priority is {message.priority}; it must be -{limits.priority_max} to"
            f" {limits.priority_max}"
        )
    if not 0 <= message.retries <= limits.retries_max:
        raise InvalidRequest(f"retries is {message.retries}; it must be 0 to {limits.retries_max}")
    directory = message.working_directory
    if directory and (not directory.startswith("/") or "\0" in directory or len(directory) > 4_096):
        raise InvalidRequest(f"cwd '{directory[:80]}' is no absolute path")
    return TaskSpec(
        command=command,
        name=name,
        category=category,
        memory_request_bytes=request,
        memory_limit_bytes=limit,
        cpus=cpus,
        priority=message.priority,
        time_limit_ns=_time_limit_ns(message, limits),
        retries=message.retries,
        requeue=not message.no_requeue,
        environment=environment,
        working_directory=directory,
        constraint=_constraint(message.constraint, limits),
        preference=PREFERENCES.get(message.preference, Preference.SPREAD),
        gpus=_whole("gpus", message.gpus, 0, limits.gpus_max),
        stdout_path=_output_path("stdout", message.stdout_path),
        stderr_path=_output_path("stderr", message.stderr_path),
        hold=message.hold,
        retry_delay_ns=_retry_delay_ns(message, limits),
        after=_after(message, limits, keys or {}),
        array=_array(message, limits),
        array_running_max=_whole(
            "array.running_max", message.array.running_max, 0, limits.array_elements_max
        ),
        memory_declared=message.memory_request_bytes > 0,
        memory_exact=message.memory_exact,
        input_bytes=input_bytes or None,
        oom_group=message.oom_group,
    )


def planned(message: types_pb2.TaskSpec) -> tuple[types_pb2.TaskSpec, str]:
    """Return a task to be planned, and what must come before its node, for behind a sentence.

    What it waits for is left out: a key is of a task beside it in a call that nobody has made.
    """
    waits, held = bool(message.after), message.hold
    task = types_pb2.TaskSpec()
    task.CopyFrom(message)
    task.ClearField("after")
    first = ", once all that it waits for has ended" if waits else ""
    return task, f"{first}, once it is released" if held else first


def _names(message: types_pb2.TaskSpec, limits: Limits) -> tuple[str, str]:
    """Return name and category."""
    name = message.name or message.command[0].rsplit("/", 1)[-1][:NAME_DEFAULT_LENGTH_MAX]
    category = message.category or name
    for field, value in (("name", name), ("category", category)):
        if len(value) > limits.name_length_max or not value.isprintable():
            raise InvalidRequest(
                f"{field} '{value[:80]}' must be at most {limits.name_length_max} printable"
                " characters"
            )
    return name, category


def _whole(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidRequest(f"{name} is {value}; it must be {low} to {high}")
    return value


def _constraint(text: str, limits: Limits) -> str:
    if len(text) > limits.constraint_length_max:
        raise InvalidRequest(
            f"constraint has {len(text)} characters; the bound is {limits.constraint_length_max}"
        )
    if text.strip():
        parse_constraint(text)
    return text.strip()


def _output_path(name: str, path: str) -> str:
    if path and (not path.startswith("/") or "\0" in path or len(path) > PATH_LENGTH_MAX):
        raise InvalidRequest(f"{name} '{path[:80]}' is no absolute path")
    return path


def _time_limit_ns(message: types_pb2.TaskSpec, limits: Limits) -> int | None:
    if not message.HasField("time_limit"):
        return None
    time_limit_ns = message.time_limit.ToNanoseconds()
    if not 0 < time_limit_ns <= limits.time_limit_max_ns:
        raise InvalidRequest(
            f"time_limit is {time_limit_ns / 1e9:g} s; it must be above 0, at most"
            f" {limits.time_limit_max_ns // SECOND_NS} s"
        )
    return time_limit_ns


def _retry_delay_ns(message: types_pb2.TaskSpec, limits: Limits) -> int:
    if not message.HasField("retry_delay"):
        return limits.retry_delay_ns
    delay_ns = message.retry_delay.ToNanoseconds()
    if not 0 <= delay_ns <= limits.retry_delay_max_ns:
        raise InvalidRequest(
            f"retry_delay is {delay_ns / 1e9:g} s; it must be 0 to"
            f" {limits.retry_delay_max_ns // SECOND_NS} s"
        )
    return delay_ns


def _array(message: types_pb2.TaskSpec, limits: Limits) -> str:
    if not message.HasField("array"):
        return ""
    array_indexes(message.array.indexes, limits.array_elements_max)
    return message.array.indexes


def _after(
    message: types_pb2.TaskSpec, limits: Limits, keys: Mapping[str, int]
) -> tuple[Dependency, ...]:
    if len(message.after) > limits.dependencies_max:
        raise InvalidRequest(
            f"after names {len(message.after)} tasks; the bound is {limits.dependencies_max}"
        )
    found: dict[Dependency, None] = {}
    for wanted in message.after:
        kind = DEPENDENCY_KINDS.get(wanted.kind)
        if kind is None:
            raise InvalidRequest(f"after.kind {wanted.kind} is none that is known")
        if wanted.key and wanted.key not in keys:
            raise InvalidRequest(f"after '{wanted.key[:80]}' is the key of no task of this call")
        number = keys[wanted.key] if wanted.key else task_id(wanted.task_id)
        found[Dependency(number, kind)] = None
    return tuple(found)


def _memory(message: types_pb2.TaskSpec, limits: Limits) -> tuple[int, int | None]:
    """Return request and own limit: a limit below the default request lowers the request."""
    request, limit = message.memory_request_bytes, message.memory_limit_bytes
    for field, value in (("mem", request), ("mem-limit", limit)):
        if not 0 <= value <= limits.memory_request_max_bytes:
            asked, most = told_apart(value, limits.memory_request_max_bytes)
            raise InvalidRequest(f"{field} is {asked}; it must be 0 B to {most}")
    if request and limit and limit < request:
        least, most = told_apart(request, limit)
        raise InvalidRequest(
            f"mem-limit {most} is below mem {least}; a task could never use what is reserved for it"
        )
    if message.memory_exact and not request:
        raise InvalidRequest("mem-exact needs mem: what would be reserved exactly?")
    if not request:
        request = limits.memory_request_default_bytes
        request = min(request, limit) if limit else request
    return request, limit or None


def _check_environment(environment: dict[str, str], limits: Limits) -> None:
    size = sum(len(key.encode()) + len(value.encode()) + 2 for key, value in environment.items())
    _bytes_within("environment", size, limits.environment_bytes_max)
    for key, value in environment.items():
        if not key or "=" in key or "\0" in key or "\0" in value:
            raise InvalidRequest(f"environment variable '{key[:80]}' cannot be set")
        if key.startswith(ENVIRONMENT_RESERVED):
            raise InvalidRequest(
                f"environment variable '{key[:80]}' begins with {ENVIRONMENT_RESERVED}, which"
                " MASS keeps for itself"
            )


def _bytes_within(name: str, size: int, bound: int) -> None:
    if size > bound:
        has, most = told_apart(size, bound)
        raise InvalidRequest(f"{name} has {has}; the bound is {most}")


def task_id(text: str) -> int:
    """Return the number of a task id.

    Raises:
        InvalidRequest: it is no integer from 1.
    """
    number = _integer_from_1(text)
    if number is None:
        raise InvalidRequest(f"task id '{text[:40]}' is no integer from 1")
    return number


def reservation_id(text: str) -> int:
    """Return the number of a reservation's id.

    Raises:
        InvalidRequest: it is no integer from 1.
    """
    number = _integer_from_1(text)
    if number is None:
        raise InvalidRequest(f"reservation id '{text[:40]}' is no integer from 1")
    return number


def element(text: str) -> tuple[int, int] | None:
    """Return array and index of an id such as 12_3, None for any other text."""
    match = _ELEMENT.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None


def action(request: task_pb2.ControlTasksRequest, limits: Limits) -> TaskAction:
    """Return what is to be done to tasks.

    Raises:
        InvalidRequest: it is no action, or the priority is out of bounds.
    """
    found = TASK_ACTIONS.get(request.action)
    if found is None:
        raise InvalidRequest(f"action {request.action} is none that is known")
    if found is TaskAction.PRIORITY:
        _whole("priority", request.priority, -limits.priority_max, limits.priority_max)
    return found


def page_before(token: str) -> int | None:
    """Return the task id below which a page of tasks begins; None for the first page.

    Raises:
        InvalidRequest: the token is none that ListTasks gives.
    """
    number = _integer_from_1(token)
    if token and number is None:
        raise InvalidRequest(f"page_token '{token[:40]}' is none of this list's")
    return number


def _integer_from_1(text: str) -> int | None:
    # The length first: leading zeros could hide a number that no store holds.
    if len(text) > ID_DIGITS_MAX or not text.isascii() or not text.isdigit():
        return None
    number = int(text)
    return number if 1 <= number < 1 << 62 else None


def check_id_count(count: int, limits: Limits) -> None:
    """Raise InvalidRequest when a call names no task or too many."""
    if not 1 <= count <= limits.tasks_per_call_max:
        raise InvalidRequest(
            f"{count} task ids in one call; it takes 1 to {limits.tasks_per_call_max}"
        )


PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000


def page_size(asked: int) -> int:
    """Return the size of a page: 0 means 100, above 1,000 is clamped.

    Raises:
        InvalidRequest: it is negative.
    """
    if asked < 0:
        raise InvalidRequest(f"page_size is {asked}; it must be 0 or more")
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def since_ns(request: task_pb2.ListTasksRequest) -> int:
    """Return the instant from which tasks are listed; 0 for all of them.

    Instants that no store can hold are before or after everything.
    """
    # By hand: Timestamp.ToNanoseconds raises ValueError beyond the year 9999.
    instant_ns = request.since.seconds * SECOND_NS + request.since.nanos
    return min(max(0, instant_ns), INSTANT_MAX_NS)


def states(values: list[int]) -> frozenset[TaskState]:
    """Return the task states of their wire numbers.

    Raises:
        InvalidRequest: a number is no state.
    """
    known = set()
    for value in values:
        try:
            name = types_pb2.TaskState.Name(value)
            known.add(TaskState[name.removeprefix("TASK_STATE_")])
        except (KeyError, ValueError):
            raise InvalidRequest(f"states has {value}, which is no task state") from None
    return frozenset(known)
