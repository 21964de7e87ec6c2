"""Typed settings of the agent, from flags over the environment over defaults.

Owns every word a user can write to the agent. The rule kept: a value that cannot be meant is
refused with a sentence that names the setting, the value and what would do.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CONTROLLER_DEFAULT = "127.0.0.1:7461"
SECOND_NS = 1_000_000_000
SAMPLE_MIN_NS = 50_000_000
SAMPLE_MAX_NS = 60 * SECOND_NS
MEMORY_MIN_BYTES = 16 << 20
MEMORY_MAX_BYTES = 1 << 50
CPUS_MAX = 4096.0

_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?B?)", re.IGNORECASE)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_EXPONENTS = {"K": 1, "M": 2, "G": 3, "T": 4}
_DURATION_UNITS_NS = {
    "ms": 1_000_000,
    "s": SECOND_NS,
    "m": 60 * SECOND_NS,
    "h": 3_600 * SECOND_NS,
    "d": 86_400 * SECOND_NS,
}


class SettingRefused(Exception):
    """A setting cannot be used; the message names it, its value and the bound."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an agent runs with. `memory_capacity_bytes` None leaves it to the controller."""

    controller: str
    name: str
    work_dir: Path
    memory_capacity_bytes: int | None = None
    cpus: float | None = None
    sample_interval_ns: int | None = None


def parse_size(text: str) -> int:
    """Return bytes: G, Gi and GiB are 2^30, GB is 10^9, the same for K, M and T.

    Raises:
        SettingRefused: no unit, an unknown one, or no number.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        raise SettingRefused(f"{text!r} has no unit; write for example {text}GiB or {text}MiB")
    match = _SIZE.fullmatch(text)
    if match is None:
        raise SettingRefused(f"{text!r} is no size; write for example 512MiB or 8GiB")
    number, prefix, suffix = match.groups()
    base = 1000 if suffix.upper() == "B" else 1024
    return int(float(number) * base ** _EXPONENTS[prefix.upper()])


def parse_duration(text: str) -> int:
    """Return nanoseconds of a duration such as 500ms, 1s, 10m or 1h30m.

    Raises:
        SettingRefused: no unit, an unknown one, or no number.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        raise SettingRefused(f"{text!r} has no unit; write for example {text}s or {text}m")
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise SettingRefused(f"{text!r} is no duration; write for example 500ms, 10m or 1h30m")
    return round(sum(float(number) * _DURATION_UNITS_NS[unit] for number, unit in parts))


def parse_settings(argv: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Return the settings; argparse ends the process itself for --help and unknown flags.

    Raises:
        SettingRefused: with the sentence to show.
    """
    chosen = _parser().parse_args(argv)

    def value(flag: str, *variables: str) -> str | None:
        given: str | None = getattr(chosen, flag)
        if given is not None:
            return given
        return next((environment[name] for name in variables if environment.get(name)), None)

    controller = value("controller", "MASS_AGENT_CONTROLLER", "MASS_CONTROLLER")
    controller = _controller(controller or CONTROLLER_DEFAULT)
    insecure = chosen.insecure or environment.get("MASS_AGENT_INSECURE", "") in ("1", "true", "yes")
    if not insecure and not _is_loopback(controller):
        raise SettingRefused(
            f"controller {controller} is on another machine and the connection is not encrypted; "
            "--insecure allows it where the network can be trusted"
        )
    name = value("name", "MASS_AGENT_NAME") or socket.gethostname()
    if not _NAME.fullmatch(name):
        raise SettingRefused(f"--name {name!r} must be 1 to 63 letters, digits, '.', '_' and '-'")
    work_dir = value("work_dir", "MASS_AGENT_WORK_DIR")
    memory = value("memory", "MASS_AGENT_MEMORY")
    cpus = value("cpus", "MASS_AGENT_CPUS")
    sample = value("sample", "MASS_AGENT_SAMPLE")
    return Settings(
        controller=controller,
        name=name,
        work_dir=Path(work_dir).expanduser().absolute()
        if work_dir
        else _work_dir(name, environment),
        memory_capacity_bytes=None if memory is None else _memory(memory),
        cpus=None if cpus is None else _cpus(cpus),
        sample_interval_ns=None if sample is None else _sample(sample),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mass-agent",
        description="Runs tasks on this machine and measures its memory for a MASS controller.",
        epilog="Each setting can also come from MASS_AGENT_<NAME>, for example MASS_AGENT_MEMORY.",
        allow_abbrev=False,
    )
    parser.add_argument("--controller", metavar="HOST:PORT", help=f"default {CONTROLLER_DEFAULT}")
    parser.add_argument("--name", help="the node's name, default the host's")
    parser.add_argument("--memory", metavar="SIZE", help="what tasks may use, for example 8GiB")
    parser.add_argument("--cpus", metavar="N", help="cores to offer, default the usable ones")
    parser.add_argument("--sample", metavar="DURATION", help="time between samples, for example 1s")
    parser.add_argument("--work-dir", metavar="DIR", help="default ~/.local/state/mass-agent/NAME")
    parser.add_argument(
        "--insecure", action="store_true", help="allow an unencrypted connection to another machine"
    )
    return parser


def _controller(text: str) -> str:
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or not 1 <= int(port) <= 65_535:
        raise SettingRefused(f"--controller {text!r} must be HOST:PORT, port 1 to 65535")
    return text


def _is_loopback(controller: str) -> bool:
    host = controller.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: it may be resolved to anything


def _work_dir(name: str, environment: Mapping[str, str]) -> Path:
    state = environment.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "mass-agent" / name


def _memory(text: str) -> int:
    try:
        size_bytes = parse_size(text)
    except SettingRefused as error:
        raise SettingRefused(f"--memory {error}") from error
    if not MEMORY_MIN_BYTES <= size_bytes <= MEMORY_MAX_BYTES:
        raise SettingRefused(f"--memory {text} must be between 16MiB and 1024TiB")
    return size_bytes


def _cpus(text: str) -> float:
    try:
        cpus = float(text)
    except ValueError as error:
        raise SettingRefused(f"--cpus {text!r} is no number") from error
    if not math.isfinite(cpus) or not 0 < cpus <= CPUS_MAX:
        raise SettingRefused(f"--cpus {text} must be above 0 and at most {CPUS_MAX:g}")
    return cpus


def _sample(text: str) -> int:
    try:
        interval_ns = parse_duration(text)
    except SettingRefused as error:
        raise SettingRefused(f"--sample {error}") from error
    if not SAMPLE_MIN_NS <= interval_ns <= SAMPLE_MAX_NS:
        raise SettingRefused(f"--sample {text} must be between 50ms and 1m")
    return interval_ns
