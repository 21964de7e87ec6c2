"""Finds the controller and refuses to talk to another machine by accident.

The rule: there is no TLS yet, so only this machine's own addresses are trusted without being asked.
"""

from __future__ import annotations

import os
from ipaddress import ip_address

from mass.errors import InvalidValue

DEFAULT_PORT = 7461
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"


def controller_address(address: str | None, insecure: bool | None) -> str:
    """Return the controller's HOST:PORT: the one given, else MASS_CONTROLLER, else this machine's.

    `insecure` None means what MASS_INSECURE says (1, true or yes).

    Raises:
        InvalidValue: not an address, or another machine's without `insecure`.
    """
    text = (address or os.environ.get("MASS_CONTROLLER") or DEFAULT_ADDRESS).strip()
    host, separator, port = text.rpartition(":")
    if not separator or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or any(letter in host for letter in "/@ []"):
        raise InvalidValue(f"controller '{text}' is not an address; write {DEFAULT_ADDRESS}")
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65_535):
        raise InvalidValue(f"controller '{text}' has the port '{port}'; it must be 1 to 65535")
    if insecure is None:
        insecure = os.environ.get("MASS_INSECURE", "").lower() in {"1", "true", "yes"}
    if not insecure and not _is_loopback(host):
        raise InvalidValue(
            f"controller {text} is not on this machine and there is no TLS yet; "
            "give insecure=True if the network between is trusted"
        )
    return f"[{host}]:{int(port)}" if ":" in host else f"{host}:{int(port)}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
