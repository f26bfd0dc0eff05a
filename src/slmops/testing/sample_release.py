"""Small valid releases with artefacts of a few bytes, for tests that need no model.

The figures on the cards are made up but consistent; change any field with
`dataclasses.replace`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmops.domain.blueprint import Blueprint
from slmops.domain.device import DeviceClass, Predicate, Range
from slmops.domain.ids import Digest
from slmops.domain.release import (
    Card,
    Estimate,
    ExpectedToken,
    Fidelity,
    GoldenPrompt,
    GoldenSet,
    ModelRecord,
    Release,
    Speed,
    Variant,
)
from slmops.registry.blobs import BlobStore
from slmops.registry.catalog import Catalog
from slmops.registry.key_folder import PINNED_ROOT
from slmops.registry.signing import ReleaseKeys
from slmops.registry.workspace import Workspace

SAMPLE_TIME = 1_760_000_000.0
"""When sample release 1 was created: Unix time, seconds (2025-10-09)."""
DAY_S = 86_400.0
"""Sample release n is created n - 1 days later."""

SAMPLE_CLASSES = (
    DeviceClass(name="small", where=Predicate(memory_mib=Range(max=768.0))),
    DeviceClass(name="large", where=Predicate(memory_mib=Range(min=768.0))),
)
"""Classes of a sample release: below and above 768 MiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedSample:
    """Sample releases, signed and published in a workspace of their own."""

    workspace: Workspace
    """Holds blobs, keys and registry."""
    catalog: Catalog
    """The registry, checked against the workspace's pinned root."""
    keys: ReleaseKeys
    """Every role's key."""
    releases: tuple[Release, ...]
    """As published, in order."""


def sample_release(
    version: int = 1,
    *,
    name: str = "sample",
    classes: Sequence[DeviceClass] = SAMPLE_CLASSES,
    artefacts: Mapping[str, bytes] | None = None,
    runtime: str = "echo",
    golden: GoldenSet | None = None,
) -> Release:
    """Make a valid release.

    Args:
        version: 1, 2, 3 …; later ones follow the one before.
        name: of the blueprint.
        classes: device classes.
        artefacts: class name → bytes of the artefact it gets; classes with equal bytes
            share a variant. Default: one short text for each class and version.
        runtime: serves all variants.
        golden: prompts; two short ones by default.
    """
    chosen = artefacts or sample_artefacts(version, classes=classes)
    prompts = golden or _golden()
    by_content: dict[bytes, list[str]] = {}
    for class_name, content in chosen.items():
        by_content.setdefault(content, []).append(class_name)
    return Release(
        name=name,
        version=version,
        created_at=SAMPLE_TIME + DAY_S * (version - 1),
        blueprint=Blueprint(name=name, model="sample-model", classes=tuple(classes)),
        model=_model(),
        variants=tuple(
            _variant(content, tuple(names), runtime=runtime, golden=prompts)
            for content, names in by_content.items()
        ),
        golden=prompts,
        build=digest_of(f"build of {name}-{version}".encode()),
        previous=version - 1 or None,
    )


def sample_artefacts(
    version: int = 1, *, classes: Sequence[DeviceClass] = SAMPLE_CLASSES
) -> dict[str, bytes]:
    """Return the bytes `sample_release` uses when none are given."""
    return {
        device_class.name: f"artefact of {device_class.name}, version {version}".encode()
        for device_class in classes
    }


def publish_sample(
    folder: Path,
    releases: Sequence[Release] | None = None,
    *,
    artefacts: Sequence[bytes] = (),
    keys: ReleaseKeys | None = None,
    now: float | None = None,
) -> PublishedSample:
    """Sign and publish releases in a workspace at `folder`.

    Args:
        folder: root of the workspace; made when missing.
        releases: default is sample release 1.
        artefacts: bytes of all variants that are not sample artefacts.
        keys: of an earlier call, to publish with the same ones.
        now: time of signing; each release's own `created_at` by default.
    """
    workspace = Workspace(root=folder)
    chosen = tuple(releases or (sample_release(),))
    blobs = BlobStore(workspace.blobs)
    for content in artefacts:
        blobs.put_bytes(content)
    for release in chosen:
        for content in sample_artefacts(
            release.version, classes=release.classes
        ).values():
            blobs.put_bytes(content)
    signed_at = chosen[0].created_at if now is None else now
    used = keys or _keys(workspace, now=signed_at)
    catalog = Catalog(workspace.registry, pinned_root=used.root_json)
    for release in chosen:
        catalog.publish(release, blobs, used, now=now)
    return PublishedSample(
        workspace=workspace, catalog=catalog, keys=used, releases=chosen
    )


def _keys(workspace: Workspace, *, now: float) -> ReleaseKeys:
    """Return the keys that the newest root names; made on first use."""
    pinned = workspace.keys / PINNED_ROOT
    root = None
    if pinned.exists():
        catalog = Catalog(workspace.registry, pinned_root=pinned.read_bytes())
        root = catalog.newest_root()
    return ReleaseKeys.load_or_create(workspace.keys, now=now, root=root)


def digest_of(content: bytes) -> Digest:
    """Return the SHA-256 of `content`."""
    return Digest("sha256:" + hashlib.sha256(content).hexdigest())


def _variant(
    content: bytes, names: tuple[str, ...], *, runtime: str, golden: GoldenSet
) -> Variant:
    return Variant(
        digest=digest_of(content),
        bytes=len(content),
        format="gguf",
        runtime=runtime,
        classes=names,
        card=_card(len(content), runtime=runtime),
        golden_logprobs=tuple(
            prompt.answer[0].logprob - 0.01 for prompt in golden.prompts
        ),
    )


def _card(size: int, *, runtime: str) -> Card:
    return Card(
        quantization="Q4_K_M",
        bytes=size,
        bits_per_weight=4.85,
        tensor_types={"F32": 61, "Q4_K": 30, "Q5_0": 120, "Q8_0": 1},
        parameters=134_515_008,
        reference=_model().id,
        reference_grid=None,
        fidelity=Fidelity(
            mean_kld=Estimate(value=0.045, low=0.041, high=0.049),
            p99_kld=Estimate(value=0.51, low=0.43, high=0.62),
            same_top1=Estimate(value=0.91, low=0.89, high=0.93),
            perplexity=Estimate(value=24.6, low=22.0, high=27.5),
            reference_perplexity=23.7,
            tokens=1536,
            text_digest=digest_of(b"text"),
        ),
        speed=(
            Speed(
                threads=1,
                context_tokens=1024,
                prompt_tokens=128,
                first_token_ms=Estimate(value=300.0, low=280.0, high=340.0),
                first_token_tail_ms=340.0,
                prefill_tokens_per_s=Estimate(value=420.0, low=400.0, high=440.0),
                decode_tokens_per_s=Estimate(value=46.0, low=43.0, high=48.0),
                load_ms=2000.0,
                peak_rss_mib=240.0,
                rss_anon_mib=130.0,
                rss_file_mib=105.0,
                machine="sample machine",
                runs=5,
            ),
        ),
        runtime=f"{runtime} 1",
    )


def _model() -> ModelRecord:
    return ModelRecord(
        id=digest_of(b"reference"),
        name="sample-model",
        architecture="llama",
        parameters=134_515_008,
        context_tokens=8192,
        vocabulary=49_152,
        tokenizer="gpt2/smollm",
        chat_template="{% for m in messages %}{{ m.content }}\n{% endfor %}",
        licence="apache-2.0",
        source="sample.gguf",
        source_digest=digest_of(b"source"),
        source_quantization=None,
        bytes=269_060_352,
    )


def _golden() -> GoldenSet:
    return GoldenSet(
        prompts=tuple(
            GoldenPrompt(
                prompt=prompt,
                answer=(
                    ExpectedToken(text=first, logprob=-0.2),
                    ExpectedToken(text=".", logprob=-0.1),
                ),
            )
            for prompt, first in (("Capital of France?", "Paris"), ("2 + 2?", "4"))
        )
    )
