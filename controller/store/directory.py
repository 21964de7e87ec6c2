"""A data directory: where it lies, who may read it, and that one process at a time has it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from controller.store.base import StoreBusy, StoreError

_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600
_LOCK_BYTES_MAX = 32  # a process id in digits


class DataDirectory:
    """A data directory that this process holds until it is released, or the process ends.

    It is made when it is missing, readable by its owner only; so are the files in it. The mode of
    a directory that is there already is its owner's business.
    """

    def __init__(self, path: Path) -> None:
        """Claim the directory.

        Raises:
            StoreBusy: another process holds it; the message names the process.
            StoreError: it cannot be made or written.
        """
        self.path = path
        self.database = path / "mass.db"
        try:
            path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            self._lock: int | None = _open_private(path / "lock")
        except OSError as error:
            raise StoreError(f"data directory {path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, _LOCK_BYTES_MAX, 0).decode("ascii", "replace").strip()
            self.release()
            raise StoreBusy(
                f"data directory {path} is in use by process {holder or 'of unknown id'}",
                path=path,
                process_id=holder,
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode("ascii"), 0)

    def make_database_private(self) -> None:
        """See that the database is there, if empty, and that only its owner can read it.

        SQLite gives the files it puts beside it the same mode.

        Raises:
            StoreError: the file cannot be made or written.
        """
        try:
            os.close(_open_private(self.database))
        except OSError as error:
            raise StoreError(f"{self.database} cannot be used: {error.strerror}") from error

    def release(self) -> None:
        """Let go of the directory; a second call does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _open_private(path: Path) -> int:
    # The directory's path is the user's to choose, but a link in it would lead elsewhere.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _FILE_MODE)
    os.fchmod(descriptor, _FILE_MODE)
    return descriptor
