"""Provenance: which inputs, tools and steps made a build's variants, signed.

An in-toto Statement v1 (https://github.com/in-toto/attestation, spec/v1) with a SLSA
Provenance v1 predicate (https://slsa.dev/spec/v1.0/provenance), in a DSSE envelope that
the registry's targets key signs: who may say which artefacts exist says where they come
from. Reading one back checks signature, types and subjects before anything is believed.

Pure but for the signature; equal builds give equal bytes.
"""

from collections.abc import Sequence
from typing import Any

from securesystemslib.signer import Signer  # type: ignore[attr-defined]

from slmops import __version__
from slmops.domain.errors import InvalidInputError, UntrustedError
from slmops.domain.ids import Digest, digest_hex
from slmops.registry.envelope import open_envelope, seal
from slmops.registry.keys import SigningKey
from slmops.wire import codec
from slmops.workshop.build_result import BuildResult, Candidate
from slmops.workshop.evidence.graph import (
    artefact_file,
    materials,
    source_uri,
    tools,
)
from slmops.workshop.steps import StepRecord

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
"""``_type`` of an in-toto Statement, version 1."""
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
"""SLSA Provenance, version 1."""
PAYLOAD_TYPE = "application/vnd.in-toto+json"
"""DSSE payload type of in-toto statements (in-toto spec/v1/envelope.md)."""
BUILD_TYPE = "urn:slmops:build:v1"
"""What ``externalParameters`` and the steps mean: docs/evidence.md. A name, not an
address: this project owns no web address that nobody else could take."""
BUILDER = "urn:slmops:workshop"
"""Who built: this software, on the machine that ran it; SLSA build level 1."""

Tree = dict[str, Any]
"""A JSON object."""


def provenance_statement(build: BuildResult) -> Tree:
    """Return the statement of a build.

    Subjects are the chosen variants and their drafts. ``externalParameters`` is the blueprint, which is
    all a user controls; ``internalParameters.steps`` the executed graph, each step with
    the digests it read and made. ``resolvedDependencies`` holds the model's source, the
    16-bit reference and every text or data file that a step read. Times of start and
    end are left out: a build resumes over days, and only seconds per step are known.
    """
    return {
        "_type": STATEMENT_TYPE,
        "predicateType": PREDICATE_TYPE,
        "subject": _subjects(build),
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "blueprint": codec.to_plain(build.blueprint),
                    "belowFloor": build.below_floor,
                },
                "internalParameters": {
                    "machine": build.machine,
                    "steps": [_step(record) for record in build.provenance],
                },
                "resolvedDependencies": _dependencies(build),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": _versions(build)},
                "metadata": {"invocationId": codec.document_digest(build)},
                "byproducts": _byproducts(build),
            },
        },
    }


def seal_statement(statement: Tree, key: SigningKey | Signer) -> bytes:
    """Sign a statement with the registry's targets key; equal input gives equal bytes."""
    payload = codec.encode_json(statement)
    return seal(payload, key, payload_type=PAYLOAD_TYPE).encode()


def open_statement(envelope: bytes, targets_keys: Sequence[str]) -> Tree:
    """Check an envelope and return its statement.

    Args:
        envelope: DSSE, as JSON.
        targets_keys: trusted public keys: those of the TUF targets role, hex or PEM.

    Raises:
        UntrustedError: malformed, of another type, or signed by none of the keys.
    """
    payload = _payload(envelope.decode(errors="replace"), targets_keys)
    try:
        tree: object = codec.parse_json(payload, where="provenance statement")
    except InvalidInputError as error:
        raise UntrustedError(str(error)) from None
    statement: Tree = tree if isinstance(tree, dict) else {}
    kinds = (statement.get("_type"), statement.get("predicateType"))
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise UntrustedError(
            f"provenance must be a {STATEMENT_TYPE} with {PREDICATE_TYPE},"
            f" got {str(kinds)[:120]}"
        )
    return statement


def subject_digests(statement: Tree) -> frozenset[Digest]:
    """Return the digests a checked statement speaks of.

    Raises:
        UntrustedError: a subject has no SHA-256.
    """
    try:
        return frozenset(
            Digest(f"sha256:{subject['digest']['sha256']}")
            for subject in statement["subject"]
        )
    except (KeyError, TypeError):
        raise UntrustedError("provenance: every subject needs a SHA-256") from None


def build_digest(statement: Tree) -> str:
    """Return the digest of the build that a checked statement describes.

    Raises:
        UntrustedError: it names none.
    """
    try:
        return str(statement["predicate"]["runDetails"]["metadata"]["invocationId"])
    except (KeyError, TypeError):
        raise UntrustedError("provenance: the statement names no build") from None


def _subjects(build: BuildResult) -> list[Tree]:
    """Name all that devices are given: variants, and the drafts some of them run with."""
    subjects: dict[Digest, str] = {}
    for variant in build.variants:
        name = artefact_file(build.blueprint.name, variant.card, variant.format)
        own, *drafts = (digest for digest, _ in variant.artefacts)
        subjects[own] = name
        for draft in drafts:
            subjects.setdefault(draft, f"draft model of {name}")
    return [
        {"name": name, "digest": _digest_set(digest)}
        for digest, name in subjects.items()
    ]


def _payload(envelope: str, targets_keys: Sequence[str]) -> bytes:
    problem = UntrustedError("provenance: no trusted targets key is known")
    for key in targets_keys:
        try:
            return open_envelope(
                envelope, key, payload_type=PAYLOAD_TYPE, signer="the targets key"
            )
        except UntrustedError as error:
            problem = error
    raise problem


def _step(record: StepRecord) -> Tree:
    step = record.step
    return {
        "id": step.digest,
        "kind": step.kind,
        "tool": step.tool,
        "inputs": dict(step.inputs),
        "parameters": codec.to_plain(step.parameters),
        "seed": step.seed,
        "outputs": dict(record.outputs),
        "seconds": record.seconds,
    }


def _dependencies(build: BuildResult) -> list[Tree]:
    model = build.model
    source: Tree = {
        "name": f"source: {model.source}",
        "digest": _digest_set(model.source_digest),
    }
    uri = source_uri(model)
    if uri:
        source["uri"] = uri
    reference = {"name": "16-bit reference", "digest": _digest_set(model.id)}
    return [source, reference] + [
        {"name": ", ".join(one.roles), "digest": _digest_set(one.digest)}
        for one in materials(build)
    ]


def _byproducts(build: BuildResult) -> list[Tree]:
    chosen = {variant.digest for variant in build.variants}
    rejected = [c for c in build.candidates if c.digest not in chosen]
    result = codec.document_digest(build)
    return [
        {
            "name": "build result",
            "digest": _digest_set(result),
            "mediaType": "application/json",
        },
        *(_rejected(build, candidate) for candidate in rejected),
    ]


def _rejected(build: BuildResult, candidate: Candidate) -> Tree:
    name = artefact_file(build.blueprint.name, candidate.card)
    return {"name": f"not chosen: {name}", "digest": _digest_set(candidate.digest)}


def _versions(build: BuildResult) -> dict[str, str]:
    versions = {tool.name: tool.version for tool in tools(build.provenance)}
    name, _, version = build.reference.card.runtime.partition(" ")
    return {"slmops": __version__, **({name: version} if version else {}), **versions}


def _digest_set(digest: Digest) -> dict[str, str]:
    return {"sha256": digest_hex(digest)}
