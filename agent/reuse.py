"""Directories of attempts that wrote nothing, given on to later attempts.

An attempt needs two directories and two files. Making and deleting them is what a short task costs
the machine most where other programs delete files too: a file system that is journaled does not use
a deleted file's place for a while, and looks at each of them again and again for one that is free.
So what an attempt leaves exactly as it was made - two empty files, nothing else - is renamed for a
next one. The rule kept: no process has any of it open, which the kernel itself says by a lease.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat

FILE_MODE = 0o644  # what the launcher makes outputs with
DIRECTORY_MODE = 0o755
FIRST = "1"  # only the directory of a task with one attempt is given on


def give_on(tasks: str, old: int, new: int) -> bool:
    """Rename the directory of a task's only attempt for another task's first, if it is untouched.

    `tasks` is the directory of both, `old` and `new` are ids of tasks. Returns whether it was done;
    nothing has changed where it was not.
    """
    task, directory = f"{tasks}/{old}", f"{tasks}/{old}/{FIRST}"
    try:
        if os.listdir(task) != [FIRST] or sorted(os.listdir(directory)) != ["stderr", "stdout"]:
            return False
        if not (_is_as_made(task) and _is_as_made(directory)):
            return False
        if not (_is_untouched(f"{directory}/stdout") and _is_untouched(f"{directory}/stderr")):
            return False
        os.utime(directory)  # what is oldest goes first
        os.rename(task, f"{tasks}/{new}")
    except OSError:  # whatever it is, a new directory will do
        return False
    return True


def _is_as_made(directory: str) -> bool:
    status = os.lstat(directory)
    return stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == DIRECTORY_MODE


def _is_untouched(path: str) -> bool:
    """Say whether it is an empty file as the launcher makes it, and nobody has it open.

    Raises:
        OSError: it cannot be opened or leased, so that cannot be known.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size or status.st_nlink != 1:
            return False
        if stat.S_IMODE(status.st_mode) != FILE_MODE or status.st_uid != os.geteuid():
            return False
        # Refused (EAGAIN) while any other descriptor of the file exists, in whichever process. Who
        # opens it meanwhile waits for our close, and the kernel's word of that is one we ignore.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        return True
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)  # and with it the lease
