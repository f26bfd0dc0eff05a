"""The executed graph of a build, read from its step records: what went in, with what.

Pure functions of `BuildResult`; the evidence documents are written from them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from slmops.domain.ids import Digest
from slmops.domain.release import Card, ModelRecord
from slmops.workshop.build_result import BuildResult, Candidate
from slmops.workshop.steps import StepRecord

_TOOL = re.compile(r"([A-Za-z][\w.-]*) (v?\d[\w.+-]*)")
_HUB = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """A blob that the build read and did not make."""

    digest: Digest
    """Of its bytes."""
    roles: tuple[str, ...]
    """What steps called it: ``text``, ``examples`` …, sorted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A package that computed something."""

    name: str
    """As the package is called."""
    version: str
    """As it says itself."""


def materials(build: BuildResult) -> tuple[Material, ...]:
    """Return what the steps read that no step made, the 16-bit reference apart.

    The evaluation text is named by the measured cards as well, so it is there even
    when its bytes went through no step.
    """
    made = {
        digest for record in build.provenance for digest in record.outputs.values()
    } | {build.model.id, build.model.source_digest}
    reported = build.reference.reported.fidelity.text_digest
    roles: dict[Digest, set[str]] = {reported: {"evaluation text"}}
    searched = build.reference.card.fidelity.text_digest
    if searched != reported:
        roles[searched] = {"evaluation text to choose by"}
    for task in build.reference.card.tasks:
        roles.setdefault(task.examples_digest, set()).add(f"task {task.name}")
    for record in build.provenance:
        for role, digest in record.step.inputs.items():
            if digest not in made:
                roles.setdefault(digest, set()).add(role)
    return tuple(
        Material(digest=digest, roles=tuple(sorted(roles[digest])))
        for digest in sorted(roles)
    )


def tools(records: Sequence[StepRecord]) -> tuple[Tool, ...]:
    """Return the packages that the steps name, without our own code's fingerprints.

    >>> from slmops.workshop.steps import Step
    >>> step = Step(kind="quantize", tool="code-0a1b; gguf 0.19.0", inputs={}, parameters={})
    >>> tools([StepRecord(step=step, outputs={}, seconds=1.0)])
    (Tool(name='gguf', version='0.19.0'),)
    """
    found = {
        match.groups()
        for record in records
        for part in re.split(r"[;,]", record.step.tool)
        if (match := _TOOL.fullmatch(part.strip()))
    }
    return tuple(Tool(name=name, version=version) for name, version in sorted(found))


def hub_source(model: ModelRecord) -> tuple[str, str] | None:
    """Return the Hub id and commit a model was fetched from, None for local files.

    Imports from the Hub are recorded as ``owner/model@<commit>``.
    """
    match = _HUB.fullmatch(model.source)
    return (match[1], match[2]) if match else None


def source_uri(model: ModelRecord) -> str | None:
    """Return the package URL of a model's source, None for local files.

    Type ``huggingface`` of https://github.com/package-url/purl-spec: the commit is the
    version, in lower case.
    """
    found = hub_source(model)
    return f"pkg:huggingface/{found[0]}@{found[1]}" if found else None


def artefact_file(product: str, card: Card, suffix: str = "gguf") -> str:
    """Return the file name of a candidate's artefact: ``assistant.Q4_K_M.gguf``."""
    return f"{product}.{file_label(card)}.{suffix}"


def file_label(card: Card) -> str:
    """Return a candidate's label as a part of a file's name: no slashes, no blanks."""
    return re.sub(r"[^\w.-]+", "-", card.label)


def rows(build: BuildResult) -> tuple[Candidate, ...]:
    """Return the control row of the reference and every candidate, in the build's order."""
    return (build.reference, *build.candidates)
