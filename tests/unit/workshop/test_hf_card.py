"""An exported checkpoint says whose it is, under what licence, and where it came from."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from slmops.domain.errors import ConflictError
from slmops.domain.release import ModelRecord
from slmops.registry.workspace import Workspace
from slmops.testing.tiny_gguf import TinyLlama, tiny_metadata, write_tiny_llama
from slmops.workshop.gguf_file import read_header
from slmops.workshop.gguf_writer import metadata_entry, with_metadata
from slmops.workshop.hf_card import export_model, write_card
from slmops.workshop.licences import hub_licence
from slmops.workshop.models import import_model


@pytest.fixture
def record(workspace: Workspace, tmp_path: Path) -> ModelRecord:
    return import_model(str(write_tiny_llama(tmp_path / "tiny.gguf")), workspace)


def card(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def test_licence_and_origin_go_along_and_come_back(
    workspace: Workspace, record: ModelRecord, tmp_path: Path
) -> None:
    assert record.licence == "apache-2.0"
    export_model(workspace, record, tmp_path / "hf")
    found = card(tmp_path / "hf")
    assert found.data.license == "apache-2.0"
    assert found.data.library_name == "transformers"
    assert f"imported from tiny.gguf (`{record.source_digest}`)" in found.text
    back = import_model(str(tmp_path / "hf"), Workspace(root=tmp_path / "other"))
    assert back.licence == "apache-2.0"


@pytest.mark.parametrize(
    ("licence", "front", "back"),
    [
        ("gemma", {"license": "gemma"}, "gemma"),
        ("MIT", {"license": "mit"}, "mit"),
        (
            "Our: own\nlicence",
            {"license": "other", "license_name": "Our: own\nlicence"},
            "Our: own\nlicence",
        ),
    ],
)
def test_a_licence_is_spelled_as_the_hub_does(
    licence: str,
    front: dict[str, str],
    back: str,
    workspace: Workspace,
    record: ModelRecord,
    tmp_path: Path,
) -> None:
    export_model(workspace, replace(record, licence=licence), tmp_path / "hf")
    data = card(tmp_path / "hf").data.to_dict()
    assert {key: data[key] for key in data if key.startswith("license")} == front
    again = import_model(str(tmp_path / "hf"), Workspace(root=tmp_path / "other"))
    assert again.licence == back


def test_a_name_and_a_link_of_the_models_own_are_kept() -> None:
    found = hub_licence("other", name="lab-1.0", link="https://example.org/licence")
    assert found == {
        "license": "other",
        "license_name": "lab-1.0",
        "license_link": "https://example.org/licence",
    }
    assert hub_licence(None) == {}


def test_what_the_file_says_of_its_base_goes_along(
    record: ModelRecord, tmp_path: Path
) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    url = "https://huggingface.co/lab/base-1"
    entries = with_metadata(
        tiny_metadata(TinyLlama()),
        [
            metadata_entry("general.base_model.0.repo_url", url, "STRING"),
            metadata_entry("general.organization", "A <b>Lab</b>\n# x", "STRING"),
        ],
    )
    header = replace(read_header(path), metadata=entries)
    write_card(tmp_path, header, None)
    assert card(tmp_path).data.base_model == "lab/base-1"
    # A value of somebody's file is text, not Markdown.
    assert "- organization: A b Lab /b x\n" in card(tmp_path).text
    (tmp_path / "README.md").unlink()
    fetched = replace(record, source="owner/model@" + "a" * 40)
    write_card(tmp_path, header, fetched)
    assert card(tmp_path).data.base_model == "owner/model"


def test_somebody_elses_card_is_not_overwritten(
    workspace: Workspace, record: ModelRecord, tmp_path: Path
) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "README.md").write_text("# Mine\n")
    with pytest.raises(ConflictError, match="is not from an export"):
        export_model(workspace, record, folder)
    assert [path.name for path in folder.iterdir()] == ["README.md"]


def test_a_quantized_source_is_owned_up_to(
    workspace: Workspace, record: ModelRecord, tmp_path: Path
) -> None:
    quantized = replace(record, source_quantization="Q4_K", licence=None)
    export_model(workspace, quantized, tmp_path / "hf")
    assert "mainly to Q4_K" in card(tmp_path / "hf").text
    # The file itself says what the record does not.
    assert card(tmp_path / "hf").data.license == "apache-2.0"
