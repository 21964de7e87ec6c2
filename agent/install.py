"""Writes the agent's systemd unit, for the environment it is installed in; shows its settings.

The rule: a unit file that somebody has changed is not overwritten unless it is asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mass.configfile import dump

from agent.config import SettingRefused, read_config

UNIT = "mass-agent.service"
SYSTEM_FOLDER = Path("/etc/systemd/system")
_TEMPLATES = {False: "mass-agent.service", True: "mass-agent.user.service"}


def show_config(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return what `mass-agent config check` or `dump` prints; further flags are the agent's.

    Raises:
        SettingRefused: a setting cannot be, or it is neither of the two.
    """
    if argv[:1] not in (["check"], ["dump"]):
        raise SettingRefused("config needs one of: check, dump")
    words = list(argv[1:])
    if words and not words[0].startswith("-"):
        words.insert(0, "--config")  # config check FILE, as with `mass config check FILE`
    config = read_config(words, environment)
    if argv[0] == "dump":
        return dump(config.shown())
    return f"{config.file or 'no file, environment and defaults'}: no mistake found\n"


def install(argv: Sequence[str]) -> str:
    """Carry out `mass-agent install` and return what it prints; argparse ends it for --help.

    Raises:
        SettingRefused: nothing was written; the message says what stands in the way.
    """
    chosen = _parser().parse_args(argv)
    if not chosen.systemd:
        raise SettingRefused("say --systemd: there is no other service manager it can be for")
    text = unit_text(chosen.user)
    if chosen.print:
        return text
    path = Path(chosen.directory or _folder(chosen.user)) / UNIT
    written = _write_unit(path, text, force=chosen.force)
    manager = "systemctl --user" if chosen.user else "systemctl"
    return (
        f"{path} {'is written' if written else 'is as it was'}\n"
        f"next: {manager} daemon-reload && {manager} enable --now {UNIT}\n"
    )


def unit_text(user: bool) -> str:
    """Return the unit of the system, or of one user's own service manager."""
    template = Path(__file__).with_name(_TEMPLATES[user]).read_text()
    interpreter = Path(sys.executable)
    script = interpreter.with_name("mass-agent")
    words = [str(script)] if script.exists() else [str(interpreter), "-m", "agent.main"]
    return template.replace("@COMMAND@", " ".join(_quoted(word) for word in words))


def _quoted(word: str) -> str:
    """Return a word as a unit's command line has it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if set(escaped) & set(" \t'\"\\;") else escaped


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mass-agent install",
        description="Installs the agent of this environment as a service.",
        allow_abbrev=False,
    )
    parser.add_argument("--systemd", action="store_true", help="write a systemd unit")
    parser.add_argument(
        "--user", action="store_true", help="for your own service manager, not the system's"
    )
    parser.add_argument("--print", action="store_true", help="print it, write nothing")
    parser.add_argument("--force", action="store_true", help="overwrite a unit that differs")
    parser.add_argument("--directory", metavar="DIR", help="where units are")
    return parser


def _folder(user: bool) -> Path:
    return Path.home() / ".config" / "systemd" / "user" if user else SYSTEM_FOLDER


def _write_unit(path: Path, text: str, *, force: bool) -> bool:
    """Write a unit file; return False where it stands there already just so."""
    try:
        before = path.read_text() if path.exists() else None
        if before == text:
            return False
        if before is not None and not force:
            raise SettingRefused(
                f"{path} is there and differs; --force overwrites it, --print shows"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise SettingRefused(f"{path} cannot be written: {error.strerror}") from error
    return True
