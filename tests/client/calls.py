"""Functions that the tests have called in tasks."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


class Odd(Exception):
    """An error whose arguments are not those it was made with, so it cannot be unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def power(base: int, exponent: int = 2) -> int:
    """Return a power."""
    return int(base**exponent)


def where() -> tuple[int, str]:
    """Return the process and its task."""
    return os.getpid(), os.environ["MASS_TASK_ID"]


def divide(number: int) -> float:
    """Raise ZeroDivisionError for 0."""
    return 1 / number


def odd() -> None:
    """Raise an error that cannot be brought back."""
    raise Odd("very", "odd")


def unpicklable() -> object:
    """Return what cannot be pickled."""
    return lambda: None


def leave(code: int) -> None:
    """End the interpreter."""
    sys.exit(code)


def crash() -> None:
    """End by a signal."""
    os.kill(os.getpid(), signal.SIGSEGV)


def nap(seconds: float) -> float:
    """Sleep and return for how long."""
    time.sleep(seconds)
    return seconds


def eat(size_mib: int) -> int:
    """Touch that much memory."""
    block = bytearray(size_mib << 20)
    block[::4096] = b"x" * len(block[::4096])
    return len(block)


def second_time_lucky(path: str) -> str:
    """Raise at the first call, crash at the second, return at the third."""
    tries = Path(path)
    with tries.open("a") as file:
        file.write("x")
    count = tries.stat().st_size
    if count == 1:
        raise RuntimeError("not yet")
    if count == 2:
        os._exit(7)
    return f"after {count}"


def leave_part(directory: str) -> None:
    """Crash as an attempt does that is killed while it writes its outcome."""
    (path,) = Path(directory).glob("*.call")
    write_part = path.with_suffix(".outcome").with_name(f"{path.stem}.outcome.{os.getpid()}.part")
    write_part.write_bytes(b"half")
    crash()
