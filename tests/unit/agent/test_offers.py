"""Offers: a device installs only what director and release signer agree on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from slmops.agent.offers import Offers, require_no_downgrade
from slmops.agent.records import Deployment, Slots
from slmops.domain.device import Budget, DeviceClass, DeviceFacts
from slmops.domain.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OverBudgetError,
    SlmopsError,
    UnavailableError,
    UntrustedError,
)
from slmops.domain.ids import Digest
from slmops.domain.release import Release
from slmops.domain.sync import Assignment
from slmops.registry.envelope import seal
from slmops.registry.keys import SigningKey
from slmops.registry.trust import TrustedRegistry
from slmops.testing.sample_release import (
    SAMPLE_TIME,
    PublishedSample,
    publish_sample,
    sample_release,
)
from slmops.wire import codec

FACTS = DeviceFacts(
    memory_mib=1024, disk_mib=100, cpu_count=1, architecture="x", runtimes=("echo",)
)
CLASSES = (
    DeviceClass(name="small", budget=Budget(memory_mib=300), context_tokens=512),
    DeviceClass(name="large", threads=2, budget=Budget(decode_tokens_per_s=5)),
)


@dataclass(frozen=True)
class Signers:
    """Both of them, and the assignment of an honest director."""

    director: SigningKey
    published: PublishedSample
    folder: Path
    now: Callable[[], float] = lambda: SAMPLE_TIME

    @property
    def release(self) -> Release:
        return self.published.releases[0]

    def assignment(self) -> Assignment:
        label = self.release.label
        variant = self.release.variants[0]
        return Assignment(
            device="till-1",
            sequence=7,
            rollout="r-1",
            release=label,
            release_digest=self.published.catalog.load(label)[1],
            variant=variant.digest,
            device_class=variant.classes[0],
            probation_s=3.0,
            issued_at=SAMPLE_TIME,
        )

    def offers(
        self, facts: DeviceFacts = FACTS, *, disk_size_bytes: int = 1 << 30
    ) -> Offers:
        return Offers(
            device="till-1",
            director_key=self.director.public_hex,
            facts=facts,
            open_registry=lambda: TrustedRegistry(
                self.folder / "trust",
                self.published.keys.root_json,
                self.published.workspace.registry,
                now=self.now,
            ),
            disk_size_bytes=lambda: disk_size_bytes,
        )


@pytest.fixture
def signers(tmp_path: Path) -> Signers:
    return Signers(
        director=SigningKey.create(tmp_path / "director.key"),
        published=publish_sample(
            tmp_path / "workspace", [sample_release(classes=CLASSES)]
        ),
        folder=tmp_path,
    )


def sealed(signers: Signers, assignment: Assignment) -> str:
    return seal(codec.encode_json(assignment), signers.director)


def test_an_honest_offer_becomes_all_it_takes_to_serve_offline(
    signers: Signers,
) -> None:
    offers, wanted = signers.offers(), signers.assignment()
    read = offers.read(sealed(signers, wanted))
    assert read == wanted
    deployment, plan = offers.check(read)
    variant = signers.release.variants[0]
    assert (deployment.variant, deployment.bytes) == (variant.digest, variant.bytes)
    assert deployment.memory_limit_mib == 300  # the class's budget
    assert (deployment.context_tokens, deployment.threads) == (512, 1)
    assert deployment.chat_template == signers.release.model.chat_template
    assert deployment.assignment == 7
    assert plan.card_logprobs == variant.golden_logprobs
    assert plan.budget == CLASSES[0].budget
    assert (plan.probation_s, plan.revert) == (3.0, False)


def test_the_owner_s_limit_holds_where_the_class_has_none(signers: Signers) -> None:
    other = signers.release.variants[1]
    wanted = replace(
        signers.assignment(), variant=other.digest, device_class=other.classes[0]
    )
    deployment, _ = signers.offers().check(wanted)
    assert deployment.memory_limit_mib == FACTS.memory_mib
    assert deployment.threads == 2


def test_a_class_that_the_release_does_not_know_is_replaced_by_the_variant_s_own(
    signers: Signers,
) -> None:
    wanted = replace(signers.assignment(), device_class="gone")
    assert signers.offers().check(wanted)[0].device_class == "small"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text[:-10],
        lambda text: text.replace('"sig":"', '"sig":"A'),
        lambda text: text.replace("slmops.assignment", "slmops.other"),
        lambda text: text.replace('"payload":"', '"payload":"e30='),
        lambda text: '{"payload": 3, "payloadType": 4, "signatures": 5}',
    ],
)
def test_an_envelope_that_was_touched_is_refused(
    signers: Signers, spoil: Callable[[str], str]
) -> None:
    text = sealed(signers, signers.assignment())
    with pytest.raises(UntrustedError):
        signers.offers().read(spoil(text))


def test_another_signer_and_another_device_s_assignment_are_refused(
    signers: Signers, tmp_path: Path
) -> None:
    stranger = SigningKey.create(tmp_path / "stranger.key")
    payload = codec.encode_json(signers.assignment())
    with pytest.raises(UntrustedError, match="not signed by the director"):
        signers.offers().read(seal(payload, stranger))
    theirs = replace(signers.assignment(), device="till-2")
    with pytest.raises(UntrustedError, match="is for device 'till-2'"):
        signers.offers().read(sealed(signers, theirs))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"not json",
        b'{"device": 3}',
    ],
)
def test_a_signed_payload_that_is_no_assignment_is_refused(
    signers: Signers, payload: bytes
) -> None:
    with pytest.raises(UntrustedError):
        signers.offers().read(seal(payload, signers.director))


@pytest.mark.parametrize("digest", ["", "sha256:xyz", "md5:" + "a" * 32, "../../x"])
def test_a_digest_that_is_none_is_refused(signers: Signers, digest: str) -> None:
    odd = replace(signers.assignment(), variant=Digest(digest))
    with pytest.raises(UntrustedError):
        signers.offers().read(sealed(signers, odd))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"release": "sample-9"}, NotFoundError, "no target"),
        ({"release": "../sample-1"}, NotFoundError, "no target"),
        (
            {"release_digest": Digest("sha256:" + "0" * 64)},
            UntrustedError,
            "the release signer as",
        ),
        (
            {"variant": Digest("sha256:" + "0" * 64)},
            UntrustedError,
            "does not have",
        ),
    ],
)
def test_what_only_the_director_vouches_for_is_refused(
    signers: Signers, change: dict[str, str], kind: type[SlmopsError], words: str
) -> None:
    lie = replace(signers.assignment(), **change)  # type: ignore[arg-type]
    with pytest.raises(kind, match=words):
        signers.offers().check(lie)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"runtimes": ()}, InvalidInputError, "installed here: none"),
        ({"runtimes": ("llamacpp",)}, InvalidInputError, "needs runtime echo"),
        ({"memory_mib": 239}, OverBudgetError, "needs 240 MiB of memory"),
    ],
)
def test_what_cannot_run_here_is_refused_before_a_download(
    signers: Signers, change: dict[str, object], kind: type[SlmopsError], words: str
) -> None:
    small = replace(FACTS, **change)  # type: ignore[arg-type]
    with pytest.raises(kind, match=words):
        signers.offers(small).check(signers.assignment())


def test_expired_metadata_is_no_verdict_on_the_release(signers: Signers) -> None:
    late = replace(signers, now=lambda: SAMPLE_TIME + 400 * 86_400)
    with pytest.raises(UnavailableError, match=r"nothing new .* expired"):
        late.offers().check(signers.assignment())


def test_no_registry_at_all_is_for_later(signers: Signers) -> None:
    wanted = signers.assignment()
    metadata = signers.published.workspace.registry / "metadata"
    metadata.rename(metadata.with_name("gone"))
    with pytest.raises(UnavailableError, match="nothing new is installed"):
        signers.offers().check(wanted)


@pytest.mark.parametrize("damage", [b"", b"\x00" * 64, b"{}", b'{"signed": {}}'])
def test_what_a_power_cut_leaves_of_the_trusted_metadata_stops_no_update(
    signers: Signers, damage: bytes
) -> None:
    wanted = signers.assignment()
    signers.offers().check(wanted)
    files = [path for path in (signers.folder / "trust").rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        before = path.read_bytes()
        path.write_bytes(damage)
        deployment, _ = signers.offers().check(wanted)
        assert deployment.variant == wanted.variant, path
        if path.is_file() and path.read_bytes() == damage:
            path.write_bytes(before)


def slot(signers: Signers, label: str) -> Deployment:
    deployment, _ = signers.offers().check(signers.assignment())
    return replace(deployment, release=label)


def test_an_older_release_is_refused_unless_asked_for_or_the_one_before(
    signers: Signers,
) -> None:
    older = signers.assignment()  # of sample-1
    on_two = Slots(active=slot(signers, "sample-2"))
    with pytest.raises(
        ConflictError,
        match="release sample-1 is older than installed sample-2; a downgrade needs"
        " --allow-downgrade",
    ):
        require_no_downgrade(older, on_two)
    with pytest.raises(ConflictError):
        require_no_downgrade(replace(older, revert=True), on_two)
    back = replace(on_two, previous=slot(signers, "sample-1"))
    with pytest.raises(ConflictError):
        require_no_downgrade(older, back)
    require_no_downgrade(replace(older, revert=True), back)
    require_no_downgrade(replace(older, allow_downgrade=True), on_two)


@pytest.mark.parametrize("active", [None, "sample-1", "other-7"])
def test_a_first_the_same_or_another_product_s_release_is_no_downgrade(
    signers: Signers, active: str | None
) -> None:
    slots = Slots(active=slot(signers, active) if active else None)
    require_no_downgrade(signers.assignment(), slots)


def test_only_what_the_disk_can_never_hold_is_refused_for_its_size(
    signers: Signers,
) -> None:
    wanted = signers.assignment()
    needs = signers.release.variants[0].bytes
    full = replace(FACTS, disk_mib=0)  # emptied one day: the download waits for it
    assert signers.offers(full, disk_size_bytes=needs).check(wanted)
    with pytest.raises(OverBudgetError, match=r"of disk, this device's has 0 in all"):
        signers.offers(disk_size_bytes=needs - 1).check(wanted)
