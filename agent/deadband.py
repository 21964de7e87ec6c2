"""Whether a sample says something new: what did not move need not be sent.

Owns the bands. Pure. The rule kept: what the controller last got and what is true now never lie
further apart than one band, except in values that only the heartbeat carries.
"""

from __future__ import annotations

from agent.sampler import Sample

MEMORY_BAND_RATIO = 0.01  # of the limit
MEMORY_BAND_MAX_BYTES = 64 << 20
PERCENT_BAND = 5.0  # points of processor use or memory stall
CUSTOM_BAND_RATIO = 0.01  # of what was sent; nobody knows the unit of a metric of one's own
PRESSURE_PERCENT = 90.0  # from here on every sample counts
# A machine that would be full so soon is looked at more often.
FULL_SOON_SECONDS = 15.0


def memory_band_bytes(sample: Sample) -> float:
    """Return by how much memory must move to be news, in bytes."""
    return min(MEMORY_BAND_RATIO * sample.memory.total_bytes, MEMORY_BAND_MAX_BYTES)


def is_news(sent: Sample, now: Sample) -> bool:
    """Return whether `now` must be sent, `sent` being what the controller has."""
    if now.memory_percent >= PRESSURE_PERCENT:
        return True
    if now.memory.total_bytes != sent.memory.total_bytes or now.oom_kills != sent.oom_kills:
        return True
    if now.intake_stopped != sent.intake_stopped:
        return True
    band_bytes = memory_band_bytes(now)
    if abs(now.memory_used_bytes - sent.memory_used_bytes) >= band_bytes:
        return True
    if abs(now.memory.swap_used_bytes - sent.memory.swap_used_bytes) >= band_bytes:
        return True
    if _far(sent.cpu_percent, now.cpu_percent) or _far(sent.psi_some_percent, now.psi_some_percent):
        return True
    if sent.tasks.keys() != now.tasks.keys() or _custom_moved(sent, now):
        return True
    return any(abs(used - sent.tasks[key]) >= band_bytes for key, used in now.tasks.items())


def is_full_soon(sample: Sample) -> bool:
    """Return whether memory grows so fast that the next second matters."""
    growth = sample.memory_growth_bytes_per_second
    if growth is None or growth <= 0:
        return False
    return sample.memory.available_bytes < growth * FULL_SOON_SECONDS


def tasks_move(before: Sample, now: Sample) -> bool:
    """Return whether a task's memory has moved by a band since the sample before."""
    band_bytes = memory_band_bytes(now)
    return any(
        abs(used - before.tasks.get(key, 0)) >= band_bytes for key, used in now.tasks.items()
    )


def _custom_moved(sent: Sample, now: Sample) -> bool:
    """Return whether a metric of one's own came, went, or moved by more than its band."""
    if sent.custom is now.custom:
        return False
    if sent.custom.keys() != now.custom.keys():
        return True
    for name, value in now.custom.items():
        before = sent.custom[name]
        if value != before and abs(value - before) >= CUSTOM_BAND_RATIO * abs(before):
            return True
    return False


def _far(sent: float | None, now: float | None) -> bool:
    if sent is None or now is None:
        return sent is not now
    return abs(now - sent) >= PERCENT_BAND
