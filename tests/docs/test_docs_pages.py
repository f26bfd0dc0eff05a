"""Pages link to what exists, and explain every word and state an operator meets."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmops.domain.installation import State
from slmops.domain.rollout import RolloutState
from slmops.registry.oci import CARD, CLASSES, FILEPATH, REF_NAME, RELEASE_DIGEST
from slmops.registry.roots import LIFE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    found: dict[str, int] = {}
    result = set()
    for heading in re.findall(r"^#+ (.+)$", _without_code(text), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        count = found.get(name, 0)
        found[name] = count + 1
        result.add(f"{name}-{count}" if count else name)
    return result


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def links(path: Path) -> Iterator[str]:
    yield from _LINK.findall(_without_code(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in links(path):
        if re.match(r"[a-z]+://|mailto:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path.name}: {link}"
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), f"{path.name}: {link}"


def test_files_that_pages_name_exist() -> None:
    named = re.compile(r"`((?:docs|src|tests|bench)/[\w./-]+\.\w+)`")
    for path in PAGES:
        for name in named.findall(path.read_text("utf-8")):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_modules_that_pages_name_exist() -> None:
    folders = "domain|wire|registry|runtimes|workshop|control|agent|cli|demo|testing"
    named = re.compile(rf"`((?:{folders})/[\w./]+\.py)`")
    for path in PAGES:
        for name in named.findall(path.read_text("utf-8")):
            assert (ROOT / "src" / "slmops" / name).exists(), f"{path.name}: {name}"


def test_every_page_can_be_reached_from_the_index() -> None:
    """A page that nothing links to is read by nobody."""
    reached, waiting = set(), [DOCS / "README.md"]
    while waiting:
        path = waiting.pop()
        if path.suffix == ".md" and path not in reached:
            reached.add(path)
            targets = (link.partition("#")[0] for link in links(path))
            waiting += [
                (path.parent / target).resolve()
                for target in targets
                if target and "://" not in target
            ]
    assert {path for path in PAGES if path.parent != ROOT} <= reached


def test_every_decision_is_in_the_index() -> None:
    index = page("decisions/README.md")
    pages = sorted((DOCS / "decisions").glob("0*.md"))
    assert [int(path.name[:4]) for path in pages] == list(range(1, len(pages) + 1))
    for path in pages:
        number = int(path.name[:4])
        assert f"| [{number}]({path.name}) |" in index
        assert path.read_text("utf-8").startswith(f"# {number}. ")


@pytest.mark.parametrize("state", [*RolloutState, *State])
def test_every_state_an_operator_sees_is_explained(state: str) -> None:
    assert re.search(rf"^\| `{state}` \| .+ \|$", page("troubleshooting.md"), re.M)


def test_how_long_metadata_holds_is_said_as_it_is() -> None:
    text = page("troubleshooting.md")
    for role, life in LIFE.items():
        assert f"| {role} | {life.days} days |" in text


def test_every_annotation_of_the_registry_is_explained() -> None:
    text = page("registry.md")
    for name in (REF_NAME, RELEASE_DIGEST, CLASSES, CARD, FILEPATH):
        assert f"`{name}`" in text


WORDS = (
    *("device", "device class", "blueprint", "recipe", "variant", "release"),
    *("adaptation", "delta", "slot", "installation", "rollout / wave", "gate"),
    *("report", "sketch", "round"),
)


def test_the_glossary_has_every_word_of_the_vocabulary_in_order() -> None:
    rows = re.findall(r"^\| \*?([^|*]+?)\*? \|", page("glossary.md"), re.MULTILINE)[1:]
    words = [row.strip() for row in rows if row.strip("- ")]
    assert set(WORDS) <= set(words)
    assert words == sorted(words, key=str.lower)


def test_every_name_of_a_public_face_exists() -> None:
    """The contract between packages is what the code really offers."""
    section = page("architecture.md").split("## Packages and their public faces", 1)[1]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \|$", section.split("\n## ")[0], re.M)
    assert len(rows) > 15
    for module, face in rows:
        loaded = importlib.import_module(f"slmops.{module}")
        classes = [one for one in vars(loaded).values() if isinstance(one, type)]
        for name in re.findall(r"`([A-Za-z_]\w*)`", face):
            known = any(hasattr(place, name) for place in (loaded, *classes))
            assert known, f"{module}: {name}"
