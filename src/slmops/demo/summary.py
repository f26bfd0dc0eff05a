"""What the demo reports: measured figures only, machine readable."""

from dataclasses import dataclass

from slmops.domain.release import Release


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantSummary:
    """The variant one class got in release 1, as its card says."""

    type: str
    """llama.cpp quantization."""
    bytes: int
    """Size of the artefact."""
    mean_kld: float
    """Mean KL divergence against the 16-bit reference, nats."""
    decode_tokens_per_s: float
    """Measured at build, in the class's settings."""
    peak_rss_mib: float
    """Measured at build, in the class's settings, the context nearly full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnDevice:
    """What the devices of a class reported of their own traffic."""

    devices: int
    """That reported."""
    decode_tokens_per_s: float
    """Median over the devices; all of them share the demo's machine."""
    peak_rss_mib: float
    """Largest of the devices' model processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The whole demo in one document."""

    devices: int
    """Real agent processes."""
    requests_sent: int
    """Load on the devices' endpoints, from each device's first model to the end."""
    requests_failed: int
    """Any answer but a complete 200."""
    release_1: str
    """Label of the good release."""
    release_1_done: bool
    """True only if its rollout reached every device."""
    release_2: str
    """Label of the bad release."""
    release_2_halted: bool
    """True only if its rollout halted by itself."""
    halt_reason: str
    """The gate's own words."""
    devices_exposed: int
    """Devices that were offered release 2."""
    devices_back_on_release_1: int
    """Devices serving release 1 at the end and answering."""
    bytes_shipped: int
    """Body bytes of artefacts that devices downloaded."""
    variants: dict[str, VariantSummary]
    """Class → variant of release 1."""
    on_devices: dict[str, OnDevice]
    """Class → what its devices reported while release 1 served."""
    question: str
    """Asked through the `openai` client."""
    answer: str
    """What the device said."""
    seconds: float
    """Wall time of the whole demo."""
    failures: tuple[str, ...]
    """What was expected and did not happen; empty when the demo succeeded."""


def variant_summaries(release: Release) -> dict[str, VariantSummary]:
    """Return what the cards say of each class's variant, in the class's settings."""
    found = {}
    for device_class in release.classes:
        variant = release.variant_for(device_class.name)
        speed = variant.card.speed_for(device_class)
        if speed is None:
            continue
        found[device_class.name] = VariantSummary(
            type=variant.card.quantization,
            bytes=variant.bytes,
            mean_kld=round(variant.card.fidelity.mean_kld.value, 6),
            decode_tokens_per_s=round(speed.decode_tokens_per_s.value, 1),
            peak_rss_mib=round(speed.measured_peak_mib, 1),
        )
    return found


def missing(summary: Summary) -> tuple[str, ...]:
    """Return what the demo promises and `summary` does not show."""
    checks = {
        "the load sent requests": summary.requests_sent > 0,
        "no request failed": summary.requests_failed == 0,
        "release 1 reached the whole fleet": summary.release_1_done,
        "release 2 halted by itself": summary.release_2_halted,
        "the halt has a reason": bool(summary.halt_reason),
        "release 2 reached some devices and not all": (
            0 < summary.devices_exposed < summary.devices
        ),
        "every device is back on release 1": (
            summary.devices_back_on_release_1 == summary.devices
        ),
        "a device answered the question": bool(summary.answer.strip()),
        "artefacts were shipped": summary.bytes_shipped > 0,
    }
    return tuple(what for what, holds in checks.items() if not holds)
