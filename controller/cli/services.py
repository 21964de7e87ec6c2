"""The commands that are no client's: `mass controller`, `mass dev` and `mass db ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.cli.address import DEFAULT_ADDRESS, DEFAULT_HTTP_ADDRESS
from controller.cli.output import OutputFormat, print_json
from controller.cli.session import OutputOption, new_group, open_session
from controller.cli.units import parse_size

db_app = new_group("Look after the controller's store.")

DATA_DEFAULT = Path("mass-data")

ListenOption = Annotated[
    str, typer.Option("--listen", metavar="HOST:PORT", help="Where agents and clients come.")
]
HttpOption = Annotated[
    str, typer.Option("--http", metavar="HOST:PORT", help="Where page, metrics and health are.")
]
DataOption = Annotated[Path, typer.Option("--data", metavar="DIR", help="Where the store is.")]
RulesOption = Annotated[
    list[Path] | None,
    typer.Option("--rules", metavar="FILE", help="A rules file; repeatable. [built-in rules]"),
]
WebhookOption = Annotated[
    str | None, typer.Option("--webhook", metavar="URL", help="Where alerts are sent.")
]
NodesMaxOption = Annotated[
    int, typer.Option("--nodes-max", min=1, help="How many nodes the pool is sized for.")
]
TasksRunningMaxOption = Annotated[
    int, typer.Option("--tasks-running-max", min=1, help="The same for running tasks.")
]
PoolOption = Annotated[
    str | None, typer.Option("--pool", metavar="SIZE", help="The pool. [derived from the bounds]")
]
InsecureListenOption = Annotated[
    bool, typer.Option("--insecure", help="Listen beyond this machine without TLS.")
]


def controller(
    listen: ListenOption = DEFAULT_ADDRESS,
    http: HttpOption = DEFAULT_HTTP_ADDRESS,
    data: DataOption = DATA_DEFAULT,
    rules: RulesOption = None,
    webhook: WebhookOption = None,
    nodes_max: NodesMaxOption = 1_000,
    tasks_running_max: TasksRunningMaxOption = 1_000,
    pool: PoolOption = None,
    insecure: InsecureListenOption = False,
) -> None:
    """Run the controller."""
    with open_session():
        from controller.config import Settings
        from controller.main import run

        settings = Settings(
            listen=listen,
            http=http,
            data=data,
            rules=tuple(rules or ()),
            webhook=webhook,
            nodes_max=nodes_max,
            tasks_running_max=tasks_running_max,
            pool_bytes=0 if pool is None else parse_size(pool, "pool"),
            insecure=insecure,
        )
        raise typer.Exit(run(settings))


def dev(
    listen: ListenOption = DEFAULT_ADDRESS,
    http: HttpOption = DEFAULT_HTTP_ADDRESS,
    data: DataOption = DATA_DEFAULT,
    rules: RulesOption = None,
    webhook: WebhookOption = None,
    nodes_max: NodesMaxOption = 1_000,
    name: Annotated[str | None, typer.Option("--name", help="The node. [this host]")] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="What the node may promise.")
    ] = None,
    cpus: Annotated[float | None, typer.Option("--cpus", help="Its cores.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a picture.")] = False,
) -> None:
    """Run a controller and an agent on this machine and show what they do; Ctrl-C ends both."""
    with open_session() as session:
        from controller.cli.dev import DevSettings, run_dev

        flags = ["--listen", listen, "--http", http, "--data", str(data)]
        flags += ["--nodes-max", str(nodes_max)]
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


@db_app.command("upgrade")
def upgrade_store(
    data: DataOption = DATA_DEFAULT, output: OutputOption = OutputFormat.TABLE
) -> None:
    """Bring the store in a data directory to this version; a copy is kept beside it."""
    with open_session(output=output) as session:
        from controller.store.schema import upgrade

        done = upgrade(data)
        if session.json:
            copy = None if done.copy is None else str(done.copy)
            print_json({"from": done.from_revision, "to": done.to_revision, "copy": copy})
        elif done.copy is None:
            print(f"the store in {data} is up to date: {done.to_revision}")
        else:
            print(
                f"the store in {data} went from {done.from_revision} to {done.to_revision}; "
                f"it was copied to {done.copy} before"
            )
