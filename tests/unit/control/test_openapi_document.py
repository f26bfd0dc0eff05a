"""The API's document is valid, complete, and the one in docs/ is current."""

from pathlib import Path

from openapi_spec_validator import OpenAPIV31SpecValidator

from slmops.control.openapi import openapi
from slmops.control.routes import ROUTES
from slmops.testing.control_in_process import ControlInProcess
from slmops.wire import codec

DOCUMENT = Path(__file__).parents[3] / "docs" / "openapi.json"


def test_the_document_is_valid_openapi_3_1() -> None:
    OpenAPIV31SpecValidator(openapi()).validate()


def test_every_route_has_a_summary_and_a_handler_of_its_own() -> None:
    assert all(route.summary.endswith(".") for route in ROUTES)
    operations = [route.handler.__name__ for route in ROUTES]
    assert len(operations) == len(set(operations))


def test_every_route_of_the_architecture_page_exists() -> None:
    page = (DOCUMENT.parent / "architecture.md").read_text(encoding="utf-8")
    for route in ROUTES:
        start = route.path.split("/{", maxsplit=1)[0]
        if start.startswith("/dashboard"):
            continue
        assert start in page, route.path


def test_the_server_hands_out_the_same_document(control: ControlInProcess) -> None:
    answer = control.http.get("/v1/openapi.json")
    assert answer.json() == openapi()


def test_the_document_in_docs_is_current() -> None:
    written = DOCUMENT.read_text(encoding="utf-8")
    assert written == codec.encode_json_pretty(openapi()) + "\n", (
        "write it anew: python -m slmops.control.openapi docs/openapi.json"
    )
