"""Values for tests, each in one line; what a test does not name is plain."""

from __future__ import annotations

from controller.core.expression_text import duration_ns
from controller.core.expressions import parse
from controller.core.metrics import METRIC_NAMES, WINDOWLESS_NAMES
from controller.core.model import Dependency, Preference, Task, TaskSpec, TaskState
from controller.core.rules import Rule

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "B": 1}


def size(text: str | int) -> int:
    """Return "1.5GiB" in bytes; a number is bytes already."""
    if isinstance(text, int):
        return text
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * factor)
    return int(text)


def span(text: str | int) -> int:
    """Return "5s" in nanoseconds; a number is nanoseconds already."""
    if isinstance(text, int):
        return text
    found = duration_ns(text)
    assert found is not None, text
    return found


def spec(
    mem: str | int = "1GiB",
    *,
    limit: str | int | None = None,
    cpus: float = 1.0,
    priority: int = 0,
    retries: int = 0,
    requeue: bool = True,
    time_limit: str | None = None,
    name: str = "work",
    retry_delay: str | int = 0,
    after: tuple[Dependency, ...] = (),
    hold: bool = False,
    array: str = "",
    at_once: int = 0,
    constraint: str = "",
    gpus: int = 0,
    pack: bool = False,
    exact: bool = False,
    category: str = "",
    input_size: str | int | None = None,
) -> TaskSpec:
    """Return what a user asks for; `mem="auto"` declares nothing."""
    declared = mem != "auto"
    if not declared:
        mem = "1GiB"
    return TaskSpec(
        command=(name,),
        name=name,
        category=category or name,
        memory_request_bytes=size(mem),
        memory_limit_bytes=None if limit is None else size(limit),
        cpus=cpus,
        priority=priority,
        retries=retries,
        requeue=requeue,
        time_limit_ns=None if time_limit is None else span(time_limit),
        retry_delay_ns=span(retry_delay),
        after=after,
        hold=hold,
        array=array,
        array_running_max=at_once,
        constraint=constraint,
        gpus=gpus,
        preference=Preference.PACK if pack else Preference.SPREAD,
        memory_declared=declared,
        memory_exact=exact,
        input_bytes=None if input_size is None else size(input_size),
    )


def task(task_id: int, mem: str | int = "1GiB", *, cpus: float = 1.0, priority: int = 0) -> Task:
    """Return a waiting task."""
    wanted = spec(mem, cpus=cpus, priority=priority)
    return Task(task_id, wanted, "ada", TaskState.PENDING, submitted_at_ns=1)


def rule(
    name: str, expression: str, *, hold: str = "0s", keep: str = "0s", block: bool = False
) -> Rule:
    """Return a rule of the group `test`."""
    return Rule(
        name=name,
        group="test",
        expression=parse(expression, METRIC_NAMES, WINDOWLESS_NAMES),
        hold_ns=0 if hold == "0s" else span(hold),
        keep_firing_ns=0 if keep == "0s" else span(keep),
        annotations={"summary": "{{ $labels.node }} at {{ $value }}"},
        blocks_placement=block,
    )
