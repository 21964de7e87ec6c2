"""Whose doing an end for want of memory was.

Owns the decision; each cause has its own answer in the controller. The rules kept: the kernel's
counter tells a kernel kill and an exit code never does; what the agent itself ended for another
reason is nobody else's doing; a program that ends in good order because it was asked to has not
finished its work, whatever its exit code.

Pure: no clock, no IO.
"""

from __future__ import annotations

from agent.attempt import Evidence, GuardStep, GuardStepKind, OomCause, Outcome

SIGKILL = 9
SIGTERM = 15
TERMINATED = 128 + SIGTERM  # what a shell exits with when SIGTERM has ended its child
# A program that was asked to end and ends within this time ended for being asked. One that ignored
# it, and ends later, ended by itself; death by SIGTERM counts at any time.
ASK_COUNTS_NS = 30_000_000_000


def judge(
    outcome: Outcome,
    evidence: Evidence,
    *,
    guard: GuardStep | None = None,
    asked: GuardStep | None = None,
    ended_by_agent: bool = False,
) -> tuple[OomCause, GuardStep | None]:
    """Return the cause, and the guard's step when it was that one.

    `guard` is the last step by which the guard wanted the attempt ended, `asked` the last by which
    it asked it to end, also when it was killed after that; `ended_by_agent` tells a stop, a time
    limit or a lost lease.
    """
    if outcome.start_error:
        return OomCause.UNSPECIFIED, None
    if guard is not None and _ended_by_guard(outcome, guard, asked):
        return OomCause.GUARD, guard
    if outcome.oom_kill_count > 0:
        return _killed_by_kernel(outcome, evidence), None
    if not ended_by_agent and _ended_outside(outcome, evidence):
        return OomCause.OUTSIDE, None
    # At the end of a node's memory system calls of its tasks fail: what fails then, and by what
    # code, says nothing about the task.
    if not ended_by_agent and evidence.memory_refused and outcome.exit_code != 0:
        return OomCause.BYSTANDER, None
    return OomCause.UNSPECIFIED, None


def _ended_by_guard(outcome: Outcome, guard: GuardStep, asked: GuardStep | None) -> bool:
    if guard.kind is GuardStepKind.KILL:
        # With 0 it ended before the signal came: it was done, or it did as it had been asked to.
        return outcome.exit_code != 0 or (asked is not None and _is_soon(outcome, asked))
    if outcome.signal == SIGTERM or outcome.exit_code == TERMINATED:
        return True
    # Also with exit code 0: whoever saves its work when it is asked to end would be taken for done.
    return _is_soon(outcome, guard)


def _is_soon(outcome: Outcome, asked: GuardStep) -> bool:
    return 0 <= outcome.ended_at_ns - asked.taken_at_ns <= ASK_COUNTS_NS


def _killed_by_kernel(outcome: Outcome, evidence: Evidence) -> OomCause:
    """Tell which kernel kill it was, and whether it ended the attempt.

    A shell may have lost a child and have gone on to a good end.
    """
    if outcome.exit_code == 0:
        return OomCause.CHILD_ONLY
    if outcome.signal != SIGKILL and outcome.exit_code is None:
        return OomCause.UNSPECIFIED  # it ended of another signal, or nobody knows of what
    if evidence.node_full and not evidence.own_limit:
        return OomCause.BYSTANDER
    return OomCause.OWN_LIMIT


def _ended_outside(outcome: Outcome, evidence: Evidence) -> bool:
    if evidence.oomd_kill and outcome.exit_code != 0:
        return True
    return evidence.memory_short and outcome.signal in (SIGKILL, SIGTERM)
