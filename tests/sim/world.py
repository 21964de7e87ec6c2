"""A whole cluster in one process from one seed: controller, agents, network, disks and people.

The rule kept: everything that happens is drawn from the seed, so a seed is a story that can be
told again, word for word.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from random import Random

from sim.agents import Agent
from sim.controllers import LIMITS, NODE_MEMORY_BYTES, OPENING, Controller, ControllerCrash
from sim.laws import LawBroken, Laws
from sim.machines import Machine
from sim.network import Link, Network
from sim.operators import Operators
from sim.timeline import MILLISECOND_NS, SECOND_NS, Timeline
from sim.told import told
from sim.users import Users
from support.stores import MemoryDisk

from agent.attempt import Report
from controller.core.commands import Command
from controller.core.model import MemoryLimits
from controller.core.promise import capacity_bytes

STORY_LINES_KEPT = 60
STEPS_NS = (20 * MILLISECOND_NS, 200 * MILLISECOND_NS, SECOND_NS, 3 * SECOND_NS)
# How long tasks run at most; one is drawn for each.
SHORT_TASKS_NS = (MILLISECOND_NS, SECOND_NS, 20 * SECOND_NS, 200 * SECOND_NS)
LONG_TASKS_NS = (SECOND_NS, 300 * SECOND_NS, 300 * SECOND_NS)
REST_STEPS_MAX = 200
# What happens in a step, and how often. Each world has more of some and none of others, so that
# faults which hide each other (an agent that often dies never loses its lease) come apart.
DEEDS = {
    "nothing": 0.55,
    "submit": 0.25,
    "cancel": 0.05,
    "cordon": 0.02,
    "uncordon": 0.02,
    "control": 0.04,
    "drain": 0.01,
    "reserve": 0.02,
    "agent dies": 0.03,
    "power fails": 0.01,
    "agent leaves": 0.01,
    "stream breaks": 0.03,
    "machine is cut off": 0.01,
    "controller dies": 0.01,
    "guard kills": 0.03,
    "guard stops intake": 0.02,
    "long wait": 0.01,
}
ALWAYS = ("nothing", "submit")
REST_STEP_NS = 10 * SECOND_NS


@dataclass(frozen=True, slots=True)
class Rates:
    """How often what goes wrong: chances at each occasion, 0 to 1."""

    crash_point: float = 0.002  # at each point where a controller can die in the middle
    store_fails: float = 0.002
    slow_commit: float = 0.3
    slow_turn: float = 0.03
    break_at_send: float = 0.03  # what was saved is not told
    call_lost: float = 0.2
    start_fails: float = 0.03
    agent_crashes_between: float = 0.002  # between two commands of its lifecycle
    agent_dies_at_send: float = 0.0  # with its reports under way


CALM = Rates(
    crash_point=0.0,
    store_fails=0.0,
    slow_turn=0.0,
    break_at_send=0.0,
    call_lost=0.0,
    agent_crashes_between=0.0,
    agent_dies_at_send=0.0,
)


class World:
    """One story. Use `run`."""

    def __init__(self, seed: int, *, tell: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self._tell = tell
        self.chance = Random(seed)
        # Some controllers are slow all the time, some agents die with their reports under way:
        # together the last words of one process and the first of the next are in one turn.
        self.rates = Rates(
            slow_turn=self.chance.choice((0.03, 0.3)),
            agent_dies_at_send=self.chance.choice((0.0, 0.03)),
        )
        self.timeline = Timeline()
        self.network = Network(self.timeline, self.chance)
        self.disk = MemoryDisk()
        self.reports: dict[str, list[Report]] = {}  # all that each agent ever made
        # Half of the worlds let tasks outgrow their sizes.
        elastic = MemoryLimits.ELASTIC if self.chance.random() < 0.5 else MemoryLimits.STRICT
        self.limits = replace(LIMITS, memory_limits=elastic)
        self.capacity_bytes = capacity_bytes(NODE_MEMORY_BYTES, None, LIMITS)
        self.laws = Laws(self)
        self.story: deque[str] = deque(maxlen=STORY_LINES_KEPT)
        self._digest = blake2b(digest_size=16)
        self._instances = 0
        self._lives = 0
        self.controller: Controller | None = None
        self.start_controller()
        self.machines = [
            Machine(self, f"node-{number}", number, self.chance.choice((2.0, 4.0)))
            for number in range(1, self.chance.randint(2, 4))
        ]
        if self.happens(0.2):  # a second agent on the first machine, under a name of its own
            self.machines.append(Machine(self, "node-9", 1, 2.0))
        if self.happens(0.1):  # another machine under a name that is taken
            self.machines.append(Machine(self, "node-1", 99, 2.0))
        self.users = Users(self)
        self.operators = Operators(self)
        self._pace = self.chance.choice((1, 1, 4))
        lengths: list[tuple[int, ...]] = [SHORT_TASKS_NS, SHORT_TASKS_NS, LONG_TASKS_NS]
        self.longest_ns = self.chance.choice(lengths)
        self._deeds = {
            deed: ratio if deed in ALWAYS else ratio * self.chance.choice((0.0, 0.3, 1.0, 3.0))
            for deed, ratio in DEEDS.items()
        }

    def run(self, steps: int) -> str:
        """Live through that many steps, come to rest, and return the digest of all that happened.

        Raises:
            LawBroken: a promise did not hold.
        """
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            for _ in range(steps):
                self._step()
            self._come_to_rest()
        finally:
            logging.disable(disabled)
            if self.controller is not None:
                self.controller.die()
        return self._digest.hexdigest()

    # What the parts ask for.

    def happens(self, ratio: float) -> bool:
        """Draw whether something of this chance happens."""
        return self.chance.random() < ratio

    def nothing(self) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Add a line to the story."""
        seconds = (self.timeline.now_ns() % (1_000_000 * SECOND_NS)) / SECOND_NS
        line = f"{seconds:10.3f}  {line}"
        self._digest.update(line.encode())
        self.story.append(line)
        if self._tell is not None:
            self._tell(line)

    def trace(self, commands: Iterable[Command]) -> None:
        """Note the commands of a turn."""
        for command in commands:
            self._digest.update(repr(command).encode())
            self.say(told(command))

    def crash_point(self, where: str) -> None:
        """Let the controller die here, perhaps."""
        if self.happens(self.rates.crash_point):
            raise ControllerCrash(where)

    def new_instance_id(self, machine: Machine) -> str:
        """Return the identity of a new agent process."""
        self._instances += 1
        instance_id = f"agent-{self._instances}"
        self.say(f"{instance_id} begins on {machine.machine_id}")
        return instance_id

    def open_link(self, agent: Agent) -> Link:
        """Open a stream to the controller; cut off from it, nothing arrives."""
        link = self.network.open()
        if self.timeline.now_ns() < agent.machine.cut_off_until_ns:
            link.break_silently()
        link.up.target = _Door(self, link)
        return link

    def start_controller(self) -> None:
        """Start a controller from what is saved."""
        if self.controller is None:
            self._lives += 1
            self.say(f"controller {self._lives} begins")
            self.controller = Controller(self)

    def crash_controller(self, where: str) -> None:
        """Kill the controller; another one comes."""
        if self.controller is None:
            return
        self.say(f"controller {self._lives} dies: {where}")
        controller, self.controller = self.controller, None
        controller.die()
        longest_ns = self.chance.choice((SECOND_NS, SECOND_NS, 30 * SECOND_NS, 120 * SECOND_NS))
        self.timeline.after(self.chance.randint(0, longest_ns), self.start_controller)

    # Steps.

    def _step(self) -> None:
        (deed,) = self.chance.choices(list(self._deeds), list(self._deeds.values()))
        self._do(deed, self.chance.choice(self.machines))
        step_ns = self.chance.choice(STEPS_NS) * self._pace
        self._pass(self.chance.randint(0, step_ns))

    def _pass(self, time_ns: int) -> None:
        """Let time pass, and look at all that always holds inside."""
        self.timeline.run_until(self.timeline.now_ns() + time_ns)
        if self.controller is not None:
            self.controller.cluster.check()
        for machine in self.machines:
            if machine.agent is not None:
                machine.agent.lifecycle.check()

    def _do(self, deed: str, machine: Machine) -> None:
        chance, agent = self.chance, machine.agent
        soon_ns = chance.choice((100 * MILLISECOND_NS, 20 * SECOND_NS))
        match deed:
            case "submit" | "cancel" | "control":
                getattr(self.users, deed)()
            case "cordon" | "uncordon" | "drain" | "reserve":
                getattr(self.operators, deed)()
            case "agent dies":
                machine.agent_dies(again_ns=chance.randint(0, soon_ns))
            case "power fails":
                machine.power_off(again_ns=chance.randint(SECOND_NS, 150 * SECOND_NS))
            case "agent leaves" if agent is not None:
                agent.leave()
            case "stream breaks" if agent is not None and agent.link is not None:
                self.say(f"the stream of {agent.instance_id} breaks")
                agent.link.break_silently()
            case "guard kills" if agent is not None:
                agent.guard_kills()
            case "guard stops intake" if agent is not None:
                agent.intake_stopped = not agent.intake_stopped
            case "machine is cut off":
                away_ns = chance.randint(SECOND_NS, 250 * SECOND_NS)
                machine.cut_off(self.timeline.now_ns() + away_ns)
            case "controller dies":
                self.crash_controller("killed")
            case "long wait":
                wait_ns = chance.randint(0, 60 * SECOND_NS)
                self.timeline.run_until(self.timeline.now_ns() + wait_ns)

    def _come_to_rest(self) -> None:
        """Let nothing go wrong any more, until everything has ended."""
        self.rates = CALM
        self.longest_ns = (SECOND_NS,)
        self.network.late_ratio = 0.0
        self.say("no more faults")
        for machine in self.machines:
            machine.cut_off_until_ns = 0
            if machine.agent is not None:
                machine.agent.intake_stopped = False
        uncordoned: Controller | None = None
        for _ in range(REST_STEPS_MAX):
            self._pass(REST_STEP_NS)
            if self.controller is None:
                continue
            if self.controller is not uncordoned:
                uncordoned = self.controller
                self.operators.uncordon_all()
            self.users.let_go()
            if self._is_at_rest():
                break
        self.laws.at_rest()

    def _is_at_rest(self) -> bool:
        if self.users.waiting or any(machine.agent is None for machine in self.machines):
            return False
        try:
            self.laws.at_rest()
        except LawBroken:
            return False
        return True


class _Door:
    """The controller's port: takes new streams."""

    def __init__(self, world: World, link: Link) -> None:
        self._world = world
        self._link = link

    def receive(self, data: bytes) -> None:
        """Take the call, or refuse it when nobody listens."""
        assert data == OPENING
        if self._world.controller is None:
            self._link.close_from_server()
        else:
            self._world.controller.accept(self._link)

    def ended(self) -> None:
        """The call was given up before it arrived."""
