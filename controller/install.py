"""Writes the systemd unit of the controller, for the environment it is installed in.

The rule: a unit file that somebody has changed is not overwritten unless it is asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path

from controller.core.errors import MassError

UNIT = "mass-controller.service"
SYSTEM_FOLDER = Path("/etc/systemd/system")
_TEMPLATES = {False: "mass-controller.service", True: "mass-controller.user.service"}


class NotInstalled(MassError):
    """The unit file was not written; the message says what stands in the way."""

    reason = "NOT_INSTALLED"


def unit_text(user: bool) -> str:
    """Return the unit of the system, or of one user's own service manager."""
    template = Path(__file__).with_name(_TEMPLATES[user]).read_text()
    return template.replace("@COMMAND@", command())


def command() -> str:
    """Return the command line that starts the controller of this environment, quoted for a unit."""
    interpreter = Path(sys.executable)
    script = interpreter.with_name("mass")
    words = [str(script)] if script.exists() else [str(interpreter), "-m", "controller.cli"]
    return " ".join(quoted(word) for word in [*words, "controller"])


def quoted(word: str) -> str:
    """Return a word as a unit's command line has it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if set(escaped) & set(" \t'\"\\;") else escaped


def folder(user: bool) -> Path:
    """Return where the service manager looks for units."""
    return Path.home() / ".config" / "systemd" / "user" if user else SYSTEM_FOLDER


def write_unit(path: Path, text: str, *, force: bool) -> bool:
    """Write a unit file; return False where it stands there already just so.

    Raises:
        NotInstalled: another text stands there and `force` is not given, or it cannot be written.
    """
    try:
        before = path.read_text() if path.exists() else None
        if before == text:
            return False
        if before is not None and not force:
            raise NotInstalled(f"{path} is there and differs; --force overwrites it, --print shows")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise NotInstalled(f"{path} cannot be written: {error.strerror}") from error
    return True


def closed_to_others() -> Path | None:
    """Return what keeps another user from this environment's interpreter; None when nothing does.

    The system unit runs the controller under a user of its own.
    """
    for path in (Path(sys.executable), Path(sys.executable).resolve(), Path(__file__).resolve()):
        for folder_above in path.parents:
            if not folder_above.stat().st_mode & 0o001:
                return folder_above
    return None
