"""A fleet that lives by chance against the real HTTP API, store and engine, on a clock.

Thousands of devices fit into one process: each is a `ScriptedDevice`, time is a number,
and what happens next comes from a seed. What must hold whatever happens is checked
between any two events, and `settle` lets everything come to rest for the rest.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from slmops.control.records import Placed, StoredRollout
from slmops.domain.gate import Verdict
from slmops.domain.installation import State
from slmops.domain.members import Outcome
from slmops.domain.rollout import ENDED, RolloutState, WavePhase
from slmops.testing.control_in_process import ControlInProcess
from slmops.testing.scripted_device import ScriptedDevice

_QUIET_ROUNDS = 2
_STEPS = (
    (State.DOWNLOADING, State.PROBATION),
    (State.WAITING, State.DOWNLOADING, State.VERIFIED, State.STAGED, State.PROBATION),
    (),
)


@dataclass(kw_only=True, slots=True)
class FleetPlay:
    """A control plane, its devices, and chance."""

    control: ControlInProcess
    """Entered by the caller."""
    dice: random.Random
    """Decides who does what next."""
    devices: dict[str, ScriptedDevice] = field(default_factory=dict)
    """By name."""
    away: set[str] = field(default_factory=set)
    """Devices that do not speak for now."""

    def enrol(
        self,
        count: int,
        *,
        memory_mib: int = 512,
        site: str = "",
        prefix: str = "d",
        bad: Mapping[str, tuple[float, str]] | None = None,
    ) -> None:
        """Enrol devices.

        Args:
            count: how many.
            memory_mib: decides their class.
            site: label; none when empty.
            prefix: of their names.
            bad: release → chance that its trial fails on a device, and the reason.
        """
        for _ in range(count):
            name = f"{prefix}{len(self.devices)}"
            failing = {
                release: why
                for release, (chance, why) in (bad or {}).items()
                if self.dice.random() < chance
            }
            steps = self.dice.choice(_STEPS)
            device = self.control.enrol(
                name, memory_mib, bad_releases=failing, steps=steps
            )
            device.labels = {"site": site} if site else {}
            self.devices[name] = device

    def sync(self, names: Sequence[str]) -> None:
        """Let devices speak, one after the other, those that are not away."""
        for name in names:
            if name not in self.away:
                status = self.devices[name].sync(self.control.http)
                assert status in {200, 304}, (name, status)

    def event(self) -> None:
        """Let one thing happen: most often time passes, and some devices speak."""
        chosen: Callable[[], None] = self.dice.choices(
            (self._time, self._speak, self._leave, self._return, self._restart),
            weights=(6, 8, 1, 2, 1),
        )[0]
        chosen()
        check_invariants(self)

    def settle(self, *, rounds: int = 40, seconds: float = 1.0) -> None:
        """Let everybody return and speak until nothing moves any more."""
        self.away.clear()
        quiet = 0
        for _ in range(rounds):
            before = self._where()
            self.control.tick(seconds)
            self.sync(list(self.devices))
            check_invariants(self)
            quiet = quiet + 1 if self._where() == before else 0
            if quiet == _QUIET_ROUNDS:
                return

    def _where(self) -> list[object]:
        devices = [
            (one.active, one.assignment, one.installation)
            for one in self.devices.values()
        ]
        rollouts = [one.rollout for one in self.control.plane.store.rollouts()]
        return [*devices, *rollouts]

    def _time(self) -> None:
        self.control.tick(self.dice.choice((0.0, 1.0, 5.0)))

    def _speak(self) -> None:
        names = sorted(self.devices)
        self.sync(self.dice.sample(names, k=self.dice.randint(1, len(names))))

    def _leave(self) -> None:
        self.away.add(self.dice.choice(sorted(self.devices)))

    def _return(self) -> None:
        if self.away:
            self.away.discard(self.dice.choice(sorted(self.away)))

    def _restart(self) -> None:
        self.control.restart()


def check_invariants(play: FleetPlay) -> None:
    """See that nothing is where it must never be.

    Raises:
        AssertionError: a device runs what no rollout brought, or a wave went on without
            evidence.
    """
    store = play.control.plane.store
    rollouts = store.rollouts()
    _check_devices(play, rollouts)
    for stored in rollouts:
        _check_waves(play, stored, store.members(stored.rollout.id))


def _check_devices(play: FleetPlay, rollouts: Sequence[StoredRollout]) -> None:
    begun = {
        one.rollout.release
        for one in rollouts
        if one.rollout.state is not RolloutState.DRAFT
    }
    for device in play.devices.values():
        active = device.active
        if active is None:
            continue
        assert active.release in begun, (device.name, active)
        release, _ = play.control.plane.releases.load(active.release)
        given = {one.variant for one in device.targets.values()}
        assert active.variant in given, (device.name, active)
        assert active.variant in {one.digest for one in release.variants}
        assert active.release not in device.bad_releases, (device.name, active)


def _check_waves(
    play: FleetPlay, stored: StoredRollout, placed: Sequence[Placed]
) -> None:
    rollout = stored.rollout
    offered = [one.member for one in placed if one.member.offered_at is not None]
    for member in offered:
        assert member.wave <= rollout.wave or rollout.state in ENDED, member
    verdicts = play.control.plane.store.evaluations(rollout.id)
    for wave in range(rollout.wave + int(rollout.phase is WavePhase.PASSED)):
        here = [one.member for one in placed if one.member.wave == wave]
        if not here:
            continue
        passed = [
            one
            for one in verdicts
            if one.wave == wave
            and one.result.gate == "advance"
            and one.result.verdict is Verdict.PASS
        ]
        assert passed, (rollout, wave, "went on without a verdict that says so")
        # A device may fail later, under live traffic; none may be without an outcome.
        late = rollout.state is RolloutState.DONE
        assert late or all(one.outcome is not Outcome.PENDING for one in here), here
