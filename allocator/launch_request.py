"""What a parked launcher is asked to become, in the bytes launcher.c reads, and what can fail."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

REQUEST_MAGIC = 0x314C534D
REQUEST_BYTES_MAX = 2 * 1024 * 1024  # the bound of launcher.c, and Linux's own default
REQUEST_STRINGS_MAX = 65_536
RLIMITS_MAX = 16


class LauncherError(Exception):
    """A process could not be started."""


class LauncherMissing(LauncherError):
    """The compiled mass-launcher is not there; reinstalling helps, trying again does not."""


class RequestRefused(LauncherError):
    """The request breaks a bound or cannot be said to the kernel; trying again does not help."""


class LauncherDied(LauncherError):
    """The launcher ended before exec; nothing of the request ever ran."""


class StepFailed(LauncherError):
    """One step between request and exec failed; nothing of the request ever ran.

    `step` is one of request, receive, stdout, stderr, chdir, rlimit, exec, or a step of parking:
    fork, pdeathsig, setsid, oom_score_adj, join. `code` is the errno.
    """

    def __init__(self, step: str, code: int, subject: str = "") -> None:
        named = f"{step} {subject}" if subject else step
        super().__init__(f"{named}: {os.strerror(code)}")
        self.step = step
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """What a parked launcher becomes.

    argv[0] is searched on the PATH of `environment`, which replaces the agent's altogether. The
    output files are opened for append and created with mode 0644; the same path twice is one
    file. `rlimits` are (resource, soft, hard) as in `resource.setrlimit`.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: str
    stdout_path: str
    stderr_path: str
    rlimits: tuple[tuple[int, int, int], ...] = ()

    def encode(self) -> bytes:
        """Return the bytes launcher.c reads.

        Raises:
            RequestRefused: empty argv, a NUL byte, a bad variable name, or beyond a bound.
        """
        if not self.argv or not self.argv[0]:
            raise RequestRefused("the command is empty: argv needs a program")
        count = len(self.argv) + len(self.environment)
        if count > REQUEST_STRINGS_MAX:
            raise RequestRefused(
                f"{count} arguments and variables, at most {REQUEST_STRINGS_MAX} are allowed"
            )
        if len(self.rlimits) > RLIMITS_MAX:
            raise RequestRefused(f"{len(self.rlimits)} rlimits, at most {RLIMITS_MAX} are allowed")
        for name in self.environment:
            if not name or "=" in name:
                raise RequestRefused(f"environment variable name {name!r} is empty or contains '='")
        variables = (f"{name}={value}" for name, value in self.environment.items())
        paths = (self.working_directory, self.stdout_path, self.stderr_path)
        parts = [struct.pack("=III", len(self.argv), len(self.environment), len(self.rlimits))]
        parts += [struct.pack("=IQQ", *_unsigned(limit)) for limit in self.rlimits]
        parts += [_encode_string(text) for text in (*paths, *self.argv, *variables)]
        body = b"".join(parts)
        if len(body) > REQUEST_BYTES_MAX:
            raise RequestRefused(
                f"arguments and environment take {len(body)} bytes, "
                f"at most {REQUEST_BYTES_MAX} are allowed"
            )
        return struct.pack("=II", REQUEST_MAGIC, len(body)) + body

    def subject_of(self, step: str) -> str:
        """Return the thing that a failed step was about, for its message."""
        subjects = {
            "stdout": self.stdout_path,
            "stderr": self.stderr_path,
            "chdir": self.working_directory,
            "exec": self.argv[0],
        }
        return subjects.get(step, "")


def _unsigned(limit: tuple[int, int, int]) -> tuple[int, int, int]:
    """Turn RLIM_INFINITY, -1 in Python, into the all-ones word that C means."""
    resource, soft, hard = limit
    return resource, soft & 0xFFFF_FFFF_FFFF_FFFF, hard & 0xFFFF_FFFF_FFFF_FFFF


def _encode_string(text: str) -> bytes:
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise RequestRefused(f"{text[:80]!r} contains a NUL byte")
    return struct.pack("=I", len(encoded)) + encoded + b"\0"
