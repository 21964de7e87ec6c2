"""What a task of an Executor runs: `python -m mass.call FILE`.

The rule: it ends with 0 when the call returned and with 1 when it raised, so that retries and
`mass task list` see a failed call as a failed task.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mass.callfile import carry_out


def main() -> int:
    """Carry out the call in the file named on the command line."""
    if len(sys.argv) != 2:
        print("usage: python -m mass.call FILE", file=sys.stderr)
        return 2
    path = Path(sys.argv.pop())
    return 0 if carry_out(path) else 1


if __name__ == "__main__":
    sys.exit(main())
