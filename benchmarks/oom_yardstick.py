"""Lets a yardstick that submits and waits by command templates drive MASS with one call.

A template for each task appends it to a file; the one that waits submits them all at once, waits,
and prints a JSON object for each: its name as "id", whether it is "ok", its "attempts".

    python benchmarks/oom_yardstick.py add FILE NAME CATEGORY DECLARED_MIB 'COMMAND WITH ARGUMENTS'
    python benchmarks/oom_yardstick.py wait FILE HOST:PORT

A declared size of 0 means that nothing is declared.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

MASS = str(Path(sys.executable).with_name("mass"))


def main(arguments: list[str]) -> int:
    """Do what the first argument says."""
    match arguments:
        case ["add", path, name, category, declared_mib, command]:
            add(Path(path), name, category, int(declared_mib), command)
        case ["wait", path, controller]:
            wait(Path(path), controller)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


def add(path: Path, name: str, category: str, declared_mib: int, command: str) -> None:
    """Append a task to the file, in the form of `mass submit --from`."""
    task = {"name": name, "category": category, "cpus": 1, "command": shlex.split(command)}
    if declared_mib:
        task["mem"] = f"{declared_mib}MiB"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(task) + "\n")


def wait(path: Path, controller: str) -> None:
    """Submit the file's tasks in one call, wait for all of them, tell how each one ended."""
    to = ["--controller", controller]
    ids = subprocess.run(
        [MASS, "submit", *to, "-q", "--from", str(path)],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout.split()  # fmt: skip
    # Its exit code tells of failed tasks, and so does what it prints.
    ended = subprocess.run(
        [MASS, "task", "wait", *to, "-o", "json", *ids],
        check=False, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for task in json.loads(ended.stdout):
        ok = task["state"] == "SUCCEEDED"
        print(json.dumps({"id": task["name"], "ok": ok, "attempts": task["attempt"]}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
