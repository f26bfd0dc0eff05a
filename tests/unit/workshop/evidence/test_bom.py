"""The bill of materials: valid CycloneDX, complete, exact, the same every time."""

import json
from dataclasses import replace
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from slmops.domain.ids import digest_hex
from slmops.testing.sample_release import digest_of
from slmops.workshop.build_result import BuildResult
from slmops.workshop.evidence.bom import Product, bill_of_materials, bom_tree
from slmops.workshop.evidence.figures import card_figures

PRODUCT = Product(name="sample", version="1", created_at=1_760_000_000.0)


def bom_of(build: BuildResult) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(bill_of_materials(build, PRODUCT))
    return tree


def test_it_passes_the_strict_validator_and_would_not_with_an_unknown_key(
    build: BuildResult,
) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    tree = bom_of(build)
    assert validator.validate_str(json.dumps(tree)) is None
    tree["components"][0]["modelCard"]["speed"] = 3
    assert validator.validate_str(json.dumps(tree)) is not None


def test_every_variant_is_a_model_with_its_digest_licence_and_figures(
    build: BuildResult,
) -> None:
    models = {
        one["hashes"][0]["content"]: one
        for one in bom_of(build)["components"]
        if one["type"] == "machine-learning-model"
    }
    for variant in build.variants:
        component = models[digest_hex(variant.digest)]
        assert component["licenses"] == [{"license": {"id": "Apache-2.0"}}]
        metrics = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
        assert len(metrics) == len(card_figures(variant.card))
        kld = variant.card.fidelity.mean_kld
        (found,) = [m for m in metrics if m["type"] == "mean_kld_nats (measured)"]
        assert float(found["value"]) == kld.value
        interval = found["confidenceInterval"]
        assert float(interval["lowerBound"]) == kld.low
        assert float(interval["upperBound"]) == kld.high


def test_a_range_of_runs_is_never_called_a_confidence_interval(
    build: BuildResult,
) -> None:
    metrics = bom_of(build)["components"][0]["modelCard"]["quantitativeAnalysis"]
    speeds = [m for m in metrics["performanceMetrics"] if "tokens_per_s" in m["type"]]
    assert speeds
    for metric in speeds:
        assert "confidenceInterval" not in metric
        assert "range of all runs" in metric["slice"]


def test_what_was_extrapolated_is_called_modelled(build: BuildResult) -> None:
    (variant, *_) = build.variants
    speed = replace(variant.card.speed[0], extrapolated_mib=50.0, filled_tokens=700)
    drawn = replace(variant, card=replace(variant.card, speed=(speed,)))
    tree = bom_of(replace(build, variants=(drawn,)))
    metrics = tree["components"][0]["modelCard"]["quantitativeAnalysis"]
    modelled = [m for m in metrics["performanceMetrics"] if "(modelled)" in m["type"]]
    assert [m["value"] for m in modelled] == [str(round(speed.peak_rss_mib, 6))]
    assert "not measured" in modelled[0]["slice"]


def test_data_tools_and_dependencies_refer_to_what_is_there(build: BuildResult) -> None:
    tree = bom_of(build)
    components = {one["bom-ref"]: one for one in tree["components"]}
    refs = {*components, "product"}
    for entry in tree["dependencies"]:
        assert {entry["ref"], *entry.get("dependsOn", [])} <= refs
    data = [one for one in components.values() if one["type"] == "data"]
    hashes = {one["hashes"][0]["content"] for one in data}
    assert {
        digest_hex(digest_of(b"text")),
        digest_hex(digest_of(b"calibration")),
    } <= hashes
    versions = {
        one["name"]: one["version"] for one in tree["metadata"]["tools"]["components"]
    }
    assert versions["gguf"] == "0.19.0"
    assert versions["libgguf"] == "0.2.2"
    assert "slmops" in versions


def test_considerations_carry_the_limits(build: BuildResult) -> None:
    card = bom_of(build)["components"][0]["modelCard"]
    limits = " ".join(card["considerations"]["technicalLimitations"])
    assert "lower bound of the divergence" in limits
    assert "quantized file, mainly Q4_1" in limits
    assert card["considerations"]["performanceTradeoffs"]


def test_equal_evidence_gives_equal_bytes_and_other_evidence_another_serial(
    build: BuildResult,
) -> None:
    assert bill_of_materials(build, PRODUCT) == bill_of_materials(build, PRODUCT)
    other = replace(build, machine="another machine")
    serials = {bom_tree(one, PRODUCT)["serialNumber"] for one in (build, other)}
    assert len(serials) == 2


def test_the_only_time_is_the_releases_own(build: BuildResult) -> None:
    assert bom_of(build)["metadata"]["timestamp"] == "2025-10-09T08:53:20Z"
    assert (
        "timestamp"
        not in bom_tree(build, replace(PRODUCT, created_at=None))["metadata"]
    )


@pytest.mark.parametrize("licence", [None, "Gemma Terms of Use", "<b>\x07"])
def test_any_licence_a_source_states_makes_a_valid_bill(
    licence: str | None, build: BuildResult
) -> None:
    named = replace(build, model=replace(build.model, licence=licence))
    component = bom_of(named)["components"][0]
    wanted = [{"license": {"name": licence}}] if licence else None
    assert component.get("licenses") == wanted
