"""The crash matrix: an agent's life, cut at every step it takes on its disk.

One agent in this process, with real parts, lives through `LIFE` while
`slmops.testing.power_cut` records. Every moment gives folders: one as a kill leaves it,
many as a power cut may. From each a new agent starts, and must serve a verified model
at once, or say why it has none; then it goes on, and must end where the undisturbed
one did (`slmops.testing.random_kills` cuts again and again). `refuse` makes a disk
refuse steps instead.
"""

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from slmops.agent.journal import Journal
from slmops.agent.link import http_client
from slmops.agent.records import Installation
from slmops.domain.errors import SlmopsError
from slmops.domain.ids import Digest
from slmops.domain.installation import State
from slmops.testing.agent_in_process import AgentInProcess, publish_echo
from slmops.testing.clock import SimulatedClock
from slmops.testing.power_cut import Image, Moment, Recorder, write_image
from slmops.testing.raw_server import RawServer
from slmops.testing.sample_release import SAMPLE_TIME, PublishedSample
from slmops.testing.stage import echo_artefact
from slmops.testing.worker_in_thread import start_in_thread

_DATABASE = ("journal.db", "journal.db-wal")
MOST_STEPS = 120
_PAD = 80_000
ARTEFACTS = {
    # Spaces after JSON change nothing, but make a download of several blocks.
    1: echo_artefact() + b" " * _PAD,
    2: echo_artefact(start_delay_ms=1) + b" " * _PAD,
    3: echo_artefact(logprob=-4.0) + b" " * _PAD,
}
"""By version; the third answers otherwise than its card says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One assignment in an agent's life."""

    name: str
    """What it is about."""
    version: int
    """Assigned."""
    sequence: int
    """Of the assignment."""
    before: str | None
    """Served before it."""
    after: str
    """Served when it has ended."""


LIFE = (
    Phase(name="first", version=1, sequence=1, before=None, after="sample-1"),
    Phase(name="update", version=2, sequence=2, before="sample-1", after="sample-2"),
    Phase(name="bad", version=3, sequence=3, before="sample-2", after="sample-2"),
    Phase(name="back", version=1, sequence=4, before="sample-2", after="sample-1"),
)
"""A first model, a better one, one that fails its trial, and the way back."""
BAD = 3
"""The version that fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """A folder to start from, and where it came from."""

    phase: Phase
    label: str
    """State and step: ``staged: rename active``."""
    how: str
    """``kill`` or ``cut``."""
    image: Image
    at: float
    """Unix time, seconds."""


class RecordedJournal(Journal):
    """Says when its commits are safe, and what the agent is at."""

    recorder: Recorder | None = None

    def enter(self, installation: Installation) -> None:
        """Write a state, and name the steps after it."""
        super().enter(installation)
        if self.recorder is not None:
            self.recorder.context = str(installation.state)

    @contextmanager
    def _transaction(self) -> Iterator[object]:  # type: ignore[override]
        if self.recorder is None:
            with super()._transaction() as cursor:
                yield cursor
            return
        try:
            self.recorder.step("commit")
        except OSError:
            # As SQLite itself says it, not as we would.
            self._connection.execute("PRAGMA query_only=ON")
        try:
            with (
                self.recorder.committing("commit", _DATABASE),
                super()._transaction() as cursor,
            ):
                yield cursor
        finally:
            self._connection.execute("PRAGMA query_only=OFF")


@dataclass(slots=True)
class Theatre:
    """Where agents live: a control plane of one socket, and a folder for each of them."""

    scratch: Path
    server: RawServer
    client: httpx.Client
    published: PublishedSample
    born: int = 0

    def agent(self, image: Image | None, now: float) -> AgentInProcess:
        """Return an agent on a folder of its own, not started yet."""
        self.born += 1
        folder = self.scratch / f"device-{self.born}"
        if image is None:
            folder.mkdir()
        else:
            write_image(image, folder)
        return AgentInProcess(
            folder,
            self.server,
            self.client,
            self.published,
            clock=SimulatedClock(now),
            artefacts=ARTEFACTS,
            launch=start_in_thread,
            journal_kind=RecordedJournal,
        )

    def end(self, agent: AgentInProcess) -> None:
        """End an agent and remove its folder."""
        agent.close()
        shutil.rmtree(agent.folder, ignore_errors=True)

    def variant(self, version: int) -> Digest:
        """Return the digest of a version's artefact."""
        release, _ = self.published.catalog.load(f"sample-{version}")
        return release.variants[0].digest


@contextmanager
def theatre() -> Iterator[Theatre]:
    """Open one in memory where there is some: the disk is simulated anyway."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there
    with ExitStack() as stack:
        scratch = stack.enter_context(
            tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        )
        server = stack.enter_context(RawServer(replies=[]))
        client = stack.enter_context(http_client(server.url))
        published = publish_echo(Path(scratch) / "workspace", ARTEFACTS)
        yield Theatre(Path(scratch), server, client, published)


def assign(agent: AgentInProcess, phase: Phase) -> None:
    """Let the control plane bring a phase's assignment."""
    agent.assign(phase.version, phase.sequence, allow_downgrade=True)
    agent.loop._next_sync = 0.0


def live(agent: AgentInProcess, phase: Phase, *, always: bool = False) -> None:
    """Step until the phase's installation has ended.

    Args:
        agent: started.
        phase: assigned.
        always: a model must serve after every step.

    Raises:
        AssertionError: it does not end.
    """
    for _ in range(MOST_STEPS):
        wait_s = agent.loop.tried_step()
        assert agent.serves() or not always, agent.models.gateway.reason
        look_after(agent)
        agent.clock.advance(min(max(wait_s, 0.1), 5.0))
        if settled(agent, phase):
            return
    raise AssertionError(f"{phase.name} does not end: {agent.journal.installation()}")


def look_after(agent: AgentInProcess) -> None:
    """Do what the supervisor's thread does."""
    try:
        agent.models._watch_once()
    except SlmopsError:
        agent.models.artefact_lost = True


def settled(agent: AgentInProcess, phase: Phase) -> bool:
    """Tell whether nothing of the phase is left to do."""
    found = agent.journal.installation()
    if found is not None and found.state is not State.IDLE:
        return False
    if agent.loop._newest_sequence() < phase.sequence:
        return False
    if agent.serves() != phase.after:
        return False
    outcome = agent.journal.outcome_of(phase.sequence)
    return phase.version != BAD or outcome is not None


def record(stage: Theatre) -> Sequence[tuple[Phase, float, Moment]]:
    """Live once through `LIFE`; return all moments."""
    agent = stage.agent(None, SAMPLE_TIME)
    recorder = Recorder(folder=agent.folder)
    assert isinstance(agent.journal, RecordedJournal)
    agent.journal.recorder = recorder
    moments: list[tuple[Phase, float, Moment]] = []
    with recorder.recording():
        agent.loop.resume()
        for phase in LIFE:
            begin = len(recorder.moments)
            assign(agent, phase)
            live(agent, phase)
            now = agent.clock.now()
            moments += [(phase, now, moment) for moment in recorder.moments[begin:]]
    recorder.close()
    stage.end(agent)
    return moments


def kills_of(moments: Iterable[tuple[Phase, float, Moment]]) -> Iterator[Cut]:
    """Yield the folders that kills leave."""
    for phase, at, moment in moments:
        yield Cut(
            phase=phase, label=moment.label, how="kill", image=moment.kill(), at=at
        )


def cuts_of(
    moments: Iterable[tuple[Phase, float, Moment]], *, most: int, seed: int
) -> Iterator[Cut]:
    """Yield different folders that power cuts may leave, at most `most` a moment."""
    chance = random.Random(seed)  # noqa: S311 - repeatable
    for phase, at, moment in moments:
        for image in moment.cuts(chance, most=most):
            yield Cut(phase=phase, label=moment.label, how="cut", image=image, at=at)


def different(cuts: Iterable[Cut]) -> tuple[Cut, ...]:
    """Leave out folders that equal an earlier one of the same phase."""
    seen: dict[int, list[Cut]] = {}
    kept: list[Cut] = []
    for cut in cuts:
        key = hash((cut.phase.name, frozenset(cut.image.items())))
        same = seen.setdefault(key, [])
        if all(cut.image != other.image for other in same):
            same.append(cut)
            kept.append(cut)
    return tuple(kept)


def outlive(stage: Theatre, cut: Cut) -> str:
    """Start an agent from a folder, and see it serve and end well.

    Returns:
        What it served at once: ``old``, ``new`` or ``none``.

    Raises:
        AssertionError: it did not.
    """
    agent = stage.agent(cut.image, cut.at + 5.0)
    try:
        agent.loop.resume()
        look_after(agent)
        served = _served_at_once(agent, cut.phase)
        assign(agent, cut.phase)
        live(agent, cut.phase)
        require_order(stage, agent, cut.phase)
    finally:
        stage.end(agent)
    return served


def _served_at_once(agent: AgentInProcess, phase: Phase) -> str:
    serves = agent.serves()
    if serves is None:
        assert phase.before is None, f"no model: {agent.models.gateway.reason}"
        assert agent.models.gateway.reason
        return "none"
    new = f"sample-{phase.version}"
    assert serves in {phase.before, phase.after, new}, serves
    return "new" if serves == new else "old"


def require_order(stage: Theatre, agent: AgentInProcess, phase: Phase) -> None:
    """See that an agent at rest serves the right model and left nothing lying about.

    Raises:
        AssertionError: it did not.
    """
    slots = agent.slots.read()
    assert slots.active is not None
    assert (agent.serves(), slots.active.release) == (phase.after, phase.after)
    kept = {slots.active.variant}
    agent.slots.verified(slots.active)
    if slots.previous is not None:
        kept.add(slots.previous.variant)
        agent.slots.verified(slots.previous)
    assert set(agent.slots.blobs.digests()) == kept
    quarantined = {entry.variant for entry in agent.journal.quarantined()}
    bad = stage.variant(BAD)
    assert quarantined <= {bad}, "a good variant is in quarantine"
    assert (bad in quarantined) or phase.version != BAD
    strays = [
        path.relative_to(agent.folder)
        for path in agent.folder.rglob("*")
        if path.name.startswith((".partial-", "tmp")) or path.parent.name == "incoming"
    ]
    assert strays == [], "left lying about"
    assert phase.sequence in {one.assignment for one in agent.journal.outcomes()} or (
        agent.journal.lost is not None or slots.active.assignment == phase.sequence
    )


def refuse(
    stage: Theatre, begin: Cut, *, at: int, steps: int, error: int
) -> str | None:
    """Let the disk refuse some steps of a phase; see the model serve meanwhile.

    Args:
        stage: where.
        begin: before the phase.
        at: first step that is refused.
        steps: how many are.
        error: ``errno.ENOSPC`` (which allows removing) or ``errno.EROFS``.

    Returns:
        The step refused first; None when the phase takes fewer.

    Raises:
        AssertionError: serving stopped, or the phase did not end well afterwards.
    """
    agent = stage.agent(begin.image, begin.at)
    recorder = Recorder(folder=agent.folder, keep=False)
    assert isinstance(agent.journal, RecordedJournal)
    refused: list[str] = []
    taken = 0

    def count(label: str) -> None:
        nonlocal taken
        removes = error == errno.ENOSPC and ": remove " in f": {label}"
        if removes or ": inside " in label:
            return
        taken += 1
        if at < taken <= at + steps:
            refused.append(label)
            raise OSError(error, os.strerror(error), "")

    recorder.on_step = count
    try:
        agent.loop.resume()
        look_after(agent)
        agent.journal.recorder = recorder
        assign(agent, begin.phase)
        with recorder.recording():
            live(agent, begin.phase, always=begin.phase.before is not None)
        # What could not be removed goes at the next start.
        recorder.on_step = lambda _: None
        agent.restart()
        look_after(agent)
        require_order(stage, agent, begin.phase)
    finally:
        recorder.close()
        stage.end(agent)
    return refused[0] if refused else None
