"""The commands `mass submit` and `mass run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli.exits import task_exit_code
from controller.cli.output import OutputFormat, print_json
from controller.cli.plan import print_plans
from controller.cli.session import (
    CONTROLLER_DEFAULT,
    ControllerOption,
    InsecureOption,
    OutputOption,
    Session,
    open_session,
    user_name,
)
from controller.core.errors import InvalidRequest

if TYPE_CHECKING:
    from mass.v1.types_pb2 import TaskSpec

    from controller.cli.spec import Value

# Options end at `--` or at the first word that is none: the command's own flags stay untouched.
COMMAND_SETTINGS = {"allow_interspersed_args": False}

CommandArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[--] COMMAND...", help="The program and arguments.")
]
MemOption = Annotated[
    str | None,
    typer.Option("--mem", metavar="SIZE|auto", help="Memory it needs: 2GiB (G = GiB). [auto]"),
]
MemExactOption = Annotated[
    bool, typer.Option("--mem-exact", help="Set exactly --mem aside, whatever was learned.")
]
InputOption = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="PATH", help="What it reads; its size tells; repeatable."),
]
InputSizeOption = Annotated[
    str | None, typer.Option("--input-size", metavar="SIZE", help="The size of what it reads.")
]
OomGroupOption = Annotated[
    bool, typer.Option("--oom-group", help="At the hard limit end all its processes.")
]
MemLimitOption = Annotated[
    str | None, typer.Option("--mem-limit", metavar="SIZE", help="Hard limit, never raised.")
]
CpusOption = Annotated[
    float | None, typer.Option("-c", "--cpus", metavar="N", help="Cores it occupies. [1]")
]
NameOption = Annotated[
    str | None,
    typer.Option("-n", "--name", metavar="NAME", help="What people call it. [the command's name]"),
]
CategoryOption = Annotated[
    str | None, typer.Option("--category", metavar="NAME", help="Tasks that need alike. [the name]")
]
PriorityOption = Annotated[
    int | None, typer.Option("--priority", metavar="N", help="Higher goes first. [0]")
]
TimeOption = Annotated[
    str | None,
    typer.Option("-t", "--time", metavar="TIME", help="Longest run: 90s, 10m, 1h30m, D-HH:MM:SS."),
]
RetriesOption = Annotated[
    int | None, typer.Option("--retries", metavar="N", help="Repeat it so often when it fails. [0]")
]
NoRequeueOption = Annotated[
    bool, typer.Option("--no-requeue", help="Never run it again when its node is lost.")
]
EnvOption = Annotated[
    list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="A variable; repeatable.")
]
CwdOption = Annotated[
    str | None, typer.Option("--cwd", metavar="DIR", help="Directory on the node. [its own]")
]

ArrayOption = Annotated[
    str | None,
    typer.Option("--array", metavar="INDEXES[%N]", help="Many tasks: 1-1000%20, 20 at once."),
]
AfterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--after", metavar="ID[:ok|any|fail]", help="Wait for a task: 12, last; repeatable."
    ),
]
ConstraintOption = Annotated[
    str | None,
    typer.Option("--constraint", metavar="TEXT", help="On nodes like: disk=ssd and cpus>=8."),
]
SpreadOption = Annotated[bool, typer.Option("--spread", help="Where most memory is left.")]
PackOption = Annotated[bool, typer.Option("--pack", help="Where least memory is left.")]
GpusOption = Annotated[int | None, typer.Option("--gpus", help="GPUs it occupies. [0]")]
HoldOption = Annotated[bool, typer.Option("--hold", help="Keep it HELD until it is released.")]
StdoutOption = Annotated[
    str | None, typer.Option("--stdout", metavar="FILE", help="On the node; %j id, %a index.")
]
StderrOption = Annotated[
    str | None, typer.Option("--stderr", metavar="FILE", help="The same for standard error.")
]
RetryDelayOption = Annotated[
    str | None, typer.Option("--retry-delay", metavar="TIME", help="Doubles each time. [1s]")
]


def submit(
    command: CommandArgument = None,
    mem: MemOption = None,
    mem_limit: MemLimitOption = None,
    mem_exact: MemExactOption = False,
    input_files: InputOption = None,
    input_size: InputSizeOption = None,
    oom_group: OomGroupOption = False,
    cpus: CpusOption = None,
    name: NameOption = None,
    category: CategoryOption = None,
    priority: PriorityOption = None,
    time_limit: TimeOption = None,
    retries: RetriesOption = None,
    no_requeue: NoRequeueOption = False,
    env: EnvOption = None,
    cwd: CwdOption = None,
    array: ArrayOption = None,
    after: AfterOption = None,
    constraint: ConstraintOption = None,
    spread: SpreadOption = False,
    pack: PackOption = False,
    gpus: GpusOption = None,
    hold: HoldOption = False,
    stdout: StdoutOption = None,
    stderr: StderrOption = None,
    retry_delay: RetryDelayOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say where it would go, and why not elsewhere.")
    ] = False,
    from_file: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE|-", help="Many tasks, one JSON object a line."),
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only the id.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait; end with the task's code.")] = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Submit a task, or many with --from, and print its id."""
    values = _given(locals())
    with open_session(controller, insecure, output) as session:
        if from_file is None:
            specs = [_spec(session, values)]
        elif values:
            raise InvalidRequest(
                f"--from takes everything from the file; leave out {', '.join(values)}"
            )
        else:
            from controller.cli.submitfile import read_specs

            specs = read_specs(from_file, _newest(session))
        if dry_run:
            print_plans(session, specs)
            return
        ids = session.client.submit(specs, user_name())
        _report_submitted(session, ids, many=from_file is not None, quiet=quiet, wait=wait)


def run(
    command: CommandArgument = None,
    mem: MemOption = None,
    mem_limit: MemLimitOption = None,
    mem_exact: MemExactOption = False,
    input_files: InputOption = None,
    input_size: InputSizeOption = None,
    oom_group: OomGroupOption = False,
    cpus: CpusOption = None,
    name: NameOption = None,
    category: CategoryOption = None,
    priority: PriorityOption = None,
    time_limit: TimeOption = None,
    retries: RetriesOption = None,
    no_requeue: NoRequeueOption = False,
    env: EnvOption = None,
    cwd: CwdOption = None,
    after: AfterOption = None,
    constraint: ConstraintOption = None,
    spread: SpreadOption = False,
    pack: PackOption = False,
    gpus: GpusOption = None,
    retry_delay: RetryDelayOption = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No remarks on stderr.")] = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Submit a task, show its output, and end with its exit code. Ctrl-C cancels it."""
    values = _given(locals())
    with open_session(controller, insecure, output) as session:
        spec = _spec(session, values)
        from controller.cli.follow import Canceller, end_line, run_to_end

        canceller = Canceller(session)
        with canceller.listening():
            (task_id,) = session.client.submit([spec], user_name())
            canceller.follow(task_id)
            if not quiet:
                session.note(f"task {task_id}")
            task = run_to_end(session, task_id)
        code = task_exit_code(task)
        if session.json:
            from controller.cli.records import task_record

            print_json(task_record(task))
        elif code != 0 and not quiet:
            session.note(end_line(task))
        raise typer.Exit(code)


# The flags that say what a task is, by the names that a file uses for them.
TASK_FLAGS = (
    "command", "mem", "mem-limit", "mem-exact", "input", "input-size", "oom-group", "cpus",
    "name", "category", "priority", "time", "retries",
    "no-requeue", "env", "cwd", "array", "after", "constraint", "spread", "pack", "gpus", "hold",
    "stdout", "stderr", "retry-delay",
)  # fmt: skip
# Where a parameter cannot be called as its flag is.
PARAMETERS = {"time": "time_limit", "input": "input_files"}


def _given(parameters: Mapping[str, Value]) -> dict[str, Value]:
    """Return the flags of the task that were given, out of a command's parameters."""
    found = {
        flag: parameters.get(PARAMETERS.get(flag, flag.replace("-", "_"))) for flag in TASK_FLAGS
    }
    # Tested by identity: 0 equals False, and a 0 that was given is to be checked.
    return {
        name: value
        for name, value in found.items()
        if value is not None and value is not False and value != []
    }


def _spec(session: Session, values: dict[str, Value]) -> TaskSpec:
    if "command" not in values:
        raise InvalidRequest("no command; write it after the flags: mass submit -- COMMAND...")
    from controller.cli.spec import settle_after, spec_of

    spec = spec_of(values)
    settle_after(spec, _newest(session))
    return spec


def _newest(session: Session) -> Callable[[], str]:
    """Return what asks for the newest task, once."""
    from controller.cli.selectors import LAST
    from controller.cli.tasks import select

    return cache(lambda: select(session, [LAST])[0])


def _report_submitted(
    session: Session, ids: list[str], *, many: bool, quiet: bool, wait: bool
) -> None:
    # From a file only the ids: they are there for a program to read.
    if not session.json:
        for task_id in ids:
            print(task_id if quiet or many else f"task {task_id}", flush=True)
    elif not wait:
        print_json(ids if many else {"id": ids[0]})
    if not wait:
        return
    from controller.cli.follow import wait_for_end
    from controller.cli.records import task_record

    tasks, code = wait_for_end(session, ids, quiet=quiet or many)
    if session.json:
        records = [task_record(task) for task in tasks]
        print_json(records if many or len(records) != 1 else records[0])
    raise typer.Exit(code)
