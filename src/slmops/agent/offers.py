"""Offers: what the director asks for, and whether the release signer vouches for it.

Two signers must agree (after Uptane): the director's envelope names a release and a
variant for this one device, and the TUF metadata under the pinned root must list both
with the same digests.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from slmops.agent.directors import Directors
from slmops.agent.records import Deployment, Slots, TrialPlan
from slmops.domain.device import DeviceClass, DeviceFacts, Predicate
from slmops.domain.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OverBudgetError,
    SlmopsError,
    UnavailableError,
    UntrustedError,
)
from slmops.domain.ids import Digest, digest_hex, label_version, parse_digest
from slmops.domain.release import Release, Variant
from slmops.domain.sync import Assignment, Installed
from slmops.wire import codec

_MIB = 1 << 20


class Registry(Protocol):
    """What is asked of `slmops.registry.trust.TrustedRegistry`."""

    def refresh(self) -> None:
        """Fetch and verify the newest metadata."""
        ...

    def release(self, label: str) -> tuple[Release, Digest]:
        """Return a verified release and the digest of its document."""
        ...

    def director_keys(self) -> tuple[str, ...]:
        """Return the director's keys that the newest root names; () for none."""
        ...

    def target(self, path: str) -> tuple[int, str]:
        """Return the promised length and SHA-256 of a target."""
        ...


def require_no_downgrade(assignment: Assignment, slots: Slots) -> None:
    """See that the offer is no older release of the product that is installed.

    Versions are part of the label that both signers name. A revert may go back to the
    release in the previous slot, and an operator may ask for more.

    Raises:
        ConflictError: it is older.
        InvalidInputError: it names no release.
    """
    wanted = Installed(release=assignment.release, variant=assignment.variant)
    active, previous = (
        None if one is None else one.installed for one in (slots.active, slots.previous)
    )
    asked_for = assignment.allow_downgrade or (assignment.revert and wanted == previous)
    if active is None or asked_for:
        return
    older = label_version(wanted.release) < label_version(active.release)
    if older and _product(wanted.release) == _product(active.release):
        raise ConflictError(
            f"release {wanted.release} is older than installed {active.release}; a"
            " downgrade needs --allow-downgrade"
        )


def _product(label: str) -> str:
    return label.rpartition("-")[0]


class Offers:
    """Checks offers for one device."""

    def __init__(
        self,
        *,
        device: str,
        director_key: str | Directors,
        facts: DeviceFacts,
        open_registry: Callable[[], Registry],
        disk_size_bytes: Callable[[], int],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Take what is trusted.

        Args:
            device: id of this device.
            director_key: public key of the director, hex, or all that are trusted.
            facts: of this device.
            open_registry: called for each check; loads the TUF client only then.
            disk_size_bytes: of the whole file system: what is full may be emptied.
            labels: of this device; classes may ask for them.
        """
        self._device = device
        self._directors = (
            Directors(director_key) if isinstance(director_key, str) else director_key
        )
        self._facts = facts
        self._labels = labels or {}
        self._open_registry = open_registry
        self._disk_size_bytes = disk_size_bytes

    def read(self, envelope: str) -> Assignment:
        """Open an envelope; one by an unknown key is a reason to ask the root for keys.

        Raises:
            UntrustedError: not signed by the director, malformed, or for another device.
        """
        try:
            payload = self._directors.open(envelope)
        except UntrustedError:
            if not self._learn_directors():
                raise
            payload = self._directors.open(envelope)
        try:
            assignment = codec.decode_json(
                payload, Assignment, where="assignment", lenient=True
            )
            parse_digest(assignment.variant)
            parse_digest(assignment.release_digest)
        except InvalidInputError as error:
            raise UntrustedError(str(error)) from None
        if assignment.device != self._device:
            raise UntrustedError(
                f"assignment is for device {assignment.device[:80]!r}, this is"
                f" {self._device!r}"
            )
        return assignment

    def holds(self, envelope: str) -> bool:
        """Tell whether an envelope is by a director that counts now; asks nobody."""
        try:
            self._directors.open(envelope)
        except UntrustedError:
            return False
        return True

    def check(
        self, assignment: Assignment, *, slots: Slots | None = None
    ) -> tuple[Deployment, TrialPlan]:
        """Ask the release signer, and see whether the variant can run here.

        Args:
            assignment: from `read`.
            slots: what is installed: it was checked when it came, and facts may have
                changed since.

        Raises:
            UnavailableError: cannot be told now: no way to the registry, or its
                metadata is expired or does not hold. Somebody on the network can cause
                that, so it is no verdict on the release.
            UntrustedError, NotFoundError: the two signers do not agree.
            InvalidInputError: the variant's runtime is not installed.
            OverBudgetError: it does not fit.
        """
        registry = self._open_registry()
        try:
            registry.refresh()
        except (UntrustedError, NotFoundError) as error:
            raise UnavailableError(f"nothing new is installed: {error}") from None
        self._directors.learn(registry.director_keys())
        release, digest = registry.release(assignment.release)
        if digest != assignment.release_digest:
            raise UntrustedError(
                f"director names {assignment.release} as {assignment.release_digest},"
                f" the release signer as {digest}"
            )
        variant = _variant(release, assignment.variant)
        _require_vouched(registry, variant)
        device_class = _device_class(release, variant, assignment.device_class)
        if slots is None or not _is_installed(assignment, slots):
            self._require_own_class(release, variant)
        self._require_runs(variant, device_class)
        return (
            _deployment(
                release, digest, variant, device_class, assignment, self._facts
            ),
            TrialPlan(
                golden=release.golden,
                rules=release.blueprint.golden,
                budget=device_class.budget,
                card_logprobs=variant.golden_logprobs,
                probation_s=assignment.probation_s,
                revert=assignment.revert,
            ),
        )

    def _learn_directors(self) -> bool:
        """Tell whether the newest root names other directors than were known."""
        try:
            return self._directors.learn(self._open_registry().director_keys())
        except (SlmopsError, OSError):
            return False  # no way there now: the envelope stays refused

    def _require_own_class(self, release: Release, variant: Variant) -> None:
        """See that the release signer meant this variant for a device like this one."""
        misfits = {
            one.name: _lasting(one.where).mismatches(self._facts, self._labels)
            for one in release.classes
            if one.name in variant.classes
        }
        if all(misfits.values()):
            why = "; ".join(
                f"{name}: {', '.join(why)}" for name, why in misfits.items()
            )
            raise UntrustedError(
                f"director names a variant that the release signer made for other"
                f" devices ({why})"
            )

    def _require_runs(self, variant: Variant, device_class: DeviceClass) -> None:
        facts = self._facts
        if variant.runtime not in facts.runtimes:
            raise InvalidInputError(
                f"variant needs runtime {variant.runtime}, installed here:"
                f" {', '.join(facts.runtimes) or 'none'}"
            )
        need = _expected_peak_mib(variant, device_class)
        if need > facts.memory_mib:
            raise OverBudgetError(
                f"variant needs {need:.0f} MiB of memory, this device has"
                f" {facts.memory_mib}"
            )
        size = self._disk_size_bytes()
        wanted = sum(length for _, length in variant.artefacts)
        if wanted > size:
            raise OverBudgetError(
                f"variant needs {wanted / _MIB:.0f} MiB of disk, this device's"
                f" has {size / _MIB:.0f} in all"
            )


def _is_installed(assignment: Assignment, slots: Slots) -> bool:
    return any(
        slot is not None and slot.variant == assignment.variant
        for slot in (slots.active, slots.previous)
    )


def _lasting(where: Predicate) -> Predicate:
    """Return the conditions that a device does not outgrow from one day to the next.

    Free disk does, and the control plane chose the class when the rollout began.
    """
    return Predicate(
        memory_mib=where.memory_mib,
        cpu_count=where.cpu_count,
        architecture=where.architecture,
        labels=where.labels,
    )


def _variant(release: Release, digest: Digest) -> Variant:
    for variant in release.variants:
        if variant.digest == digest:
            return variant
    raise UntrustedError(
        f"director names variant {digest}, which release {release.label} does not have"
    )


def _require_vouched(registry: Registry, variant: Variant) -> None:
    """Every artefact itself must be a target with the length the release says."""
    for digest, size in variant.artefacts:
        hexadecimal = digest_hex(digest)
        length, found = registry.target(f"blobs/sha256/{hexadecimal}")
        if (length, found) != (size, hexadecimal):
            raise UntrustedError(
                f"release says {size} bytes of {hexadecimal[:12]}…, its targets"
                f" say {length} of {found[:12]}…"
            )


def _device_class(release: Release, variant: Variant, named: str) -> DeviceClass:
    """Return the class whose knobs apply: as assigned, else one the variant is for."""
    by_name = {device_class.name: device_class for device_class in release.classes}
    for name in (named, *variant.classes):
        if name in variant.classes and name in by_name:
            return by_name[name]
    raise UntrustedError(
        f"release {release.label} has no class for variant {variant.digest[:19]}…"
    )


def _expected_peak_mib(variant: Variant, device_class: DeviceClass) -> float:
    """Return the upper bound of the peak for these knobs; the highest of all otherwise."""
    fitting = variant.card.speed_for(device_class)
    if fitting is not None:
        return fitting.most_peak_mib
    measured = [speed.most_peak_mib for speed in variant.card.speed]
    return max(measured, default=variant.bytes / _MIB)


def _deployment(
    release: Release,
    digest: Digest,
    variant: Variant,
    device_class: DeviceClass,
    assignment: Assignment,
    facts: DeviceFacts,
) -> Deployment:
    budget = device_class.budget.memory_mib
    limit = float(facts.memory_mib) if budget is None else min(budget, facts.memory_mib)
    return Deployment(
        release=release.label,
        release_digest=digest,
        variant=variant.digest,
        bytes=variant.bytes,
        runtime=variant.runtime,
        device_class=device_class.name,
        threads=device_class.threads,
        context_tokens=device_class.context_tokens,
        memory_limit_mib=limit,
        expected_peak_mib=_expected_peak_mib(variant, device_class),
        chat_template=release.model.chat_template,
        assignment=assignment.sequence,
        settings=variant.settings,
    )
