"""Typed settings of the agent: a flag, else the environment, else the file, else the default.

Owns every word a user can write to the agent. The rule kept: a value that cannot be meant is
refused with a sentence that names the setting, the value and what would do.
"""

from __future__ import annotations

import argparse
import math
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mass.address import DEFAULT_ADDRESS, parse_address
from mass.configfile import Entry, is_there, read_file
from mass.errors import InvalidValue
from mass.units import SECOND_NS, duration_ns, size_bytes

from agent.metrics import INTERVAL_DEFAULT_NS, METRICS_MAX, NAME, MetricCommand

Value = str | int | float | bool | list[str]

DEFAULT_FILE = Path("/etc/mass/agent.toml")
FILE_VARIABLE = "MASS_AGENT_CONFIG"
STATE_VARIABLE = "STATE_DIRECTORY"  # systemd's, under a unit with StateDirectory=
# What a file may hold. The flag has dashes, the variable is MASS_AGENT_ and capitals.
KEYS: dict[str, tuple[type, ...]] = {
    "controller": (str,),
    "name": (str,),
    "memory": (str,),
    "cpus": (int, float),
    "sample": (str,),
    "work_dir": (str,),
    "metric": (list,),
    "metric_dir": (str,),
    "metric_interval": (str,),
    "label": (list,),
    "gpus": (int,),
    "guard": (bool,),
    "insecure": (bool,),
}
_TYPE_WORDS = {
    str: "text in quotes",
    int: "a number",
    float: "a fraction",
    bool: "true or false",
    list: 'a list such as ["a", "b"]',
}
# Beside the usual variable: what the command line tools read.
OTHER_VARIABLES = {"controller": "MASS_CONTROLLER"}
CONTROLLER_DEFAULT = DEFAULT_ADDRESS
SAMPLE_MIN_NS = 50_000_000
SAMPLE_MAX_NS = 60 * SECOND_NS
METRIC_INTERVAL_MIN_NS = SECOND_NS
METRIC_INTERVAL_MAX_NS = 3_600 * SECOND_NS
MEMORY_MIN_BYTES = 16 << 20
CPUS_MAX = 4096.0
GPUS_MAX = 1_024
LABELS_MAX = 64
LABEL_VALUE_LENGTH_MAX = 63
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,62}", re.ASCII)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")


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
    metrics: tuple[MetricCommand, ...] = ()
    metric_dir: Path | None = None
    metric_interval_ns: int = INTERVAL_DEFAULT_NS
    labels: tuple[tuple[str, str], ...] = ()
    gpus: int | None = None  # None: those that the driver shows
    guard: bool = True  # acts before the node's memory is full


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was written, and where."""

    value: Value
    name: str  # for messages: `--memory`, `MASS_AGENT_MEMORY` or `FILE:3: memory`
    origin: str  # for `config dump`: the same without the key
    folder: Path = Path()  # what a relative path is relative to

    @property
    def text(self) -> str:
        """The value as on a command line."""
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of a run, and by key what was written for them."""

    settings: Settings
    given: Mapping[str, Given]
    file: Path | None

    def shown(self) -> dict[str, tuple[Value | None, str]]:
        """Return each key's value as it stands in a file (None: not set) and where it is from."""
        defaults: dict[str, Value] = {
            "controller": self.settings.controller,
            "name": self.settings.name,
            "work_dir": str(self.settings.work_dir),
            "guard": True,
            "insecure": False,
        }
        return {
            key: (self.given[key].value, self.given[key].origin)
            if key in self.given
            else (defaults.get(key), "default")
            for key in KEYS
        }


def parse_settings(argv: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Return the settings alone; see `read_config`."""
    return read_config(argv, environment).settings


def read_config(argv: Sequence[str], environment: Mapping[str, str]) -> Config:
    """Return the settings; argparse ends the process itself for --help and unknown flags.

    Without --config the file is the one that MASS_AGENT_CONFIG names, else /etc/mass/agent.toml if
    it is there. An empty variable counts as not set.

    Raises:
        SettingRefused: with the sentence to show.
    """
    chosen = _parser().parse_args(argv)
    named = chosen.config or environment.get(FILE_VARIABLE)
    try:
        file = Path(named) if named else DEFAULT_FILE if is_there(DEFAULT_FILE) else None
        in_file = {} if file is None else read_file(file, KEYS)
    except InvalidValue as error:
        raise SettingRefused(error.message) from error
    folder = Path() if file is None else file.absolute().parent
    given = _given(vars(chosen), environment, in_file, folder)

    def text(key: str) -> str | None:
        return given[key].text if key in given else None

    _check_controller(given.get("controller"), _boolean(given.get("insecure")))
    name = text("name") or socket.gethostname()
    if not _NAME.fullmatch(name):
        place = given["name"].name if "name" in given else "--name"
        raise SettingRefused(f"{place} {name!r} must be 1 to 63 letters, digits, '.', '_' and '-'")
    settings = Settings(
        controller=text("controller") or CONTROLLER_DEFAULT,
        name=name,
        work_dir=_path(given["work_dir"]) if text("work_dir") else _work_dir(name, environment),
        memory_capacity_bytes=_memory(given["memory"]) if "memory" in given else None,
        cpus=_cpus(given["cpus"]) if "cpus" in given else None,
        sample_interval_ns=_interval(given["sample"], SAMPLE_MIN_NS, SAMPLE_MAX_NS)
        if "sample" in given
        else None,
        labels=_labels(given["label"]) if "label" in given else (),
        gpus=_gpus(given["gpus"]) if "gpus" in given else None,
        guard=_boolean(given["guard"]) if "guard" in given else True,
        metrics=_metrics(given["metric"]) if "metric" in given else (),
        metric_dir=_path(given["metric_dir"]) if text("metric_dir") else None,
        metric_interval_ns=_interval(
            given["metric_interval"], METRIC_INTERVAL_MIN_NS, METRIC_INTERVAL_MAX_NS
        )
        if "metric_interval" in given
        else INTERVAL_DEFAULT_NS,
    )
    return Config(settings, given, file)


def _given(
    flags: Mapping[str, Value | None],
    environment: Mapping[str, str],
    in_file: Mapping[str, Entry],
    folder: Path,
) -> dict[str, Given]:
    """Return what was written for each key, by whoever stands above the others."""
    given = {}
    for key in KEYS:
        flag, value = "--" + key.replace("_", "-"), flags.get(key)
        names = ["MASS_AGENT_" + key.upper(), OTHER_VARIABLES.get(key, "")]
        variable = next((name for name in names if environment.get(name)), None)
        if value is not None:
            given[key] = Given(value, flag, flag)
        elif variable is not None:
            given[key] = Given(environment[variable], variable, variable)
        elif key in in_file:
            place = in_file[key].place
            given[key] = Given(_typed(key, in_file[key]), f"{place}: {key}", place, folder)
    return given


def _typed(key: str, entry: Entry) -> Value:
    """Return the value of a file's key, which must have one of the key's types."""
    value = entry.value
    is_texts = not isinstance(value, list) or all(type(item) is str for item in value)
    # By the exact type, as a truth value is a whole number to isinstance.
    if type(value) not in KEYS[key] or not is_texts:
        wanted = " or ".join(_TYPE_WORDS[kind] for kind in KEYS[key])
        raise SettingRefused(f"{entry.place}: {key} {value!r} is not {wanted}")
    assert isinstance(value, str | int | float | list)
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mass-agent",
        description="Runs tasks on this machine and measures its memory for a MASS controller.",
        epilog="Each setting can also come from MASS_AGENT_<NAME>, for example MASS_AGENT_MEMORY, "
        "or from the file. More commands: mass-agent config check, mass-agent config dump, "
        "mass-agent install --systemd.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"a TOML file, default {DEFAULT_FILE} if it is there"
    )
    parser.add_argument("--controller", metavar="HOST:PORT", help=f"default {CONTROLLER_DEFAULT}")
    parser.add_argument("--name", help="the node's name, default the host's")
    parser.add_argument("--memory", metavar="SIZE", help="what tasks may use, for example 8GiB")
    parser.add_argument("--cpus", metavar="N", help="cores to offer, default the usable ones")
    parser.add_argument("--sample", metavar="DURATION", help="time between samples, for example 1s")
    parser.add_argument(
        "--metric",
        metavar="NAME=COMMAND",
        action="append",
        help="a metric of your own: the last number on the first line that COMMAND prints; "
        f"up to {METRICS_MAX} times",
    )
    parser.add_argument(
        "--metric-dir", metavar="DIR", help="read metrics from DIR/*.prom (node exporter's format)"
    )
    parser.add_argument(
        "--metric-interval",
        metavar="DURATION",
        help="time between two runs of each COMMAND, default 1s",
    )
    parser.add_argument(
        "--label",
        metavar="NAME[=VALUE]",
        action="append",
        help=f"a label that --constraint can ask for; up to {LABELS_MAX} times",
    )
    parser.add_argument(
        "--gpus", metavar="N", help="GPUs to offer, default those the NVIDIA driver shows"
    )
    parser.add_argument(
        "--guard",
        metavar="on|off",
        type=_switch,
        help="freeze, ask or end tasks before the node's memory is full; default on",
    )
    parser.add_argument("--work-dir", metavar="DIR", help="default ~/.local/state/mass-agent/NAME")
    parser.add_argument(
        "--insecure",
        action="store_true",
        default=None,
        help="allow an unencrypted connection to another machine",
    )
    return parser


def _switch(word: str) -> bool:
    if word not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither on nor off")
    return word == "on"


def _boolean(given: Given | None) -> bool:
    if given is None or isinstance(given.value, bool):
        return given is not None and bool(given.value)
    word = given.text.lower()
    if word not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise SettingRefused(f"{given.name} {given.text!r} is neither true nor false")
    return word in ("1", "true", "yes", "on")


def _check_controller(given: Given | None, insecure: bool) -> None:
    if given is None:
        return
    try:
        address = parse_address(given.text, default_port=None)
    except InvalidValue as error:
        raise SettingRefused(
            f"{given.name} {given.text!r} must be HOST:PORT, port 1 to 65535"
        ) from error
    if not insecure and not address.is_loopback:
        raise SettingRefused(
            f"controller {given.text} is on another machine and the connection is not encrypted; "
            "--insecure (insecure = true) allows it where the network can be trusted"
        )


def _path(given: Given) -> Path:
    try:
        return (given.folder / Path(given.text).expanduser()).absolute()
    except RuntimeError as error:
        raise SettingRefused(
            f"{given.name} {given.text!r} begins with the home of nobody known"
        ) from error


def _work_dir(name: str, environment: Mapping[str, str]) -> Path:
    service = environment.get(STATE_VARIABLE, "").partition(":")[0]
    if service:
        return Path(service) / name
    state = environment.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "mass-agent" / name


def _memory(given: Given) -> int:
    try:
        return size_bytes(given.text, given.name, least_bytes=MEMORY_MIN_BYTES)
    except InvalidValue as error:
        raise SettingRefused(error.message) from error


def _cpus(given: Given) -> float:
    try:
        cpus = float(given.text)
    except ValueError as error:
        raise SettingRefused(f"{given.name} {given.text!r} is no number") from error
    if not math.isfinite(cpus) or not 0 < cpus <= CPUS_MAX:
        raise SettingRefused(f"{given.name} {given.text} must be above 0 and at most {CPUS_MAX:g}")
    return cpus


def _interval(given: Given, least_ns: int, most_ns: int) -> int:
    try:
        return duration_ns(given.text, given.name, least_ns, most_ns)
    except InvalidValue as error:
        raise SettingRefused(error.message) from error


def _metrics(given: Given) -> tuple[MetricCommand, ...]:
    """Return the commands; in a variable each stands on a line of its own."""
    texts = given.value if isinstance(given.value, list) else given.text.splitlines()
    found: dict[str, MetricCommand] = {}
    for text in filter(str.strip, texts):
        name, _, command = text.partition("=")
        name = name.strip()
        if not command.strip():
            raise SettingRefused(f"{given.name} {text!r} must be NAME=COMMAND")
        if not NAME.fullmatch(name):
            raise SettingRefused(
                f"{given.name} {name!r} must be 1 to 63 letters, digits and '_', no digit first"
            )
        if name in found:
            raise SettingRefused(f"{given.name} {name} is there twice")
        found[name] = MetricCommand(name, command)
    if len(found) > METRICS_MAX:
        raise SettingRefused(f"{given.name} is there {len(found)} times, at most {METRICS_MAX}")
    return tuple(found.values())


def _labels(given: Given) -> tuple[tuple[str, str], ...]:
    """Return the labels; in a variable they stand on lines of their own, or with commas."""
    texts = given.value if isinstance(given.value, list) else re.split(r"[\n,]", given.text)
    found: dict[str, str] = {}
    for text in filter(str.strip, texts):
        name, _, value = (part.strip() for part in text.partition("="))
        if not _LABEL.fullmatch(name):
            raise SettingRefused(
                f"{given.name} {name!r} must be 1 to 63 letters, digits, '_', '.', '/' and '-'"
            )
        if len(value) > LABEL_VALUE_LENGTH_MAX or not (value == "" or value.isprintable()):
            raise SettingRefused(
                f"{given.name} {name}: {value[:80]!r} must be at most {LABEL_VALUE_LENGTH_MAX}"
                " printable characters"
            )
        if name in found:
            raise SettingRefused(f"{given.name} {name} is there twice")
        found[name] = value
    if len(found) > LABELS_MAX:
        raise SettingRefused(f"{given.name} is there {len(found)} times, at most {LABELS_MAX}")
    return tuple(found.items())


def _gpus(given: Given) -> int:
    if not given.text.isdigit() or int(given.text) > GPUS_MAX:
        raise SettingRefused(f"{given.name} {given.text!r} must be 0 to {GPUS_MAX}")
    return int(given.text)


def visible_gpus() -> int:
    """Return how many GPUs the NVIDIA driver of this machine shows."""
    return len(list(NVIDIA_GPUS.iterdir())) if NVIDIA_GPUS.is_dir() else 0
