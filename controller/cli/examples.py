"""The examples at the end of help pages, each a line that can be typed as it stands."""

from __future__ import annotations

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "submit": (
        "mass submit --mem 2GiB -n align -- ./align sample1.fq",
        "mass submit --mem 512MiB --time 1h --retries 2 -- sh -c 'sort big.txt | uniq -c'",
        "mass submit --array 1-100%4 -- sh -c './align s$MASS_ARRAY_INDEX.fq'",
        "mass submit --from tasks.jsonl",
    ),
    "run": ("mass run --mem 2GiB -- make -j2", "mass run --mem 64MiB -c 0.5 -- hostname"),
    "events": ("mass events --follow", "mass events --last 20 -o json"),
    "controller": (
        "mass controller --data /var/lib/mass --rules rules.yaml",
        "mass controller --listen 0.0.0.0:7461 --insecure",
    ),
    "dev": ("mass dev --memory 8GiB", "mass dev --listen 127.0.0.1:7471 --http 127.0.0.1:7472"),
    "task list": ("mass task list --state pending --state running", "mass task list -o json"),
    "task show": ("mass task show 12", "mass task show last -o json"),
    "task wait": ("mass task wait 1-5,7",),
    "task cancel": ("mass task cancel 12 --grace 30s", "mass task cancel 1-5"),
    "task logs": ("mass task logs 12 --follow", "mass task logs last --stderr --tail 4KiB"),
    "task why": ("mass task why 12", "mass task why last"),
    "node show": ("mass node show worker1",),
    "node cordon": ("mass node cordon worker1 --reason 'new memory at 14:00'",),
    "node drain": ("mass node drain worker1 --reason reboot --deadline 1h",),
    "rules check": ("mass rules check rules.yaml",),
    "db backup": ("mass db backup /var/backups/mass.db --data /var/lib/mass",),
    "db restore": ("mass db restore /var/backups/mass.db --data /var/lib/mass --force",),
    "config dump": ("mass config dump /etc/mass/controller.toml",),
}


def add_examples(app: typer.Typer) -> None:
    """Put the examples below the help of each command that has some."""
    places = [("", app)]
    places += [(f"{g.name} ", g.typer_instance) for g in app.registered_groups if g.typer_instance]
    for prefix, place in places:
        for command in place.registered_commands:
            lines = EXAMPLES.get(f"{prefix}{command.name}")
            if lines:
                # The mark keeps lines as they are; without it they would be filled up.
                command.epilog = "\b\n" + "\n".join(["Examples:", *(f"  {x}" for x in lines)])
