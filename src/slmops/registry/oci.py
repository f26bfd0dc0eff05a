"""A release as OCI documents: an image index with one ModelPack manifest per variant.

Pure: a release goes in, documents with their exact bytes come out, so that the same
release always gives the same digests. Formats: OCI image spec 1.1 (layout, index,
manifest) and the CNCF ModelPack model spec v1 (media types, config, annotations).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from slmops.domain.ids import Digest
from slmops.domain.release import Release, Variant
from slmops.wire import codec

OCI_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
"""Content of the file ``oci-layout``."""
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
"""Media type of an image index."""
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
"""Media type of an image manifest."""
MODEL_ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
"""ModelPack: artifact type of a model's manifest."""
MODEL_CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
"""ModelPack: media type of its config."""
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
"""ModelPack: a weight file as it is, neither archived nor compressed."""
WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
"""ModelPack: a file that configures the weights; here the chat template."""
REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation: a release's label in ``index.json``."""
FILEPATH = "org.cncf.model.filepath"
"""ModelPack annotation: the name a layer's file has when it is unpacked."""
CARD = "vnd.slmops.card+json"
"""Annotation of a manifest: what was measured, as canonical JSON."""
CLASSES = "vnd.slmops.classes"
"""Annotation of a manifest: device classes it was chosen for, comma-separated."""
EVIDENCE_ARTIFACT_TYPE = "application/vnd.slmops.evidence.v1"
"""Artifact type of the manifest that holds a release's attachments."""
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
"""OCI image spec 1.1, guidance for artifacts: the config of a manifest that has none."""
RELEASE_DIGEST = "vnd.slmops.release.digest"
"""Annotation of a release's index: digest of the signed release document."""

_CREATED = "org.opencontainers.image.created"
_TITLE = "org.opencontainers.image.title"
_VERSION = "org.opencontainers.image.version"
_LICENSES = "org.opencontainers.image.licenses"

Tree = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseImage:
    """The OCI documents of one release."""

    label: str
    """Name in ``index.json``."""
    descriptor: Tree
    """Entry in ``index.json``."""
    documents: Mapping[Digest, bytes]
    """Index, manifests, configs and small layers by digest: all but the artefacts."""


def release_image(release: Release) -> ReleaseImage:
    """Return the OCI documents of a release; equal releases give equal bytes."""
    documents: dict[Digest, bytes] = {}
    manifests = [_manifest(release, variant, documents) for variant in release.variants]
    if release.attachments:
        # In the index, so that whoever copies a release copies its evidence.
        manifests.append(_evidence(release, documents))
    annotations = {
        _CREATED: _rfc3339(release.created_at),
        _TITLE: release.name,
        _VERSION: str(release.version),
        RELEASE_DIGEST: codec.document_digest(release),
    }
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": manifests,
        "annotations": annotations,
    }
    descriptor = _stored(documents, INDEX_TYPE, codec.encode_json(index))
    return ReleaseImage(
        label=release.label,
        descriptor=descriptor | {"annotations": {REF_NAME: release.label}},
        documents=documents,
    )


def layout_index(descriptors: Mapping[str, Tree]) -> bytes:
    """Return the content of ``index.json`` for releases by label."""
    return codec.encode_json(
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [descriptors[label] for label in sorted(descriptors)],
        }
    )


def artefact_name(release: Release, variant: Variant) -> str:
    """Return the file name an unpacked artefact has: ``assistant-2.Q4_K_M.gguf``."""
    label = variant.card.label.replace("/", "-")
    return f"{release.label}.{label}.{variant.format}"


def _manifest(
    release: Release, variant: Variant, documents: dict[Digest, bytes]
) -> Tree:
    layers = [
        {
            "mediaType": WEIGHT_TYPE,
            "digest": variant.digest,
            "size": variant.bytes,
            "annotations": {FILEPATH: artefact_name(release, variant)},
        }
    ]
    # A draft comes after the weights it drafts for: readers take the first as the model.
    layers += [
        {
            "mediaType": WEIGHT_TYPE,
            "digest": digest,
            "size": size,
            "annotations": {FILEPATH: f"draft.{artefact_name(release, variant)}"},
        }
        for digest, size in variant.artefacts[1:]
    ]
    if release.model.chat_template is not None:
        template = _stored(
            documents, WEIGHT_CONFIG_TYPE, release.model.chat_template.encode()
        )
        layers.append(template | {"annotations": {FILEPATH: "chat_template.jinja"}})
    config = _config(release, variant, [str(layer["digest"]) for layer in layers])
    annotations = {
        _CREATED: _rfc3339(release.created_at),
        _TITLE: f"{release.name} {variant.card.quantization}",
        _VERSION: str(release.version),
        CARD: codec.encode_json(variant.card).decode(),
        CLASSES: ",".join(variant.classes),
    }
    if release.model.licence:
        annotations[_LICENSES] = release.model.licence
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": MODEL_ARTIFACT_TYPE,
        "config": _stored(documents, MODEL_CONFIG_TYPE, codec.encode_json(config)),
        "layers": layers,
        "annotations": annotations,
    }
    return _stored(documents, MANIFEST_TYPE, codec.encode_json(manifest)) | {
        "artifactType": MODEL_ARTIFACT_TYPE,
        "annotations": {CLASSES: ",".join(variant.classes)},
    }


def _evidence(release: Release, documents: dict[Digest, bytes]) -> Tree:
    """Return the manifest of a release's attachments.

    The title annotation is what `oras pull` names the files by.
    """
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": EVIDENCE_ARTIFACT_TYPE,
        "config": _stored(documents, EMPTY_TYPE, b"{}"),
        "layers": [
            {
                "mediaType": attachment.media_type,
                "digest": attachment.digest,
                "size": attachment.bytes,
                "annotations": {_TITLE: attachment.name},
            }
            for attachment in release.attachments
        ],
        "annotations": {_CREATED: _rfc3339(release.created_at)},
    }
    return _stored(documents, MANIFEST_TYPE, codec.encode_json(manifest)) | {
        "artifactType": EVIDENCE_ARTIFACT_TYPE
    }


def _config(release: Release, variant: Variant, diff_ids: list[str]) -> Tree:
    """Return the ModelPack config (``schema/config-schema.json``, no other keys)."""
    descriptor: Tree = {
        "createdAt": _rfc3339(release.created_at),
        "family": release.model.architecture,
        "name": release.name,
        "title": release.label,
        "version": str(release.version),
    }
    if release.model.licence:
        descriptor["licenses"] = [release.model.licence]
    return {
        "descriptor": descriptor,
        "config": {
            "architecture": "transformer",
            "format": variant.format,
            "paramSize": parameter_size(release.model.parameters),
            "quantization": variant.card.quantization,
            "capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]},
        },
        "modelfs": {"type": "layers", "diffIds": diff_ids},
    }


def parameter_size(parameters: int) -> str:
    """Return a count the way models are named.

    >>> parameter_size(134_515_008), parameter_size(1_700_000_000), parameter_size(950)
    ('134.5m', '1.7b', '950')
    """
    for unit, suffix in ((1e9, "b"), (1e6, "m"), (1e3, "k")):
        if parameters >= unit:
            return f"{round(parameters / unit, 1):.4g}{suffix}"
    return str(parameters)


def _stored(documents: dict[Digest, bytes], media_type: str, content: bytes) -> Tree:
    digest = Digest("sha256:" + hashlib.sha256(content).hexdigest())
    documents[digest] = content
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(int(unix_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
