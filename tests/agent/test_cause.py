"""Whose doing an end was: the table of what was seen and what follows."""

from __future__ import annotations

import pytest

from agent.attempt import Evidence, GuardStep, GuardStepKind, OomCause, Outcome
from agent.cause import ASK_COUNTS_NS, judge

ASK = GuardStep(0, GuardStepKind.ASK, (1, 1), 90, 100)
KILL = GuardStep(0, GuardStepKind.KILL, (1, 1), 90, 100)
SOON, LATE = ASK_COUNTS_NS, ASK_COUNTS_NS + 1

NOTHING = Evidence()
OWN = Evidence(own_limit=True)
FULL = Evidence(node_full=True)
BOTH = Evidence(own_limit=True, node_full=True)
SHORT = Evidence(memory_short=True)
OOMD = Evidence(oomd_kill=True)
REFUSED = Evidence(memory_refused=True)


@pytest.mark.parametrize(
    ("outcome", "evidence", "steps", "ended_by_agent", "cause"),
    [
        # The kernel's counter tells, and never the exit code.
        (Outcome(signal=9), NOTHING, (), False, OomCause.UNSPECIFIED),
        (Outcome(exit_code=137), NOTHING, (), False, OomCause.UNSPECIFIED),
        (Outcome(signal=9, oom_kill_count=1), NOTHING, (), False, OomCause.OWN_LIMIT),
        (Outcome(signal=9, oom_kill_count=1), OWN, (), False, OomCause.OWN_LIMIT),
        (Outcome(exit_code=1, oom_kill_count=2), OWN, (), False, OomCause.OWN_LIMIT),
        (Outcome(signal=9, oom_kill_count=1), FULL, (), False, OomCause.BYSTANDER),
        (Outcome(exit_code=137, oom_kill_count=1), FULL, (), False, OomCause.BYSTANDER),
        (Outcome(signal=9, oom_kill_count=2), BOTH, (), False, OomCause.OWN_LIMIT),
        (Outcome(exit_code=0, oom_kill_count=1), OWN, (), False, OomCause.CHILD_ONLY),
        (Outcome(exit_code=0, oom_kill_count=1), FULL, (), False, OomCause.CHILD_ONLY),
        (Outcome(signal=15, oom_kill_count=1), OWN, (), False, OomCause.UNSPECIFIED),
        # A stop does not take back that the kernel killed.
        (Outcome(signal=9, oom_kill_count=1), OWN, (), True, OomCause.OWN_LIMIT),
        # The guard, when it is what ended it.
        (Outcome(signal=9), NOTHING, (KILL,), False, OomCause.GUARD),
        (Outcome(signal=9, oom_kill_count=1), OWN, (KILL,), False, OomCause.GUARD),
        (Outcome(exit_code=137), NOTHING, (KILL,), False, OomCause.GUARD),
        (Outcome(exit_code=0), NOTHING, (KILL,), False, OomCause.UNSPECIFIED),
        (Outcome(signal=15, ended_at_ns=LATE), NOTHING, (ASK,), False, OomCause.GUARD),
        (Outcome(exit_code=143, ended_at_ns=LATE), NOTHING, (ASK,), False, OomCause.GUARD),
        (Outcome(exit_code=1, ended_at_ns=SOON), NOTHING, (ASK,), False, OomCause.GUARD),
        (Outcome(exit_code=1, ended_at_ns=LATE), NOTHING, (ASK,), False, OomCause.UNSPECIFIED),
        (Outcome(exit_code=0, ended_at_ns=SOON), NOTHING, (ASK,), False, OomCause.GUARD),
        (Outcome(exit_code=0, ended_at_ns=LATE), NOTHING, (ASK,), False, OomCause.UNSPECIFIED),
        (Outcome(signal=9, oom_kill_count=1, ended_at_ns=LATE), FULL, (ASK,), False,
         OomCause.BYSTANDER),
        # Whoever ends in good order for being asked may do so a moment before the kill.
        (Outcome(exit_code=0, ended_at_ns=SOON), NOTHING, (ASK, KILL), False, OomCause.GUARD),
        (Outcome(exit_code=0, ended_at_ns=LATE), NOTHING, (ASK, KILL), False,
         OomCause.UNSPECIFIED),
        (Outcome(signal=9, ended_at_ns=LATE), NOTHING, (ASK, KILL), False, OomCause.GUARD),
        # Another killer: a signal that nobody here sent, while memory was short.
        (Outcome(signal=9), SHORT, (), False, OomCause.OUTSIDE),
        (Outcome(signal=15), SHORT, (), False, OomCause.OUTSIDE),
        (Outcome(signal=11), SHORT, (), False, OomCause.UNSPECIFIED),
        (Outcome(exit_code=137), SHORT, (), False, OomCause.UNSPECIFIED),
        (Outcome(signal=9), SHORT, (), True, OomCause.UNSPECIFIED),
        (Outcome(signal=9), OOMD, (), False, OomCause.OUTSIDE),
        (Outcome(exit_code=137), OOMD, (), False, OomCause.OUTSIDE),
        (Outcome(exit_code=0), OOMD, (), False, OomCause.UNSPECIFIED),
        # Whatever fails while the kernel refuses memory to the node's tasks.
        (Outcome(exit_code=3), REFUSED, (), False, OomCause.BYSTANDER),
        (Outcome(signal=6), REFUSED, (), False, OomCause.BYSTANDER),
        (Outcome(exit_code=0), REFUSED, (), False, OomCause.UNSPECIFIED),
        (Outcome(exit_code=3), REFUSED, (), True, OomCause.UNSPECIFIED),
        (Outcome(signal=9, oom_kill_count=1), REFUSED, (), False, OomCause.OWN_LIMIT),
        # What never ran was ended by nobody.
        (Outcome(start_error="exec: no"), SHORT, (KILL,), False, OomCause.UNSPECIFIED),
    ],
)  # fmt: skip
def test_each_end_has_its_cause(
    outcome: Outcome,
    evidence: Evidence,
    steps: tuple[GuardStep, ...],
    ended_by_agent: bool,
    cause: OomCause,
) -> None:
    guard = steps[-1] if steps else None
    asked = ASK if ASK in steps else None
    found, step = judge(outcome, evidence, guard=guard, asked=asked, ended_by_agent=ended_by_agent)
    assert found is cause
    assert step == (guard if cause is OomCause.GUARD else None)
