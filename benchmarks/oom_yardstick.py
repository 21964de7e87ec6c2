"""Lets a yardstick that submits and waits by command templates drive MASS with one call.

Its template for each task appends a line to a file, without a process of ours for each one; the one
that waits is this program: it submits all of them in one call, waits, and prints a JSON object for
each: its name as "id", whether it is "ok", and how many "attempts" it took.

    sh -c 'printf "%s\\t%s\\t%s\\t%s\\n" "$@" >> "$0"' FILE NAME CATEGORY DECLARED_MIB 'COMMAND'
    python benchmarks/oom_yardstick.py FILE HOST:PORT

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
    """Submit what the file lists, wait for it, tell how it ended."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    path, controller = arguments
    to = ["--controller", controller]
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    tasks = "".join(json.dumps(_task(*line.split("\t"))) + "\n" for line in lines)
    ids = subprocess.run(
        [MASS, "submit", *to, "-q", "--from", "-"],
        check=True, input=tasks, stdout=subprocess.PIPE, text=True,
    ).stdout.split()  # fmt: skip
    # Its exit code tells of failed tasks, and so does what it prints.
    ended = subprocess.run(
        [MASS, "task", "wait", *to, "-o", "json", *ids],
        check=False, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for task in json.loads(ended.stdout):
        ok = task["state"] == "SUCCEEDED"
        print(json.dumps({"id": task["name"], "ok": ok, "attempts": task["attempt"]}))
    return 0


def _task(name: str, category: str, declared_mib: str, command: str) -> dict[str, object]:
    """Return a task in the form of `mass submit --from`."""
    task = {"name": name, "category": category, "cpus": 1, "command": shlex.split(command)}
    return task | ({"mem": f"{declared_mib}MiB"} if int(declared_mib) else {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
