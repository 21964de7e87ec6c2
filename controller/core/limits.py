"""Every default and bound of the controller, in one table; nothing else holds such a number."""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.growth import GrowthPolicy
from controller.core.model import MemoryLimits

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
MILLISECOND_NS = 1_000_000
SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS

PROTOCOL_VERSION = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds a controller runs with. Bytes and nanoseconds throughout."""

    # The cycle.
    interval_ns: int = 6 * SECOND_NS  # the longest gap between two cycles
    evaluation_gap_ns: int = 200 * MILLISECOND_NS  # the shortest gap between two caused by samples

    # Nodes.
    nodes_max: int = 1_000
    tasks_running_max: int = 1_000
    sample_interval_ns: int = 1 * SECOND_NS
    heartbeat_ns: int = 10 * SECOND_NS
    node_unreachable_ns: int = 30 * SECOND_NS
    node_down_ns: int = 120 * SECOND_NS
    # A value holds for three heartbeats, then the metric is NO_DATA.
    sample_hold_ns: int = 30 * SECOND_NS

    # Attempts.
    attempt_lease_ns: int = 15 * MINUTE_NS
    cancel_grace_ns: int = 10 * SECOND_NS
    cancel_grace_max_ns: int = 3_600 * SECOND_NS
    lease_margin_ns: int = 30 * SECOND_NS  # clocks and queues on both sides of a lost lease
    # Attempts that outgrew their own limit, or that a killer outside ended.
    memory_requeues_max: int = 5
    # Others that memory ended by no fault of the task's are not counted among those; far more of
    # them than a cluster in order ever causes, so that none goes on without end.
    memory_spared_max: int = 100
    # Before the next one; not after the guard's own, who has made room already.
    memory_spared_delay_ns: int = 1 * SECOND_NS

    # Tasks.
    tasks_open_max: int = 200_000
    tasks_per_call_max: int = 10_000
    memory_request_default_bytes: int = 1 * GIB
    memory_request_max_bytes: int = 1 << 50
    cpus_default: float = 1.0
    cpus_max: float = 4_096.0
    priority_max: int = 1_000_000
    retries_max: int = 100
    time_limit_max_ns: int = 10 * 365 * 24 * 3_600 * SECOND_NS  # within the 2^63 of a store
    command_bytes_max: int = 128 * KIB
    environment_bytes_max: int = 128 * KIB
    name_length_max: int = 200
    request_id_length_max: int = 64
    submissions_kept: int = 100_000
    gpus_max: int = 1_024
    retry_delay_ns: int = 1 * SECOND_NS
    retry_delay_max_ns: int = 1 * 3_600 * SECOND_NS  # of the doubled one too
    dependencies_max: int = 1_000  # of one task
    array_elements_max: int = 100_000
    constraint_length_max: int = 1_000
    user_tasks_max: int = 0  # of one user placed at once; 0: no bound
    fair_share: bool = True  # of equal priority, who uses less memory goes first
    fair_share_half_life_ns: int = 7 * 24 * 3_600 * SECOND_NS  # of use that is past; 0 forgets it

    # Reservations of memory for something that is not a task.
    reservations_max: int = 100
    reservation_ttl_min_ns: int = 1 * SECOND_NS
    reservation_ttl_max_ns: int = 7 * 24 * 3_600 * SECOND_NS

    # Tasks of a category that always ends soon are sent ahead to nodes whose CPUs are all taken, so
    # that the next one starts at once; the agent holds them until CPUs are free.
    brief_ns: int = 100 * MILLISECOND_NS  # the longest of its latest runs
    brief_runs_min: int = 8
    ahead_per_cpu: int = 12  # 0 sends nothing ahead
    ahead_held_max_ns: int = 2 * SECOND_NS  # what is held for longer is called back
    ahead_pause_ns: int = 30 * SECOND_NS  # after that nothing is sent ahead to its node

    # A task that others have overtaken for this long gets a node kept free for it.
    overtaken_max_ns: int = 30 * SECOND_NS

    # The share of a machine that tasks never get.
    system_reserve_ratio: float = 0.05
    system_reserve_min_bytes: int = 256 * MIB

    # Pressure: percent of the capacity used, or the time in which it is foreseen to be full.
    pressure_warn_percent: float = 80.0
    pressure_high_percent: float = 90.0
    pressure_critical_percent: float = 95.0
    pressure_warn_ns: int = 60 * SECOND_NS
    pressure_high_ns: int = 15 * SECOND_NS
    pressure_critical_ns: int = 3 * SECOND_NS

    # Memory of tasks.
    memory_limits: MemoryLimits = MemoryLimits.ELASTIC
    # The share of what a running task is still expected to grow by that is promised to others too.
    overcommit_share: float = 1.0 - GrowthPolicy().rest_share
    # Placed at once of a category of which nothing is known; a wrong guess costs an attempt where
    # limits are strict, and little where a task may outgrow it.
    pilots_max: int = 1
    pilots_elastic_max: int = 3
    pilot_ns: int = 500 * MILLISECOND_NS  # how long one has run before it tells about the others
    # One that nothing was measured of for so long keeps the others back no more: it may hang, or
    # its node may.
    pilot_silent_ns: int = 10 * SECOND_NS
    categories_max: int = 2_000  # of which what was learned is kept; the longest unused goes first
    category_attempts_max: int = 64  # kept of each, and read again at the start

    # Output and history.
    output_tail_bytes: int = 64 * KIB
    log_read_bytes_max: int = 256 * KIB
    history_tasks_max: int = 1_000_000
    history_age_ns: int = 30 * 24 * 3_600 * SECOND_NS
    alerts_resolved_kept_ns: int = 15 * MINUTE_NS
    alerts_resolved_max: int = 10_000  # beyond it the oldest is forgotten early

    # Rule files and notices.
    rules_max: int = 1_000
    rule_file_bytes_max: int = 1 * MIB
    notices_queued_max: int = 1_000  # beyond it the oldest is dropped

    # Queues.
    outbox_messages_max: int = 10_000
    events_kept_max: int = 10_000  # what happened lately; beyond it the oldest is dropped
    event_followers_max: int = 100
    events_queued_max: int = 100_000

    # The pool; 0 derives it from nodes_max and the metrics kept.
    pool_bytes: int = 0

    @property
    def lost_after_ns(self) -> int:
        """Return the silence after which an agent has ended all its attempts by itself."""
        return self.attempt_lease_ns + self.cancel_grace_ns + self.lease_margin_ns

    def system_reserve_bytes(self, total_bytes: int) -> int:
        """Return what a machine of that size keeps for itself, in bytes."""
        return max(self.system_reserve_min_bytes, int(total_bytes * self.system_reserve_ratio))


DEFAULT_LIMITS = Limits()
