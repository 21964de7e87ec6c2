"""The controller's settings: what there is, where each value came from, one check for all.

A value comes from a flag, else from the environment, else from the file, else it is the default.
Whatever cannot be meant is refused with the place where it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mass.configfile import is_there, read_file
from mass.errors import InvalidValue

from controller.configvalues import (
    Given,
    is_loopback,
    read_address,
    read_boolean,
    read_choice,
    read_duration,
    read_integer,
    read_number,
    read_path,
    read_paths,
    read_size,
    read_text,
    show_duration,
    show_size,
    split_address,
)
from controller.core.errors import InvalidRequest
from controller.core.limits import DEFAULT_LIMITS, MILLISECOND_NS, SECOND_NS, Limits
from controller.core.model import MemoryLimits
from controller.notify import checked_receiver

DEFAULT_FILE = Path("/etc/mass/controller.toml")
FILE_VARIABLE = "MASS_CONFIG"
STATE_VARIABLE = "STATE_DIRECTORY"  # systemd's, under a unit with StateDirectory=
NODES_MAX_BOUND = 100_000
TASKS_RUNNING_MAX_BOUND = 1_000_000
HISTORY_TASKS_MAX_BOUND = 100_000_000
HISTORY_AGE_MIN_NS = 60 * SECOND_NS
SAMPLE_INTERVAL_MIN_NS = 50 * MILLISECOND_NS
AHEAD_PER_CPU_BOUND = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may choose. Addresses are HOST:PORT."""

    listen: str = "127.0.0.1:7461"
    http: str = "127.0.0.1:7462"
    data: Path = Path("mass-data")
    rules: tuple[Path, ...] = ()  # none: the default set
    webhook: str | None = None
    nodes_max: int = DEFAULT_LIMITS.nodes_max
    tasks_running_max: int = DEFAULT_LIMITS.tasks_running_max
    pool_bytes: int = 0  # 0: derived from the two bounds above
    insecure: bool = False
    history_age_ns: int = DEFAULT_LIMITS.history_age_ns
    history_tasks_max: int = DEFAULT_LIMITS.history_tasks_max
    sample_interval_ns: int = DEFAULT_LIMITS.sample_interval_ns
    user_tasks_max: int = DEFAULT_LIMITS.user_tasks_max  # 0: no bound
    fair_share: bool = DEFAULT_LIMITS.fair_share
    fair_share_half_life_ns: int = DEFAULT_LIMITS.fair_share_half_life_ns
    memory_limits: MemoryLimits = DEFAULT_LIMITS.memory_limits
    overcommit_share: float = DEFAULT_LIMITS.overcommit_share
    ahead_per_cpu: int = DEFAULT_LIMITS.ahead_per_cpu  # 0: nothing is sent ahead

    def limits(self) -> Limits:
        """Return the core's bounds with these settings in them."""
        return replace(
            DEFAULT_LIMITS,
            nodes_max=self.nodes_max,
            tasks_running_max=self.tasks_running_max,
            pool_bytes=self.pool_bytes,
            history_age_ns=self.history_age_ns,
            history_tasks_max=self.history_tasks_max,
            sample_interval_ns=self.sample_interval_ns,
            user_tasks_max=self.user_tasks_max,
            fair_share=self.fair_share,
            fair_share_half_life_ns=self.fair_share_half_life_ns,
            memory_limits=self.memory_limits,
            overcommit_share=self.overcommit_share,
            ahead_per_cpu=self.ahead_per_cpu,
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. Its flag is the key with dashes, its variable MASS_ and the key in capitals."""

    key: str
    attribute: str  # of Settings
    read: Callable[[Given], object]
    show: Callable[[object], object] = lambda value: value  # as it stands in a file
    while_running: bool = False  # whether a reload may change it

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "MASS_" + self.key.upper()


def _whole(least: int, most: int) -> Callable[[Given], int]:
    return lambda given: read_integer(given, least, most)


def _lasting(least_ns: int, most_ns: int) -> Callable[[Given], int]:
    return lambda given: read_duration(given, least_ns, most_ns)


def _memory_limits(given: Given) -> MemoryLimits:
    return MemoryLimits(read_choice(given, [one.value for one in MemoryLimits]))


def _word_of(chosen: object) -> str:
    assert isinstance(chosen, MemoryLimits)
    return chosen.value


def _share(given: Given) -> float:
    return read_number(given, 0.0, 1.0)


def _webhook(given: Given) -> str:
    url = read_text(given)
    try:
        checked_receiver(url)
    except InvalidRequest as error:
        raise InvalidRequest(f"{given.name}: {error.message}", key=given.name) from error
    return url


SETTINGS = (
    Setting("listen", "listen", read_address),
    Setting("http", "http", read_address),
    Setting("data", "data", read_path, str),
    Setting("rules", "rules", read_paths, lambda paths: [str(path) for path in _tuple(paths)],
            while_running=True),
    Setting("webhook", "webhook", _webhook, while_running=True),
    Setting("nodes_max", "nodes_max", _whole(1, NODES_MAX_BOUND)),
    Setting("tasks_running_max", "tasks_running_max", _whole(1, TASKS_RUNNING_MAX_BOUND)),
    Setting("pool", "pool_bytes", read_size, show_size),
    Setting("insecure", "insecure", read_boolean),
    Setting("history_age", "history_age_ns",
            _lasting(HISTORY_AGE_MIN_NS, 3_650 * 24 * 3_600 * SECOND_NS), show_duration,
            while_running=True),
    Setting("history_tasks_max", "history_tasks_max", _whole(0, HISTORY_TASKS_MAX_BOUND),
            while_running=True),
    # An agent sends at least each heartbeat, so a longer interval would leave it nothing to send.
    Setting("sample_interval", "sample_interval_ns",
            _lasting(SAMPLE_INTERVAL_MIN_NS, DEFAULT_LIMITS.heartbeat_ns), show_duration,
            while_running=True),
    Setting("user_tasks_max", "user_tasks_max", _whole(0, TASKS_RUNNING_MAX_BOUND),
            while_running=True),
    Setting("fair_share", "fair_share", read_boolean, while_running=True),
    Setting("fair_share_half_life", "fair_share_half_life_ns",
            _lasting(0, 365 * 24 * 3_600 * SECOND_NS), show_duration, while_running=True),
    Setting("memory_limits", "memory_limits", _memory_limits, _word_of,
            while_running=True),
    Setting("overcommit_share", "overcommit_share", _share, while_running=True),
    Setting("ahead_per_cpu", "ahead_per_cpu", _whole(0, AHEAD_PER_CPU_BOUND), while_running=True),
)  # fmt: skip


def _tuple(value: object) -> tuple[object, ...]:
    assert isinstance(value, tuple)
    return value


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of a run, and by key where each came from; `default` where nowhere."""

    settings: Settings = Settings()
    origins: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None

    def shown(self) -> dict[str, tuple[object, str]]:
        """Return each key's value as it stands in a file (None: not set) and where it is from."""
        return {
            setting.key: (
                setting.show(getattr(self.settings, setting.attribute)),
                self.origins.get(setting.key, "default"),
            )
            for setting in SETTINGS
        }


def load_config(
    flags: Mapping[str, object], environment: Mapping[str, str], file: Path | None = None
) -> Config:
    """Return the settings from flags (by key; None: not given), environment, file and defaults.

    Without a file it is the one that MASS_CONFIG names, else /etc/mass/controller.toml if it is
    there. An empty variable counts as not set.

    Raises:
        InvalidRequest: names the place, the value and the bound.
    """
    chosen, in_file = _read(file, environment)
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for setting in SETTINGS:
        given = _given(setting, flags, environment) or in_file.get(setting.key)
        if given is not None:
            values[setting.attribute] = setting.read(given)
            origins[setting.key] = given.origin
    if "data" not in values and environment.get(STATE_VARIABLE):
        values["data"] = Path(environment[STATE_VARIABLE].partition(":")[0])
        origins["data"] = STATE_VARIABLE
    settings = replace(Settings(), **values)  # type: ignore[arg-type]  # each was read as its type
    return Config(_check(settings, origins), origins, chosen)


def _read(
    file: Path | None, environment: Mapping[str, str]
) -> tuple[Path | None, dict[str, Given]]:
    """Return the file that counts, if there is one, and what it says by key.

    Relative paths in it are relative to its folder.
    """
    chosen = file or (Path(environment[FILE_VARIABLE]) if environment.get(FILE_VARIABLE) else None)
    try:
        if chosen is None and is_there(DEFAULT_FILE):
            chosen = DEFAULT_FILE
        if chosen is None:
            return None, {}
        entries = read_file(chosen, [setting.key for setting in SETTINGS])
    except InvalidValue as error:
        raise InvalidRequest(error.message, **error.details) from error
    folder = chosen.absolute().parent
    return chosen, {
        key: Given(entry.value, f"{entry.place}: {key}", entry.place, folder=folder)
        for key, entry in entries.items()
    }


def _given(
    setting: Setting, flags: Mapping[str, object], environment: Mapping[str, str]
) -> Given | None:
    if flags.get(setting.key) is not None:
        return Given(flags[setting.key], setting.flag, setting.flag, is_text=True)
    if environment.get(setting.variable):
        value = environment[setting.variable]
        return Given(value, setting.variable, setting.variable, is_text=True)
    return None


def _check(settings: Settings, origins: Mapping[str, str]) -> Settings:
    """Return the settings, or refuse what no single one can tell."""
    for key, address in (("listen", settings.listen), ("http", settings.http)):
        host, _ = split_address(key, address)
        if not is_loopback(host) and not settings.insecure:
            raise InvalidRequest(
                f"{origins.get(key, key)}: {key} {address} is open to the network, and there is no"
                " encryption yet; listen on 127.0.0.1, or say --insecure (insecure = true) if the"
                " network is yours alone"
            )
    return settings


def changed_keys(before: Settings, after: Settings) -> tuple[list[str], list[str]]:
    """Return the keys that differ: those a reload may change, and those that need a restart."""
    differing = [
        setting
        for setting in SETTINGS
        if getattr(before, setting.attribute) != getattr(after, setting.attribute)
    ]
    return (
        [setting.key for setting in differing if setting.while_running],
        [setting.key for setting in differing if not setting.while_running],
    )
