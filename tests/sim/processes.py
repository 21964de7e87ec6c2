"""The processes of a simulated world: they run for a while and end in every way there is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sim.timeline import MILLISECOND_NS, SECOND_NS, Due

from agent.attempt import Assignment, Evidence, Exited, Outcome

if TYPE_CHECKING:
    from sim.agents import Agent
    from sim.machines import Machine

BRIEF = ("blink",)  # what always ends soon, or nearly so
BRIEF_MAX_NS = 50 * MILLISECOND_NS
KILL_MAX_NS = 2 * SECOND_NS
# How processes end by themselves, and how often.
OUTCOMES = (
    (
        Outcome(exit_code=0),
        Outcome(exit_code=1),
        Outcome(exit_code=137),  # by its own wish: no sign of want of memory
        Outcome(signal=11),
        Outcome(signal=9, oom_kill_count=1),
        Outcome(exit_code=0, oom_kill_count=1),
    ),
    (70, 5, 5, 5, 10, 5),
)
# What was seen around a kernel's kill: it was for the task's own limit, or for the node's.
EVIDENCE = (Evidence(own_limit=True), Evidence(node_full=True))


class Process:
    """A task's process and its tree."""

    def __init__(self, machine: Machine, agent: Agent, assignment: Assignment) -> None:
        world = machine.world
        chance = world.chance
        self.machine = machine
        self.key = assignment.key
        self.used_bytes = chance.randint(1, max(1, assignment.memory_request_bytes))
        self._agent = agent
        self._began_ns = world.timeline.now_ns()
        self._stubborn = chance.random() < 0.2
        self._alive = True
        self._outcome = chance.choices(*OUTCOMES)[0]
        self._left_ns = 0  # of its work, while it is paused
        longest_ns = chance.choice(world.longest_ns)
        if assignment.command[0] in BRIEF and chance.random() < 0.95:  # no rule holds always
            longest_ns = BRIEF_MAX_NS
        machine.processes[self.key] = self
        world.laws.process_began(machine, self.key)
        self._end = self._end_after(chance.randint(1, longest_ns))

    def freeze(self, paused: bool) -> None:
        """Stand still, or go on with what is left."""
        now_ns = self.machine.world.timeline.now_ns()
        if paused and self._end is not None:
            self._left_ns = max(1, self._end.at_ns - now_ns)
            self._end.cancel()
            self._end = None
        elif not paused and self._end is None:
            self._end = self._end_after(self._left_ns)

    def _end_after(self, delay_ns: int) -> Due | None:
        return self.machine.world.timeline.after(delay_ns, lambda: self._exit(self._outcome))

    def signal(self, number: int) -> None:
        """SIGTERM is heard, late or not at all; SIGKILL always is, after a while."""
        world = self.machine.world
        if number == 15:
            self.freeze(False)  # as `agent.runner` does: what is paused takes no signal
        if number == 15 and self._stubborn:
            return
        killed = number == 9 or world.happens(0.8)
        outcome = Outcome(signal=number) if killed else Outcome(exit_code=0)
        delay_ns = world.chance.randint(0, KILL_MAX_NS)
        world.timeline.after(delay_ns, lambda: self._exit(outcome))

    def vanish(self) -> None:
        """Die with the agent or the machine."""
        if self._alive:
            self._alive = False
            del self.machine.processes[self.key]
            self.machine.world.laws.process_gone(self.machine, self.key)

    def _exit(self, outcome: Outcome) -> None:
        if not self._alive:
            return
        self.vanish()
        world = self.machine.world
        now_ns = world.timeline.now_ns()
        told = Exited(
            self.key,
            replace(
                outcome,
                memory_peak_bytes=self.used_bytes,
                started_at_ns=self._began_ns,
                ended_at_ns=now_ns,
            ),
            world.chance.choice(EVIDENCE) if outcome.oom_kill_count else Evidence(),
        )
        world.timeline.after(
            world.chance.randint(0, 50 * MILLISECOND_NS), lambda: self._agent.happen(told)
        )
