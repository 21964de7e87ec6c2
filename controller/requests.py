"""What users ask for: API requests to checked core values. The only place that validates them."""

from __future__ import annotations

from mass.v1 import task_pb2, types_pb2

from controller.core.errors import InvalidRequest
from controller.core.limits import SECOND_NS, Limits
from controller.core.model import TaskSpec, TaskState

ENVIRONMENT_RESERVED = "MASS_"
NAME_DEFAULT_LENGTH_MAX = 60
ID_DIGITS_MAX = 19


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
    specs = []
    for index, message in enumerate(request.tasks):
        try:
            specs.append(spec(message, limits))
        except InvalidRequest as error:
            where = f"task {index + 1} of {count}: " if count > 1 else ""
            raise InvalidRequest(f"{where}{error.message}") from None
    return request.request_id, request.user, tuple(specs)


def spec(message: types_pb2.TaskSpec, limits: Limits) -> TaskSpec:
    """Return one checked spec with the defaults filled in.

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
    name = message.name or command[0].rsplit("/", 1)[-1][:NAME_DEFAULT_LENGTH_MAX]
    category = message.category or name
    for field, value in (("name", name), ("category", category)):
        if len(value) > limits.name_length_max or not value.isprintable():
            raise InvalidRequest(
                f"{field} '{value[:80]}' must be at most {limits.name_length_max} printable"
                " characters"
            )
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
    time_limit_ns = None
    if message.HasField("time_limit"):
        time_limit_ns = message.time_limit.ToNanoseconds()
        if not 0 < time_limit_ns <= limits.time_limit_max_ns:
            raise InvalidRequest(
                f"time_limit is {time_limit_ns / 1e9:g} s; it must be above 0, at most"
                f" {limits.time_limit_max_ns // SECOND_NS} s"
            )
    return TaskSpec(
        command=command,
        name=name,
        category=category,
        memory_request_bytes=request,
        memory_limit_bytes=limit,
        cpus=cpus,
        priority=message.priority,
        time_limit_ns=time_limit_ns,
        retries=message.retries,
        requeue=not message.no_requeue,
        environment=environment,
        working_directory=directory,
    )


def _memory(message: types_pb2.TaskSpec, limits: Limits) -> tuple[int, int | None]:
    """Return request and own limit: a limit below the default request lowers the request."""
    request, limit = message.memory_request_bytes, message.memory_limit_bytes
    for field, value in (("mem", request), ("mem-limit", limit)):
        if not 0 <= value <= limits.memory_request_max_bytes:
            raise InvalidRequest(
                f"{field} is {value} bytes; it must be 0 to {limits.memory_request_max_bytes}"
            )
    if request and limit and limit < request:
        raise InvalidRequest(
            f"mem-limit {limit} bytes is below mem {request} bytes; a task could never use what"
            " is reserved for it"
        )
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
        raise InvalidRequest(f"{name} has {size} bytes; the bound is {bound}")


def task_id(text: str) -> int:
    """Return the number of a task id.

    Raises:
        InvalidRequest: it is no integer from 1.
    """
    number = _integer_from_1(text)
    if number is None:
        raise InvalidRequest(f"task id '{text[:40]}' is no integer from 1")
    return number


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


def task_ids(texts: list[str], limits: Limits) -> list[int]:
    """Return the numbers of task ids, each once, in their order.

    Raises:
        InvalidRequest: there are none or too many, or one is no integer from 1.
    """
    if not 1 <= len(texts) <= limits.tasks_per_call_max:
        raise InvalidRequest(
            f"{len(texts)} task ids in one call; it takes 1 to {limits.tasks_per_call_max}"
        )
    return list(dict.fromkeys(task_id(text) for text in texts))


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
