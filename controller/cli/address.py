"""Reads the address of a controller, as a command line has it.

The rule: without TLS only this machine's own addresses are trusted; another one needs --insecure.
"""

from __future__ import annotations

from mass import address as shared
from mass.address import DEFAULT_ADDRESS, DEFAULT_PORT, Address
from mass.errors import InvalidValue

from controller.core.errors import InvalidRequest

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_HTTP_ADDRESS",
    "DEFAULT_HTTP_PORT",
    "Address",
    "parse_address",
    "trusted_address",
]

DEFAULT_HTTP_PORT = 7462
DEFAULT_HTTP_ADDRESS = f"127.0.0.1:{DEFAULT_HTTP_PORT}"


def parse_address(text: str, what: str = "controller", default_port: int = DEFAULT_PORT) -> Address:
    """Return the address in HOST, HOST:PORT or [IPV6]:PORT; `what` names it in messages.

    Raises:
        InvalidRequest: no host, or a port outside 1 to 65535.
    """
    try:
        return shared.parse_address(text, what, default_port)
    except InvalidValue as error:
        raise InvalidRequest(error.message) from error


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
