"""Reads addresses, finds the controller, and refuses to talk to another machine by accident.

The rule: there is no TLS yet, so only this machine's own addresses are trusted without being asked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address

from mass.errors import InvalidValue

DEFAULT_PORT = 7461
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Address:
    """A host name or an IP address, with a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def target(self) -> str:
        """The address as gRPC reads it."""
        return str(self)

    @property
    def is_loopback(self) -> bool:
        """Whether it can only be this machine; a name may be resolved to anything."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(
    text: str,
    what: str = "controller",
    default_port: int | None = DEFAULT_PORT,
    port_min: int = 1,
) -> Address:
    """Return the address in HOST, HOST:PORT or [IPV6]:PORT; `what` names it in messages.

    Without a default the port must be there. Port 0, where allowed, asks for any that is free.

    Raises:
        InvalidValue: no host, no port, or a port outside `port_min` to 65535.
    """
    host, separator, port_text = text.strip().rpartition(":")
    if not separator or text.strip().endswith("]"):
        host, port_text = text.strip(), "" if default_port is None else str(default_port)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or any(letter in host for letter in "/@ []"):
        raise InvalidValue(
            f"{what} '{text}' is not an address; write HOST:PORT, for example {DEFAULT_ADDRESS}"
        )
    if not (
        port_text.isascii() and port_text.isdigit() and port_min <= int(port_text[:6]) <= PORT_MAX
    ):
        raise InvalidValue(
            f"{what} '{text}' has the port '{port_text}'; it must be {port_min} to {PORT_MAX}"
        )
    return Address(host, int(port_text))


def controller_address(address: str | None, insecure: bool | None) -> str:
    """Return the controller's HOST:PORT: the one given, else MASS_CONTROLLER, else this machine's.

    `insecure` None means what MASS_INSECURE says (1, true or yes).

    Raises:
        InvalidValue: not an address, or another machine's without `insecure`.
    """
    found = parse_address(address or os.environ.get("MASS_CONTROLLER") or DEFAULT_ADDRESS)
    if insecure is None:
        insecure = os.environ.get("MASS_INSECURE", "").lower() in {"1", "true", "yes"}
    if not insecure and not found.is_loopback:
        raise InvalidValue(
            f"controller {found} is not on this machine and there is no TLS yet; "
            "give insecure=True if the network between is trusted"
        )
    return found.target
