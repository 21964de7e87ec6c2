"""Tells systemd how a service fares: the notify protocol, one datagram for each message.

Without NOTIFY_SOCKET nothing is sent. The variables are taken out of the environment, so that no
child believes them to be meant for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import MutableMapping


class Systemd:
    """The service manager of this process, if it has one."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Take the protocol's variables out of the environment."""
        self._address = environment.pop("NOTIFY_SOCKET", "")
        interval = environment.pop("WATCHDOG_USEC", "")
        meant_for = environment.pop("WATCHDOG_PID", str(os.getpid()))
        watched = bool(self._address) and interval.isdigit() and meant_for == str(os.getpid())
        self.watchdog_s = int(interval) / 1e6 if watched else 0.0  # 0: nobody watches

    def tell(self, *lines: str) -> None:
        """Send one message, such as READY=1; a manager that is gone is not waited for."""
        if not self._address:
            return
        # A leading @ stands for the zero byte of an abstract address.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with (
            contextlib.suppress(OSError),  # a service is there for others, not for systemd
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
        ):
            channel.setblocking(False)
            channel.sendto("\n".join(lines).encode(), address)

    def tell_reloading(self) -> None:
        """Say that a reload has begun; READY=1 ends it."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    async def ping(self) -> None:
        """Ping the watchdog at half its interval, as long as the loop turns; for ever."""
        while self.watchdog_s:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)
