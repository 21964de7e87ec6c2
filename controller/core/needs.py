"""What the size of a task's next attempt follows from, where it is not simply what was declared."""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.model import MemoryLimits, Task

# Inputs are told apart to within a sixteenth, so that thousands of files make dozens of lines.
INPUT_BITS = 5


@dataclass(frozen=True, slots=True)
class Need:
    """Tasks with equal needs get equal sizes; bytes throughout."""

    category: str
    input_bytes: int | None
    declared_bytes: int | None  # None: nothing was
    limit_bytes: int | None  # its user's own hard limit
    reached_bytes: int = 0  # the most that an attempt reached which memory ended
    failures: int = 0  # attempts that outgrew their own limit
    whole: bool = False  # the guard ended one: all that is expected is set aside at once
    used_bytes: int = 0  # the most that it was seen to use then
    once: bool = False  # its size is its limit, and no other attempt makes good what that ends

    @property
    def seen_bytes(self) -> int:
        """Return the most that it is known to take; 0 before memory has ended an attempt."""
        return max(self.reached_bytes, self.used_bytes)


def need_of(task: Task, memory_limits: MemoryLimits) -> Need | None:
    """Return what a task's size follows from; None where it is its request.

    That is so with --mem-exact, and under strict limits for what was declared, until an attempt
    has shown that it is too little.
    """
    spec = task.spec
    if spec.memory_exact:
        return None
    strict = memory_limits is MemoryLimits.STRICT
    if strict and spec.memory_declared and not task.memory_reached_bytes:
        return None
    return Need(
        category=spec.category,
        input_bytes=None if spec.input_bytes is None else rounded_up(spec.input_bytes),
        declared_bytes=spec.memory_request_bytes if spec.memory_declared else None,
        limit_bytes=spec.memory_limit_bytes,
        reached_bytes=task.memory_reached_bytes,
        failures=task.memory_requeues,
        whole=task.guard_kills > 0,
        used_bytes=rounded_up(task.memory_peak_bytes) if task.guard_kills else 0,
        once=strict and not spec.requeue,
    )


def rounded_up(size_bytes: int) -> int:
    """Return a size rounded up to INPUT_BITS significant binary digits."""
    step = 1 << max(0, size_bytes.bit_length() - INPUT_BITS)
    return -(-size_bytes // step) * step
