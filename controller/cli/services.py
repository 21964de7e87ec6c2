"""The commands that run something: `mass controller`, `mass dev` and `mass demo`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from controller.cli.address import DEFAULT_ADDRESS, DEFAULT_HTTP_ADDRESS
from controller.cli.config import ConfigOption
from controller.cli.session import open_session

DATA_DEFAULT = Path("mass-data")

ListenOption = Annotated[
    str | None,
    typer.Option(
        "--listen",
        metavar="HOST:PORT",
        help=f"Where agents and clients come. [{DEFAULT_ADDRESS}]",
    ),
]
HttpOption = Annotated[
    str | None,
    typer.Option(
        "--http",
        metavar="HOST:PORT",
        help=f"Where /health answers. [{DEFAULT_HTTP_ADDRESS}]",
    ),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help=f"Where the store is. [{DATA_DEFAULT}]")
]
RulesOption = Annotated[
    list[Path] | None,
    typer.Option("--rules", metavar="FILE", help="A rules file; repeatable. [built-in rules]"),
]
WebhookOption = Annotated[
    str | None, typer.Option("--webhook", metavar="URL", help="Where alerts are sent.")
]
NodesMaxOption = Annotated[
    int | None,
    typer.Option("--nodes-max", metavar="N", help="How many nodes the pool is sized for. [1000]"),
]
TasksRunningMaxOption = Annotated[
    int | None,
    typer.Option("--tasks-running-max", metavar="N", help="The same for running tasks. [1000]"),
]
PoolOption = Annotated[
    str | None, typer.Option("--pool", metavar="SIZE", help="The pool. [derived from the bounds]")
]
InsecureListenOption = Annotated[
    bool | None, typer.Option("--insecure", help="Listen beyond this machine without TLS.")
]
HistoryAgeOption = Annotated[
    str | None,
    typer.Option("--history-age", metavar="TIME", help="How long ended tasks are kept. [30d]"),
]
HistoryTasksMaxOption = Annotated[
    int | None,
    typer.Option(
        "--history-tasks-max", metavar="N", help="How many ended tasks are kept. [1000000]"
    ),
]
SampleIntervalOption = Annotated[
    str | None,
    typer.Option("--sample-interval", metavar="TIME", help="How often agents sample. [1s]"),
]
UserTasksMaxOption = Annotated[
    int | None,
    typer.Option("--user-tasks-max", help="Tasks one user may have placed at once. [no bound]"),
]
FairShareOption = Annotated[
    bool | None,
    typer.Option(
        "--fair-share/--no-fair-share", help="Who takes less memory goes first. [fair share]"
    ),
]

MemoryLimitsOption = Annotated[
    str | None,
    typer.Option(
        "--memory-limits", metavar="strict|elastic", help="Whether tasks may outgrow their size."
    ),
]
OvercommitShareOption = Annotated[
    str | None,
    typer.Option(
        "--overcommit-share", metavar="0..1", help="Of expected growth, promised twice. [0.35]"
    ),
]
AheadPerCpuOption = Annotated[
    int | None,
    typer.Option(
        "--ahead-per-cpu", metavar="N", help="Brief tasks sent ahead to a busy node. [12]"
    ),
]


def controller(
    config: ConfigOption = None,
    listen: ListenOption = None,
    http: HttpOption = None,
    data: DataOption = None,
    rules: RulesOption = None,
    webhook: WebhookOption = None,
    nodes_max: NodesMaxOption = None,
    tasks_running_max: TasksRunningMaxOption = None,
    pool: PoolOption = None,
    insecure: InsecureListenOption = None,
    history_age: HistoryAgeOption = None,
    history_tasks_max: HistoryTasksMaxOption = None,
    sample_interval: SampleIntervalOption = None,
    user_tasks_max: UserTasksMaxOption = None,
    fair_share: FairShareOption = None,
    memory_limits: MemoryLimitsOption = None,
    overcommit_share: OvercommitShareOption = None,
    ahead_per_cpu: AheadPerCpuOption = None,
) -> None:
    """Run the controller. Each flag can also be a variable (MASS_LISTEN) or a key of the file."""
    flags = {
        "listen": listen,
        "http": http,
        "data": data,
        "rules": rules or None,
        "webhook": webhook,
        "nodes_max": nodes_max,
        "tasks_running_max": tasks_running_max,
        "pool": pool,
        "insecure": insecure,
        "history_age": history_age,
        "history_tasks_max": history_tasks_max,
        "sample_interval": sample_interval,
        "user_tasks_max": user_tasks_max,
        "fair_share": fair_share,
        "memory_limits": memory_limits,
        "overcommit_share": overcommit_share,
        "ahead_per_cpu": ahead_per_cpu,
    }
    with open_session():
        from controller.config import load_config
        from controller.main import run

        raise typer.Exit(run(lambda: load_config(flags, os.environ, config)))


def dev(
    listen: ListenOption = None,
    http: HttpOption = None,
    data: DataOption = None,
    rules: RulesOption = None,
    webhook: WebhookOption = None,
    nodes_max: NodesMaxOption = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The node. [this host]")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="What the node may promise.")
    ] = None,
    cpus: Annotated[float | None, typer.Option("--cpus", metavar="N", help="Its cores.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a picture.")] = False,
) -> None:
    """Run a controller and an agent on this machine and show what they do; Ctrl-C ends both."""
    with open_session() as session:
        from controller.cli.dev import DevSettings, run_dev

        listen, http = listen or DEFAULT_ADDRESS, http or DEFAULT_HTTP_ADDRESS
        data = data or DATA_DEFAULT
        # What is configured for a service of this machine is not meant for a trial.
        flags = ["--config", os.devnull]
        flags += ["--listen", listen, "--http", http, "--data", str(data)]
        flags += [] if nodes_max is None else ["--nodes-max", str(nodes_max)]
        for path in rules or ():
            flags += ["--rules", str(path)]
        if webhook is not None:
            flags += ["--webhook", webhook]
        agent_flags = [] if memory is None else ["--memory", memory]
        agent_flags += [] if cpus is None else ["--cpus", f"{cpus:g}"]
        run_dev(
            DevSettings(
                listen=listen,
                http=http,
                data=data,
                controller_flags=tuple(flags),
                node_name=name,
                agent_flags=tuple(agent_flags),
                plain=plain,
            ),
            session.note,
        )


def demo() -> None:
    """Show what MASS does: a small workload on this machine, told as it happens, in a minute."""
    with open_session() as session:
        from controller.cli.demo import run_demo

        as_told = run_demo(lambda line: print(line, flush=True), session.note)
        raise typer.Exit(0 if as_told else 1)
