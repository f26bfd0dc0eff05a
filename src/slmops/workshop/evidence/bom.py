"""Bill of materials: a CycloneDX ML-BOM of a build's chosen variants.

CycloneDX 1.6 (ECMA-424, https://cyclonedx.org/docs/1.6/json/): each variant is a
component of type ``machine-learning-model`` with a model card, its measured figures with
bounds, the reference it descends from, and what it was measured and made with. The model
card is written by hand, because the CycloneDX library has no class for it; the library's
strict validator passes over every document before it is returned.

Equal evidence gives equal bytes: serial numbers are UUIDs (version 5) of the build's
digest, and the only time is the release's own.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from slmops import __version__
from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest, digest_hex
from slmops.domain.release import ModelRecord, Variant
from slmops.wire import codec
from slmops.workshop.build_result import BuildResult, ClassSelection
from slmops.workshop.evidence.figures import (
    Bounds,
    Figure,
    Nature,
    card_figures,
    structure_of,
    treatment_of,
)
from slmops.workshop.evidence.graph import (
    Material,
    artefact_file,
    materials,
    source_uri,
    tools,
)
from slmops.workshop.evidence.limits import limitations

SPEC_VERSION = "1.6"
"""CycloneDX version written."""
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:slmops:bom:v1")

Tree = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """What the bill is for."""

    name: str
    """The blueprint's name."""
    version: str
    """Release version, or the build's digest before there is a release."""
    created_at: float | None = None
    """Unix time of the release, seconds; None leaves the time out."""


def bill_of_materials(build: BuildResult, product: Product) -> bytes:
    """Return the BOM as JSON, validated against the strict schema.

    Raises:
        InvalidInputError: a name or licence of the model's makes it invalid.
    """
    document = bom_tree(build, product)
    text = codec.encode_json_pretty(document) + "\n"
    _validate(text)
    return text.encode()


def bom_tree(build: BuildResult, product: Product) -> Tree:
    """Return the BOM as a tree, not validated yet."""
    identity = f"{codec.document_digest(build)} {product.name} {product.version}"
    found = materials(build)
    metadata: Tree = {
        "tools": {"components": _tools(build)},
        "component": _product(build, product),
    }
    if product.created_at is not None:
        metadata["timestamp"] = _rfc3339(product.created_at)
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, identity)}",
        "version": 1,
        "metadata": metadata,
        "components": [
            *(_variant(build, variant, found) for variant in build.variants),
            _reference(build.model),
            *(_data(material) for material in found),
        ],
        "dependencies": _dependencies(build, found),
    }


def _product(build: BuildResult, product: Product) -> Tree:
    return {
        "type": "machine-learning-model",
        "bom-ref": "product",
        "name": product.name,
        "version": product.version,
        "description": f"{len(build.variants)} variants of {build.model.name} for"
        f" {len(build.blueprint.classes)} classes of devices",
        **_licences(build.model),
    }


def _variant(build: BuildResult, variant: Variant, found: Iterable[Material]) -> Tree:
    card = variant.card
    datasets = [{"ref": _ref(material.digest)} for material in found]
    return {
        "type": "machine-learning-model",
        "bom-ref": _ref(variant.digest),
        "name": artefact_file(build.blueprint.name, card, variant.format),
        "version": card.label,
        "description": f"for classes {', '.join(variant.classes)}",
        "hashes": _hashes(variant.digest),
        **_licences(build.model),
        "pedigree": {
            "ancestors": [_ancestor(build.model)],
            "notes": f"{structure_of(card) or 'as imported'}; {card.quantization},"
            f" {treatment_of(card)}",
        },
        "modelCard": {
            "modelParameters": {
                "task": "text-generation",
                "architectureFamily": "transformer",
                "modelArchitecture": build.model.architecture,
                "datasets": datasets,
                "inputs": [{"format": "string"}],
                "outputs": [{"format": "string"}],
            },
            "quantitativeAnalysis": {
                "performanceMetrics": [_metric(f) for f in card_figures(card)]
            },
            "considerations": {
                "useCases": [f"device class {name}" for name in variant.classes],
                "technicalLimitations": list(limitations(build)),
                "performanceTradeoffs": [
                    _tradeoff(selection)
                    for selection in build.selection
                    if selection.digest == variant.digest
                ],
            },
        },
        "properties": _properties(
            {
                "slmops:quantization": card.quantization,
                "slmops:structure": structure_of(card),
                "slmops:bytes": str(card.bytes),
                "slmops:runtime": card.runtime,
                "slmops:machine": build.machine,
                "slmops:reference-grid": card.reference_grid or "",
            }
        ),
    }


def _metric(figure: Figure) -> Tree:
    metric: Tree = {
        "type": f"{figure.name} ({figure.nature})",
        "value": _number(figure.estimate.value),
    }
    if figure.of:
        metric["slice"] = figure.of
    # A range of a few runs is no confidence interval: the name of the slice says so.
    if figure.bounds is Bounds.CONFIDENCE:
        metric["confidenceInterval"] = {
            "lowerBound": _number(figure.estimate.low),
            "upperBound": _number(figure.estimate.high),
        }
    elif figure.bounds is not Bounds.NONE:
        span = f"{_number(figure.estimate.low)} to {_number(figure.estimate.high)}"
        metric["slice"] = f"{figure.of}; {figure.bounds} {span}"
    if figure.nature is Nature.MODELLED:
        metric["slice"] = f"{metric['slice']}; not measured"
    return metric


def _tradeoff(selection: ClassSelection) -> str:
    return f"class {selection.device_class}: {selection.reason}"


def _reference(model: ModelRecord) -> Tree:
    return {
        "type": "machine-learning-model",
        "bom-ref": _ref(model.id),
        "name": model.name,
        "description": f"16-bit reference, {model.parameters} weights, from {model.source}",
        "hashes": _hashes(model.id),
        **_licences(model),
        "pedigree": {"ancestors": [_ancestor(model)]},
    }


def _ancestor(model: ModelRecord) -> Tree:
    uri = source_uri(model)
    return {
        "type": "machine-learning-model",
        "name": model.source,
        "hashes": _hashes(model.source_digest),
        **({"purl": uri} if uri else {}),
        **_licences(model),
    }


def _data(material: Material) -> Tree:
    name = ", ".join(material.roles)
    return {
        "type": "data",
        "bom-ref": _ref(material.digest),
        "name": name,
        "hashes": _hashes(material.digest),
        "data": [{"type": "dataset", "name": name}],
    }


def _tools(build: BuildResult) -> list[Tree]:
    runtime, _, version = build.reference.card.runtime.partition(" ")
    packages = [
        {
            "type": "library",
            "name": tool.name,
            "version": tool.version,
            "purl": f"pkg:pypi/{tool.name.lower().replace('_', '-')}@{tool.version}",
        }
        for tool in tools(build.provenance)
        if tool.name != runtime
    ]
    ours = {"type": "application", "name": "slmops", "version": __version__}
    served = {"type": "application", "name": runtime, "version": version or "unknown"}
    return [ours, served, *packages]


def _dependencies(build: BuildResult, found: Iterable[Material]) -> list[Tree]:
    data = [_ref(material.digest) for material in found]
    reference = _ref(build.model.id)
    variants = [_ref(variant.digest) for variant in build.variants]
    return [
        {"ref": "product", "dependsOn": variants},
        *({"ref": ref, "dependsOn": [reference, *data]} for ref in variants),
        {"ref": reference},
        *({"ref": ref} for ref in data),
    ]


def _licences(model: ModelRecord) -> Tree:
    if not model.licence:
        return {}
    from cyclonedx.spdx import fixup_id

    known = fixup_id(model.licence)
    named = {"id": known} if known else {"name": model.licence}
    return {"licenses": [{"license": named}]}


def _hashes(digest: Digest) -> list[Tree]:
    return [{"alg": "SHA-256", "content": digest_hex(digest)}]


def _properties(values: dict[str, str]) -> list[Tree]:
    return [{"name": name, "value": value} for name, value in values.items() if value]


def _ref(digest: Digest) -> str:
    return f"blob:{digest_hex(digest)[:32]}"


def _number(value: float) -> str:
    """Return a number exactly: the shortest text that reads back as the same float."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(int(unix_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _validate(text: str) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise InvalidInputError(
            f"the bill of materials is not CycloneDX {SPEC_VERSION}: {str(problem)[:300]}"
        )
