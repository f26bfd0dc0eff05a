"""Provenance: a valid statement of what really ran, believed from one key only."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from slmops.domain.errors import UntrustedError
from slmops.domain.runtime_settings import RuntimeSettings
from slmops.registry.envelope import seal
from slmops.registry.keys import SigningKey
from slmops.testing.sample_release import digest_of
from slmops.wire.codec import document_digest, encode_json
from slmops.workshop.build_result import BuildResult
from slmops.workshop.evidence.statement import (
    PAYLOAD_TYPE,
    build_digest,
    open_statement,
    provenance_statement,
    seal_statement,
    subject_digests,
)

SCHEMA = Path(__file__).with_name("in-toto-slsa-v1.schema.json")


def errors_of(tree: Any) -> list[str]:  # noqa: ANN401
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    return [error.message for error in validator.iter_errors(tree)]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.create(tmp_path_factory.mktemp("keys") / "targets.key")


def test_the_statement_meets_the_published_form(build: BuildResult) -> None:
    tree = json.loads(encode_json(provenance_statement(build)))
    assert errors_of(tree) == []


@pytest.mark.parametrize("broken", ["subject", "predicateType", "extra", "digest"])
def test_the_schema_would_find_a_statement_of_another_form(
    broken: str, build: BuildResult
) -> None:
    tree = json.loads(encode_json(provenance_statement(build)))
    changes: dict[str, Any] = {
        "subject": {**tree, "subject": []},
        "predicateType": {**tree, "predicateType": "https://slsa.dev/provenance/v0.2"},
        "extra": {**tree, "subjects": tree["subject"]},
        "digest": {
            **tree,
            "subject": [{"name": "a", "digest": {"sha256": "sha256:0"}}],
        },
    }
    assert errors_of(changes[broken])


def test_subjects_are_the_chosen_variants_and_nothing_else(build: BuildResult) -> None:
    statement = provenance_statement(build)
    assert subject_digests(statement) == {v.digest for v in build.variants}
    assert build_digest(statement) == document_digest(build)


def test_a_draft_that_a_device_is_given_is_a_subject_too(build: BuildResult) -> None:
    draft = RuntimeSettings(draft=digest_of(b"draft"), draft_bytes=5)
    (first, *rest) = build.variants
    drafted = replace(build, variants=(replace(first, settings=draft), *rest))
    wanted = {v.digest for v in build.variants} | {digest_of(b"draft")}
    assert subject_digests(provenance_statement(drafted)) == wanted


def test_the_whole_graph_can_be_walked_from_a_subject_to_the_source(
    build: BuildResult,
) -> None:
    definition = provenance_statement(build)["predicate"]["buildDefinition"]
    made = {
        digest: step
        for step in definition["internalParameters"]["steps"]
        for digest in step["outputs"].values()
    }
    known = {
        f"sha256:{one['digest']['sha256']}"
        for one in definition["resolvedDependencies"]
    }
    assert set(made) & known == set(), "what a step made is no outside dependency"
    waiting = [digest_of(b"artefact Q4_K_M")]
    while waiting:
        digest = waiting.pop()
        assert digest in made or digest in known
        waiting += made[digest]["inputs"].values() if digest in made else []
    assert digest_of(b"calibration") in known
    assert build.model.source_digest in known


def test_the_source_on_the_hub_is_named_by_its_commit(build: BuildResult) -> None:
    definition = provenance_statement(build)["predicate"]["buildDefinition"]
    source = definition["resolvedDependencies"][0]
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert source["uri"] == f"pkg:huggingface/maker/model@{commit}"
    local = replace(build, model=replace(build.model, source="model.gguf"))
    definition = provenance_statement(local)["predicate"]["buildDefinition"]
    assert "uri" not in definition["resolvedDependencies"][0]


def test_steps_keep_parameters_seed_and_time(build: BuildResult) -> None:
    definition = provenance_statement(build)["predicate"]["buildDefinition"]
    step = definition["internalParameters"]["steps"][1]
    assert step["id"] == build.provenance[1].step.digest
    assert (step["seed"], step["seconds"]) == (7, 1.25)
    assert step["parameters"]["quantization"] == "Q4_K_M"


def test_equal_builds_give_equal_bytes(build: BuildResult, key: SigningKey) -> None:
    envelopes = {seal_statement(provenance_statement(build), key) for _ in range(2)}
    assert len(envelopes) == 1
    tree = json.loads(envelopes.pop())
    assert tree["payloadType"] == PAYLOAD_TYPE
    assert json.loads(base64.b64decode(tree["payload"])) == json.loads(
        encode_json(provenance_statement(build))
    )


def test_a_sealed_statement_opens_with_any_of_the_trusted_keys(
    build: BuildResult, key: SigningKey, tmp_path: Path
) -> None:
    other = SigningKey.create(tmp_path / "other.key")
    envelope = seal_statement(provenance_statement(build), key)
    opened = open_statement(envelope, [other.public_hex, key.public_hex])
    assert subject_digests(opened) == {v.digest for v in build.variants}
    with pytest.raises(UntrustedError, match="not signed by the targets key"):
        open_statement(envelope, [other.public_hex])
    with pytest.raises(UntrustedError, match="no trusted targets key"):
        open_statement(envelope, [])


def test_one_changed_letter_is_found(build: BuildResult, key: SigningKey) -> None:
    tree = json.loads(seal_statement(provenance_statement(build), key))
    payload = base64.b64decode(tree["payload"]).replace(b"Q4_K_M", b"Q4_K_S")
    tree["payload"] = base64.b64encode(payload).decode()
    with pytest.raises(UntrustedError):
        open_statement(json.dumps(tree).encode(), [key.public_hex])


def test_a_signed_document_of_another_kind_is_no_provenance(key: SigningKey) -> None:
    for payload in (b'{"_type": "other"}', b"[]", b"no json"):
        envelope = seal(payload, key, payload_type=PAYLOAD_TYPE).encode()
        with pytest.raises(UntrustedError):
            open_statement(envelope, [key.public_hex])
    assignment = seal(b"{}", key).encode()
    with pytest.raises(UntrustedError, match=r"must hold application/vnd\.in-toto"):
        open_statement(assignment, [key.public_hex])
    with pytest.raises(UntrustedError):
        open_statement(b"\xff", [key.public_hex])
