"""What the demo reports: measured figures only, machine readable."""

from dataclasses import dataclass


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
    """Measured at build, in the class's settings."""


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
    question: str
    """Asked through the `openai` client."""
    answer: str
    """What the device said."""
    seconds: float
    """Wall time of the whole demo."""
    failures: tuple[str, ...] = ()
    """What was expected and did not happen; empty when the demo succeeded."""
