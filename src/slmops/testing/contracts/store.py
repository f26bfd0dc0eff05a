"""What every `Store` promises: subclass `StoreContract` and give it a `store` fixture."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from slmops.control.records import (
    AuditEntry,
    Commit,
    DeviceRecord,
    Evaluation,
    LeftOut,
    StoredRollout,
)
from slmops.control.store import Store
from slmops.domain.blueprint import RolloutPolicy
from slmops.domain.errors import ConflictError, NotFoundError, UntrustedError
from slmops.domain.gate import GateResult, Verdict
from slmops.domain.installation import State
from slmops.domain.members import Outcome
from slmops.domain.rollout import Rollout, RolloutState
from slmops.testing.contracts.store_samples import (
    BEFORE,
    FACTS,
    VARIANT,
    change,
    enrol,
    installed,
    offer,
    report,
    start,
)


class StoreContract:
    """The promises, one test each."""

    @pytest.fixture
    def store(self) -> Store:
        """Return an empty store; subclasses do."""
        raise NotImplementedError

    @pytest.fixture
    def reopen(self) -> Callable[[], Store]:
        """Return a function that opens the same database anew; subclasses do."""
        raise NotImplementedError

    def test_a_token_enrols_one_device_once(self, store: Store) -> None:
        enrol(store, "a")
        other = DeviceRecord(id="b", public_key="cd" * 32, enrolled_at=1.0, facts=FACTS)
        with pytest.raises(UntrustedError, match="unknown, used or expired"):
            store.enrol(other, token_hash="token of a", now=1.0)
        assert [device.id for device in store.devices()] == ["a"]

    def test_a_lost_answer_to_an_enrolment_can_be_asked_for_again(
        self, store: Store
    ) -> None:
        enrol(store, "a")
        again = replace(store.device("a"), id="other")
        assert store.enrol(again, token_hash="token of a", now=2.0) == "a"

    def test_an_enrolment_is_audited_once_however_often_it_is_sent(
        self, store: Store
    ) -> None:
        enrol(store, "a")
        for _ in range(3):
            store.enrol(store.device("a"), token_hash="token of a", now=2.0)
        assert [(one.actor, one.action, one.at) for one in store.audit()] == [
            ("device:a", "device.enrol", 1.0)
        ]

    def test_a_retired_device_is_trusted_no_more_and_stays_on_record(
        self, store: Store
    ) -> None:
        enrol(store, "a")
        store.open_session("a", counter=1, token_hash="s1", expires_at=9.0)
        assert store.retire("a", now=5.0)
        assert not store.retire("a", now=6.0), "idempotent"
        assert store.session("s1") is None
        with pytest.raises(UntrustedError, match="a was retired"):
            store.open_session("a", counter=2, token_hash="s2", expires_at=9.0)
        with pytest.raises(UntrustedError, match="a was retired"):
            store.record_sync(replace(change("a"), reports=(report(1),)))
        assert store.device("a").retired_at == 5.0
        assert [one.action for one in store.audit()] == [
            "device.retire",
            "device.enrol",
        ]
        with pytest.raises(NotFoundError):
            store.retire("nobody", now=5.0)

    def test_neither_key_nor_name_of_a_retired_device_enrols_again(
        self, store: Store
    ) -> None:
        enrol(store, "a")
        gone = store.device("a")
        store.retire("a", now=5.0)
        store.add_enrolment_token("second", expires_at=100.0)
        for token in ("token of a", "second"):
            with pytest.raises(UntrustedError, match="new token and a new key"):
                store.enrol(replace(gone, id="b"), token_hash=token, now=6.0)
        fresh = replace(gone, public_key="cd" * 32)
        with pytest.raises(ConflictError, match="choose another --name"):
            store.enrol(fresh, token_hash="second", now=6.0)
        assert store.enrol(replace(fresh, id="b"), token_hash="second", now=6.0) == "b"

    def test_a_member_that_is_left_out_is_none_any_more(self, store: Store) -> None:
        enrol(store, "a", "b")
        rollout = start(store, "a", "b")
        out = LeftOut(device="a", reason="retired")
        store.commit(Commit(rollout=rollout, at=5.0, left_out=(out,)))
        assert [one.member.device for one in store.members("r-1")] == ["b"]
        assert store.left_out("r-1") == (out,)

    def test_an_expired_token_enrols_nobody(self, store: Store) -> None:
        store.add_enrolment_token("late", expires_at=1.0)
        device = DeviceRecord(
            id="a", public_key="ab" * 32, enrolled_at=1.0, facts=FACTS
        )
        with pytest.raises(UntrustedError):
            store.enrol(device, token_hash="late", now=1.0)
        assert store.devices() == ()

    def test_a_taken_name_leaves_the_token_unused(self, store: Store) -> None:
        enrol(store, "a")
        store.add_enrolment_token("second", expires_at=100.0)
        twin = DeviceRecord(id="a", public_key="cd" * 32, enrolled_at=1.0, facts=FACTS)
        with pytest.raises(ConflictError, match="enrolled already"):
            store.enrol(twin, token_hash="second", now=1.0)
        store.enrol(replace(twin, id="b"), token_hash="second", now=1.0)

    def test_a_session_counter_only_grows(self, store: Store) -> None:
        enrol(store, "a")
        store.open_session("a", counter=5, token_hash="s5", expires_at=9.0)
        for counter in (5, 4):
            with pytest.raises(UntrustedError, match="replay"):
                store.open_session(
                    "a",
                    counter=counter,
                    token_hash=f"again {counter}",
                    expires_at=9.0,
                )
        assert store.session("s5") == ("a", 9.0)
        assert store.device("a").counter == 5

    def test_a_new_session_replaces_the_old_one(self, store: Store) -> None:
        enrol(store, "a")
        store.open_session("a", counter=1, token_hash="s1", expires_at=9.0)
        store.open_session("a", counter=2, token_hash="s2", expires_at=9.0)
        assert store.session("s1") is None
        assert store.session("s2") == ("a", 9.0)

    def test_a_sync_of_nobody_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFoundError):
            store.record_sync(change("nobody"))

    def test_a_sync_without_news_writes_nothing(self, store: Store) -> None:
        enrol(store, "a")
        assert not store.record_sync(change("a")).changed

    def test_a_report_counts_once_however_often_it_is_sent(self, store: Store) -> None:
        enrol(store, "a")
        sent = replace(change("a"), reports=(report(1, requests=3), report(2)))
        store.record_sync(sent)
        store.record_sync(sent)
        store.record_sync(replace(sent, reports=(report(2), report(3, requests=4))))
        assert len(store.reports("a")) == 3
        assert store.device("a").telemetry.requests == 7

    def test_an_installation_that_goes_back_and_forth_fills_no_disk(
        self, store: Store
    ) -> None:
        enrol(store, "a")
        offer(store, start(store, "a"), "a")

        def told(assignment: int, state: State, reason: str = "") -> None:
            status = installed(assignment, state, reason)
            store.record_sync(change("a", assignment=1, installation=status))

        told(7, State.WAITING)
        assert store.installations("a") == (), "of no assignment of this device"
        for index in range(5):
            told(1, State.WAITING, f"battery at {index} %")
        assert len(store.installations("a")) == 1, "the same state again"
        for _ in range(300):
            told(1, State.DOWNLOADING)
            told(1, State.WAITING)
        told(1, State.COMMITTED)
        rows = store.installations("a")
        assert len(rows) <= 256
        assert rows[-1].state is State.COMMITTED

    def test_assignments_are_numbered_per_device(self, store: Store) -> None:
        enrol(store, "a", "b")
        rollout = start(store, "a", "b")
        rollout = offer(store, rollout, "a")
        rollout = offer(store, rollout, "a")
        offer(store, rollout, "b")
        assert [one.sequence for one in store.assignments("a")] == [1, 2]
        newest = store.record_sync(change("b")).newest
        assert newest is not None
        assert newest.sequence == 1

    def test_a_stale_commit_writes_nothing(self, store: Store) -> None:
        enrol(store, "a")
        stale = start(store, "a")
        offer(store, stale, "a")
        with pytest.raises(ConflictError, match="read it again"):
            offer(store, stale, "a")
        assert len(store.assignments("a")) == 1

    def test_a_product_has_one_active_rollout(self, store: Store) -> None:
        enrol(store, "a")
        first = start(store, "a")
        with pytest.raises(ConflictError, match="r-1 of sample is running"):
            start(store, "a")
        ended = replace(first, state=RolloutState.ABORTED)
        store.commit(Commit(rollout=ended, at=5.0))
        assert start(store, "a").id == "r-2"
        assert store.rollout("r-1").ended_at == 5.0

    @pytest.mark.parametrize(
        ("state", "outcome"),
        [
            (State.COMMITTED, Outcome.SUCCEEDED),
            (State.ROLLED_BACK, Outcome.FAILED),
            (State.WAITING, Outcome.PENDING),
            (State.PROBATION, Outcome.PENDING),
        ],
    )
    def test_an_outcome_follows_from_the_installation(
        self, store: Store, state: State, outcome: Outcome
    ) -> None:
        enrol(store, "a")
        offer(store, start(store, "a"), "a")
        store.record_sync(change("a", assignment=1, installation=installed(1, state)))
        [placed] = store.members("r-1")
        assert placed.member.outcome is outcome
        assert placed.before == BEFORE

    def test_the_engine_never_overwrites_what_a_sync_settled(
        self, store: Store
    ) -> None:
        enrol(store, "a")
        rollout = offer(store, start(store, "a"), "a")
        [read_before] = store.members("r-1")
        done = installed(1, State.COMMITTED)
        store.record_sync(change("a", assignment=1, installation=done))
        silent = replace(read_before.member, outcome=Outcome.SILENT)
        store.commit(
            Commit(
                rollout=rollout,
                at=9.0,
                members=(replace(read_before, member=silent),),
            )
        )
        assert store.members("r-1")[0].member.outcome is Outcome.SUCCEEDED

    def test_a_late_outcome_of_a_reverted_device_is_still_settled(
        self, store: Store
    ) -> None:
        enrol(store, "a")
        rollout = offer(store, start(store, "a"), "a")
        offer(store, rollout, "a", revert=True)
        failed = installed(1, State.ROLLED_BACK, "too slow")
        store.record_sync(change("a", assignment=1, installation=failed))
        member = store.members("r-1")[0].member
        assert (member.outcome, member.reason) == (Outcome.FAILED, "too slow")

    def test_a_device_that_can_be_placed_is_no_longer_left_out(
        self, store: Store
    ) -> None:
        enrol(store, "a")
        rollout = Rollout(
            id="r-0",
            release="sample-1",
            policy=RolloutPolicy(),
            classes=("small",),
            waves=4,
        )
        started = StoredRollout(rollout=rollout, product="sample", created_at=1.0)
        left_out = LeftOut(device="a", reason="fits no class")
        created = store.create_rollout(started, [], [left_out])
        assert store.left_out("r-1") == (left_out,)
        offer(store, created, "a")
        assert store.left_out("r-1") == ()

    def test_who_goes_back_is_told_by_the_newest_assignment(self, store: Store) -> None:
        enrol(store, "a", "b")
        rollout = start(store, "a", "b")
        for device, revert in (("b", False), ("a", False), ("a", True)):
            rollout = offer(store, rollout, device, revert=revert)
        assert store.going_back("r-1") == ("a",)
        assert store.going_back("r-2") == ()

    def test_a_device_moved_on_when_its_newest_assignment_is_of_another_rollout(
        self, store: Store
    ) -> None:
        enrol(store, "a", "b", "c")
        old = start(store, "a", "b", "c")
        for device, revert in (("a", True), ("b", True), ("c", False)):
            old = offer(store, old, device, revert=revert)
        store.commit(Commit(rollout=replace(old, state=RolloutState.HALTED), at=4.0))
        offer(store, start(store, "a"), "a")
        assert (store.moved_on("r-1"), store.going_back("r-1")) == (("a",), ("b",))
        assert (store.moved_on("r-2"), store.going_back("r-2")) == ((), ())

    def test_a_release_never_changes_under_its_label(self, store: Store) -> None:
        store.note_release("sample-1", VARIANT, now=1.0)
        store.note_release("sample-1", VARIANT, now=2.0)
        with pytest.raises(ConflictError, match="never changes"):
            store.note_release("sample-1", BEFORE.variant, now=3.0)

    def test_what_was_written_is_there_after_opening_again(
        self, store: Store, reopen: Callable[[], Store]
    ) -> None:
        enrol(store, "a")
        rollout = offer(store, start(store, "a"), "a")
        done = installed(1, State.COMMITTED)
        told = change("a", assignment=1, installation=done)
        store.record_sync(replace(told, reports=(report(1, requests=5),)))
        result = GateResult(gate="advance", verdict=Verdict.PASS, reason="1 of 1")
        evaluation = Evaluation(
            rollout="r-1",
            at=6.0,
            wave=0,
            result=result,
            rule_version="gate-1",
            inputs={"classes": {"small": {"succeeded": 1}}},
        )
        store.commit(Commit(rollout=rollout, at=6.0, evaluations=(evaluation,)))
        store.append_audit(
            AuditEntry(at=7.0, actor="operator", action="x", subject="y")
        )
        other = reopen()
        assert other.device("a") == store.device("a")
        assert other.members("r-1") == store.members("r-1")
        assert other.assignments("a") == store.assignments("a")
        assert other.reports("a") == store.reports("a")
        assert other.evaluations("r-1") == (evaluation,)
        assert other.audit()[0].action == "x"
        assert other.rollout("r-1").rollout.revision == 2
        other.close()
