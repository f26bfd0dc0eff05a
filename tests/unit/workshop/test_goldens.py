"""Golden steps on real worker processes: recorded once, asked once a variant."""

import math
from collections.abc import Callable

import pytest

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.workshop.artefacts import Artefact
from slmops.workshop.build_context import BuildContext
from slmops.workshop.goldens import Goldens, load_golden

PROMPTS = ("Say one.", "Say two.")
Make = Callable[..., BuildContext]
Echo = Callable[..., Artefact]


def test_the_references_answers_are_recorded_once(make_build: Make) -> None:
    build = make_build(answer="yes indeed", logprob=-0.25)
    digest = Goldens(build=build).record(PROMPTS, 2)
    golden = load_golden(build.blobs, digest)
    assert [prompt.prompt for prompt in golden.prompts] == list(PROMPTS)
    assert all(len(prompt.answer) == 2 for prompt in golden.prompts)
    assert golden.prompts[0].answer[0].logprob == -0.25
    again = make_build(answer="yes indeed", logprob=-0.25)
    assert Goldens(build=again).record(PROMPTS, 2) == digest
    assert [timing.reused for timing in again.runner.timings] == [True]


def test_a_variant_has_figures_of_its_own(
    make_build: Make, echo_artefact: Echo
) -> None:
    build = make_build(answer="yes indeed", logprob=-0.25)
    goldens = Goldens(build=build)
    golden = goldens.record(PROMPTS, 2)
    good = echo_artefact(answer="yes indeed", logprob=-0.5)
    worse = echo_artefact(answer="no", logprob=-0.1)
    assert goldens.ask("good", good.digest, golden) == (-0.5, -0.5)
    found = goldens.ask("worse", worse.digest, golden)
    assert max(found) < -0.5
    assert all(math.isfinite(value) for value in found)


def test_other_prompts_answers_and_templates_are_other_steps(make_build: Make) -> None:
    build = make_build(answer="yes indeed")
    goldens = Goldens(build=build)
    goldens.record(PROMPTS, 2)
    goldens.record(PROMPTS[:1], 2)
    goldens.record(PROMPTS, 1)
    assert [timing.reused for timing in build.runner.timings] == [False] * 3


def test_a_reference_that_says_nothing_is_refused(make_build: Make) -> None:
    with pytest.raises(InvalidInputError, match="golden prompt 0"):
        Goldens(build=make_build(answer="")).record(PROMPTS, 2)


def test_messages_call_a_prompt_by_its_place(make_build: Make) -> None:
    names = ("golden.prompts: mine.txt:1", "golden.prompts: mine.txt:7")
    with pytest.raises(InvalidInputError, match=r"^golden\.prompts: mine\.txt:1: "):
        Goldens(build=make_build(answer="")).record(PROMPTS, 2, names=names)


def test_a_reference_that_does_not_load_is_refused(make_build: Make) -> None:
    with pytest.raises(InvalidInputError, match="refused"):
        Goldens(build=make_build(refuse=True)).record(PROMPTS, 2)


def test_a_stopped_build_starts_no_worker(make_build: Make) -> None:
    build = make_build(answer="yes")
    build.workers.stop()
    with pytest.raises(UnavailableError, match="stopped"):
        Goldens(build=build).record(PROMPTS, 2)
    assert not list(build.workspace.steps.glob("*.json"))
