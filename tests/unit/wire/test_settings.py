"""Settings: variable over file over default, strict, typed, located in messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.wire.settings import load_settings, override_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Shop:
    name: str
    port: int = 80
    token: str | None = None
    wait_s: float = 1.5
    open: bool = True
    hosts: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.port < 0:
            raise InvalidInputError(f"port must be >= 0, got {self.port}")


def load(path: Path | None = None, **environment: str) -> Shop:
    return load_settings(Shop, path=path, environment=environment, prefix="SHOP_")


def test_a_variable_beats_the_file_and_the_file_beats_the_default(
    tmp_path: Path,
) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text("name: a\nport: 81\nwait_s: 2\n")
    assert load(path, SHOP_PORT="82") == Shop(name="a", port=82, wait_s=2.0)


def test_variables_alone_are_enough() -> None:
    shop = load(
        SHOP_NAME="north",
        SHOP_OPEN="false",
        SHOP_HOSTS="[a, b]",
        SHOP_LABELS="{site: north}",
    )
    assert shop == Shop(
        name="north", open=False, hosts=("a", "b"), labels={"site": "north"}
    )


@pytest.mark.parametrize("text", ["123", "null", "true", "a: b", "[", ""])
def test_text_fields_take_variables_as_they_are(text: str) -> None:
    assert load(SHOP_NAME=text, SHOP_TOKEN=text) == Shop(name=text, token=text)


def test_other_variables_are_not_looked_at() -> None:
    assert load(SHOP_NAME="a", SHOPPING="x", PATH="/bin") == Shop(name="a")


def test_json_files_are_read_as_json(tmp_path: Path) -> None:
    path = tmp_path / "shop.json"
    path.write_text('{"name": "a", "port": 1}')
    assert load(path) == Shop(name="a", port=1)


def test_an_empty_file_leaves_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text("# nothing yet\n")
    assert load(path, SHOP_NAME="a") == Shop(name="a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nprot: 1", r"shop\.yaml: prot: unknown key; did you mean 'port'\?"),
        ("name: a\nport: x", r"shop\.yaml: port: Expected `int`"),
        ("name: a\nport: -1", "port must be >= 0, got -1"),
        ("port: 1", "name"),
        ("- a", "must be a mapping .* got list"),
        ("name: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_named_with_the_place(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=said):
        load(path)


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("SHOP_PROT", "1", r"SHOP_PROT: unknown setting; did you mean SHOP_PORT\?"),
        ("SHOP_QQQQQ", "1", "SHOP_QQQQQ: unknown setting$"),
        ("SHOP_PORT", "x", "SHOP_PORT.*Expected `int`"),
        ("SHOP_PORT", "[", "SHOP_PORT:.* not valid YAML"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        load(SHOP_NAME="a", **{variable: text})  # type: ignore[arg-type]


def test_a_missing_file_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no\.yaml does not exist"):
        load(tmp_path / "no.yaml")


def test_a_folder_in_place_of_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load(tmp_path)


def override(base: Shop, **environment: str) -> Shop:
    return override_settings(
        base, environment=environment, prefix="SHOP_", fixed=("name",)
    )


def test_variables_override_what_a_program_chose() -> None:
    base = Shop(name="a", port=81, hosts=("x",))
    assert override(base) == base
    changed = override(base, SHOP_WAIT_S="2", SHOP_HOSTS="[y, z]", PATH="/bin")
    assert changed == Shop(name="a", port=81, wait_s=2.0, hosts=("y", "z"))


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("SHOP_PORT", "many", "SHOP_PORT: Expected `int`, got `str`"),
        ("SHOP_PORT", "-1", "SHOP_PORT: port must be >= 0, got -1"),
        ("SHOP_WAIT_S", ".nan", "SHOP_WAIT_S: value must be finite"),
        ("SHOP_PROT", "1", "SHOP_PROT: unknown setting; did you mean SHOP_PORT"),
        ("SHOP_NAME", "b", "SHOP_NAME: unknown setting"),
    ],
)
def test_a_wrong_override_is_named(variable: str, text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        override(Shop(name="a"), **{variable: text})
