"""The commands `mass task ...`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from mass.units import size_words

from controller.cli.output import OutputFormat, print_fields, print_json, print_table
from controller.cli.session import (
    CONTROLLER_DEFAULT,
    ControllerOption,
    InsecureOption,
    OutputOption,
    Session,
    new_group,
    open_session,
)
from controller.cli.units import (
    format_duration,
    format_instant,
    parse_duration,
    parse_size,
)
from controller.core.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from mass.v1.types_pb2 import Task, TaskState

app = new_group("Look at tasks, wait for them, read their output, cancel them, ask why.")

ALL = 2**31 - 1


class TaskOrder(StrEnum):
    """What a list of tasks is sorted by."""

    ID = "id"
    MEMORY = "memory"
    RUNTIME = "runtime"
    STATE = "state"
    NAME = "name"


IdsArgument = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Task ids: 12, 1-5,7 or last.")
]
SomeIdsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID...]", help="Task ids: 12, 1-5,7 or last; or --name, --state."),
]
ByNameOption = Annotated[
    str, typer.Option("-n", "--name", metavar="NAME", help="Those with this name.")
]
ByStateOption = Annotated[
    list[str] | None,
    typer.Option("--state", metavar="STATE", help="Those in this state; repeatable."),
]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="Only submitted in the last: 2h.")
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="A task id, or last.")]


@app.command("list")
def list_tasks(
    state: Annotated[
        list[str] | None,
        typer.Option("--state", metavar="STATE", help="Only this state; repeatable."),
    ] = None,
    name: Annotated[
        str, typer.Option("-n", "--name", metavar="NAME", help="Only with this name.")
    ] = "",
    user: Annotated[str, typer.Option("--user", metavar="USER", help="Only of this user.")] = "",
    array: Annotated[str, typer.Option("--array", metavar="ID", help="Only its elements.")] = "",
    since: SinceOption = None,
    sort: Annotated[
        TaskOrder, typer.Option("--sort", help="In which order; the highest first.")
    ] = TaskOrder.STATE,
    count: Annotated[
        int, typer.Option("--limit", metavar="N", min=0, help="How many; 0 means all.")
    ] = 100,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List tasks: running ones first, then starting, waiting and ended ones.

    The limit lets those through that come first in this order, with --sort id the newest; other
    orders sort those.
    """
    with open_session(controller, insecure, output) as session:
        from controller.cli.records import task_record, task_states_of
        from controller.cli.task_order import gather

        count_max, states = count or ALL, task_states_of(state or [])
        wanted: dict[str, Any] = {
            "name": name,
            "user": user,
            "array_id": array,
            "since_ns": _since_ns(since),
        }
        if sort is TaskOrder.ID:
            tasks, more = session.client.tasks(count_max, states, **wanted)
        else:
            tasks, more = gather(session.client, count_max, states, **wanted)
            tasks = _sorted(tasks[:count_max], sort)
        if session.json:
            print_json([task_record(task) for task in tasks])
        else:
            print_table(TASK_COLUMNS, [task_row(task) for task in tasks])
        if more:
            which = "the newest" if sort is TaskOrder.ID else "the first"
            session.note(f"only {which} {len(tasks)}; see more with --limit")


@app.command("show")
def show_tasks(
    ids: IdsArgument,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show all about tasks; with several ids JSON is an array."""
    with open_session(controller, insecure, output) as session:
        tasks = [session.client.task(task_id) for task_id in select(session, ids)]
        if session.json:
            _print_records(tasks)
            return
        for index, task in enumerate(tasks):
            if index:
                print()
            print_fields(_task_fields(task))


@app.command("wait")
def wait_for_tasks(
    ids: SomeIdsArgument = None,
    name: ByNameOption = "",
    state: ByStateOption = None,
    since: SinceOption = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing.")] = False,
    progress: Annotated[
        bool | None,
        typer.Option("--progress/--no-progress", help="How far it is. [on a terminal]"),
    ] = None,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Wait until tasks have ended; end with the code of the first that failed.

    By name those count as well that have ended before, as if they had been waited for.
    """
    with open_session(controller, insecure, output) as session:
        from controller.cli.follow import wait_for_end

        found = select_some(session, ids, name, state, since, with_ended=True)
        tasks, code = wait_for_end(session, found, quiet, progress)
        if session.json:
            _print_records(tasks)
        raise typer.Exit(code)


@app.command("cancel")
def cancel_tasks(
    ids: SomeIdsArgument = None,
    name: ByNameOption = "",
    state: ByStateOption = None,
    grace: Annotated[
        str | None, typer.Option("--grace", metavar="TIME", help="From SIGTERM to SIGKILL. [10s]")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing.")] = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """End tasks; those that have ended are left as they are."""
    with open_session(controller, insecure, output) as session:
        from controller.cli.follow import end_line

        grace_ns = None if grace is None else parse_duration(grace, "grace")
        tasks = session.client.cancel(select_some(session, ids, name, state), grace_ns)
        if session.json:
            _print_records(tasks)
        elif not quiet:
            for task in tasks:
                print(end_line(task))


@app.command("logs")
def show_logs(
    task_id: IdArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it ends.")] = False,
    only_stdout: Annotated[bool, typer.Option("--stdout", help="Only standard output.")] = False,
    only_stderr: Annotated[
        bool, typer.Option("--stderr", help="Only standard error, on stdout.")
    ] = False,
    attempt: Annotated[
        int, typer.Option("--attempt", metavar="N", min=0, help="Which attempt. [latest]")
    ] = 0,
    tail: Annotated[
        str | None, typer.Option("--tail", metavar="SIZE", help="Only the last part: 64KiB.")
    ] = None,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Print a task's output: its stdout to stdout, its stderr to stderr."""
    with open_session(controller, insecure, output) as session:
        from controller.cli.logs import LogChoice, print_logs

        choice = LogChoice(
            task_id=_select_one(session, task_id),
            follow=follow,
            attempt=attempt,
            tail_bytes=0 if tail is None else parse_size(tail, "tail"),
            stdout=only_stdout or not only_stderr,
            stderr=only_stderr or not only_stdout,
        )
        print_logs(session, choice)


@app.command("why")
def explain_task(
    task_id: IdArgument,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Say why a task is where it is, with the numbers that were used."""
    with open_session(controller, insecure, output) as session:
        from controller.cli.output import printable
        from controller.cli.records import refusal_record, task_record

        answer = session.client.explain(_select_one(session, task_id))
        if session.json:
            print_json(
                {
                    "task": task_record(answer.task),
                    "sentences": list(answer.sentences),
                    "refusals": [refusal_record(refusal) for refusal in answer.refusals],
                }
            )
            return
        for sentence in answer.sentences:
            print(printable(sentence))
        if answer.refusals:
            print()
            rows = [
                [
                    refusal.node_id,
                    refusal.reason_code,
                    size_words(refusal.requested_bytes),
                    size_words(refusal.promise_bytes),
                    size_words(refusal.reserved_bytes),
                    size_words(refusal.foreign_used_bytes),
                    refusal.reason,
                ]
                for refusal in answer.refusals
            ]
            print_table(REFUSAL_COLUMNS, rows)


def _sorted(tasks: list[Task], order: TaskOrder) -> list[Task]:
    from controller.cli.records import runtime_seconds

    match order:
        case TaskOrder.MEMORY:
            return sorted(tasks, key=lambda t: -max(t.memory_used_bytes, t.memory_peak_bytes))
        case TaskOrder.RUNTIME:
            return sorted(tasks, key=lambda task: -(runtime_seconds(task) or 0.0))
        case TaskOrder.NAME:
            return sorted(tasks, key=lambda task: task.spec.name)
    return tasks


TASK_COLUMNS = ("ID", "NAME", "STATE", "NODE", "USED/PEAK", "REQUEST", "RUNTIME", "REASON")
REFUSAL_COLUMNS = ("NODE", "WHY", "ASKED", "PROMISE", "RESERVED", "FOREIGN", "REASON")


def task_row(task: Task) -> list[str]:
    """Return a task's cells for TASK_COLUMNS."""
    from controller.cli.records import runtime_seconds, task_label, task_state

    runtime = runtime_seconds(task)
    # Nothing is used after the end, and the peak is told with the end.
    used = size_words(task.memory_used_bytes) if task.memory_used_bytes else "-"
    peak = size_words(task.memory_peak_bytes) if task.memory_peak_bytes else "-"
    memory = "-" if used == peak == "-" else f"{used}/{peak}"
    return [
        task_label(task),
        task.spec.name,
        task_state(task),
        task.node_id or "-",
        memory,
        "auto" if task.memory_auto else size_words(task.spec.memory_request_bytes),
        "-" if runtime is None else format_duration(runtime),
        task.reason,
    ]


def _task_fields(task: Task) -> list[tuple[str, str]]:
    """Return all about a task as people read it: its record, with sizes and durations in words."""
    from controller.cli.records import runtime_seconds, task_record

    fields = []
    for key, value in task_record(task).items():
        name = key.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")
        fields.append((name, _field_text(key, value)))
    runtime = runtime_seconds(task)
    fields.append(("runtime", "-" if runtime is None else format_duration(runtime)))
    return fields


def _field_text(key: str, value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case str() if key.endswith(("_at", "_before")):
            return format_instant(value)
        case int() if key.endswith("_bytes"):
            return size_words(value)
        case float() if key.endswith("_seconds"):
            return format_duration(value)
        case list():
            import shlex

            return shlex.join(map(str, value)) or "-"
        case dict():
            return " ".join(f"{name}={text}" for name, text in value.items()) or "-"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _print_records(tasks: list[Task]) -> None:
    from controller.cli.records import task_record

    print_json([task_record(task) for task in tasks])


def select_some(
    session: Session,
    ids: list[str] | None,
    name: str,
    states: list[str] | None,
    since: str | None = None,
    with_ended: bool = False,
) -> list[str]:
    """Return the ids that selectors name, or else those of the tasks found by name and state.

    By name alone only tasks that have not ended are meant, unless `with_ended`.

    Raises:
        InvalidRequest: both or neither of the ways are used, or more than one call takes are found.
        NotFound: there is no such task.
    """
    if bool(ids) == bool(name or states):
        raise InvalidRequest("name tasks by their ids, or by --name and --state")
    if ids:
        if since is not None:
            raise InvalidRequest("--since goes with --name and --state, not with ids")
        return select(session, ids)
    from controller.cli.records import task_states_of
    from controller.cli.selectors import TASKS_MAX
    from controller.cli.task_order import OPEN_STATES

    wanted: Sequence[TaskState | str] = task_states_of(states or [])
    if not wanted and not with_ended:
        # Asked for, not picked afterwards: the bound is no matter of how many have ended.
        wanted = OPEN_STATES
    tasks, more = session.client.tasks(TASKS_MAX, wanted, name=name, since_ns=_since_ns(since))
    if more:
        raise InvalidRequest(f"more than {TASKS_MAX:,} tasks are found; name fewer")
    if not tasks:
        which = "no task" if since is None else f"no task of the last {since}"
        which += " that has not ended" if wanted is OPEN_STATES else ""
        has = [f"the name '{name}'"] if name else []
        has += [f"the state {' or '.join(map(str.upper, states))}"] if states else []
        raise NotFound(f"{which} has {' and '.join(has)}")
    return [task.id for task in reversed(tasks)]  # the newest came first


def select(session: Session, texts: list[str]) -> list[str]:
    """Return the ids that selectors name."""
    from controller.cli.selectors import select_tasks

    return select_tasks(texts, lambda: _newest(session))


def _select_one(session: Session, text: str) -> str:
    ids = select(session, [text])
    if len(ids) != 1:
        raise InvalidRequest(f"'{text}' names {len(ids)} tasks; this command takes one")
    return ids[0]


def _since_ns(since: str | None) -> int:
    return 0 if since is None else time.time_ns() - parse_duration(since, "since")


def _newest(session: Session) -> str:
    tasks, _ = session.client.tasks(1)
    if not tasks:
        raise NotFound("there is no last task: none was submitted yet")
    return tasks[0].id
