"""The controller's settings, checked in one place before anything starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from controller.core.errors import InvalidRequest
from controller.core.limits import DEFAULT_LIMITS, Limits

NODES_MAX_BOUND = 100_000


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

    def limits(self) -> Limits:
        """Return the core's bounds with these settings in them."""
        return replace(
            DEFAULT_LIMITS,
            nodes_max=self.nodes_max,
            tasks_running_max=self.tasks_running_max,
            pool_bytes=self.pool_bytes,
        )


def validate(settings: Settings) -> Settings:
    """Return the settings, or refuse the first one that cannot be.

    Raises:
        InvalidRequest: names the setting, its value and the bound.
    """
    for name, address in (("--listen", settings.listen), ("--http", settings.http)):
        host, _ = split_address(name, address)
        if not is_loopback(host) and not settings.insecure:
            raise InvalidRequest(
                f"{name} {address} is open to the network, and there is no encryption yet;"
                " listen on 127.0.0.1, or say --insecure if the network is yours alone"
            )
    if not 1 <= settings.nodes_max <= NODES_MAX_BOUND:
        raise InvalidRequest(
            f"--nodes-max {settings.nodes_max} is outside 1 to {NODES_MAX_BOUND}"
        )
    if not 1 <= settings.tasks_running_max <= 1_000_000:
        raise InvalidRequest(
            f"--tasks-running-max {settings.tasks_running_max} is outside 1 to 1000000"
        )
    if settings.webhook is not None and urlsplit(settings.webhook).scheme not in ("http", "https"):
        raise InvalidRequest(f"--webhook '{settings.webhook}' is no http:// or https:// address")
    return settings


def split_address(name: str, address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT (IPv6 in brackets).

    Raises:
        InvalidRequest: it is no such address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65_535:
        raise InvalidRequest(f"{name} '{address}' is no HOST:PORT with a port of 0 to 65535")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
