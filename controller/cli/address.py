"""Reads the address of a controller.

The rule: without TLS only this machine's own addresses are trusted; another one needs --insecure.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from controller.core.errors import InvalidRequest

DEFAULT_PORT = 7461
DEFAULT_HTTP_PORT = 7462
DEFAULT_HOST = "127.0.0.1"
DEFAULT_ADDRESS = f"{DEFAULT_HOST}:{DEFAULT_PORT}"
DEFAULT_HTTP_ADDRESS = f"{DEFAULT_HOST}:{DEFAULT_HTTP_PORT}"


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
        """Whether it can only be this machine."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str, what: str = "controller", default_port: int = DEFAULT_PORT) -> Address:
    """Return the address in HOST, HOST:PORT or [IPV6]:PORT; `what` names it in messages.

    Raises:
        InvalidRequest: no host, or a port outside 1 to 65535.
    """
    host, separator, port_text = text.strip().rpartition(":")
    if not separator or text.strip().endswith("]"):
        host, port_text = text.strip(), str(default_port)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or any(letter in host for letter in "/@ []"):
        raise InvalidRequest(
            f"{what} '{text}' is not an address; write HOST:PORT, for example {DEFAULT_ADDRESS}"
        )
    if not (port_text.isascii() and port_text.isdigit() and 1 <= int(port_text[:6]) <= 65535):
        raise InvalidRequest(f"{what} '{text}' has the port '{port_text}'; it must be 1 to 65535")
    return Address(host, int(port_text))


def trusted_address(text: str, insecure: bool) -> Address:
    """Return the address of a controller that may be talked to without TLS.

    Raises:
        InvalidRequest: not an address, or another machine without `insecure`.
    """
    address = parse_address(text)
    if not address.is_loopback and not insecure:
        raise InvalidRequest(
            f"controller {address} is not on this machine and there is no TLS yet; "
            "add --insecure if the network between is trusted",
            controller=address,
        )
    return address
