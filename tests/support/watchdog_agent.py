"""An agent that holds limits by its watchdog, also where it could make groups, for tests."""

from __future__ import annotations

import sys
from pathlib import Path

import agent.main
from agent.enforce import Detection
from agent.watchdog import Watchdog


def _detect(node_name: str, parent: Path | None = None) -> Detection:
    """Choose the watchdog without a look at what else there is."""
    return Detection(Watchdog(node_name), {})


if __name__ == "__main__":
    agent.main.detect = _detect  # type: ignore[attr-defined]
    sys.exit(agent.main.main())
