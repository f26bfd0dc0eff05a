"""Tables show what was extrapolated with a sign, and say where speed was timed."""

from dataclasses import replace

from slmops.cli.card_figures import peak_figure, speed_remarks
from slmops.domain.memory import PeakMemory
from slmops.domain.release import Estimate, Speed
from slmops.testing.sample_build import SAMPLE_FIGURES, sample_candidate


def speed(context_tokens: int, extrapolated_mib: float) -> Speed:
    return replace(
        sample_candidate(SAMPLE_FIGURES[0]).card.speed[0],
        context_tokens=context_tokens,
        timed_context_tokens=8192,
        filled_tokens=1946,
        peak_rss_mib=300.2,
        extrapolated_mib=extrapolated_mib,
    )


def test_only_a_visible_extrapolation_is_marked() -> None:
    assert peak_figure(speed(2048, 0.2)) == 300
    assert peak_figure(speed(8192, 90.0)) == "~300"


def test_a_peak_with_bounds_is_shown_with_them_and_what_they_are() -> None:
    bounds = Estimate(value=300.2, low=299.1, high=301.3)
    known = PeakMemory(measured=bounds, full=bounds, processes=3, deviation_mib=0.2)
    plain = replace(speed(2048, 0.0), peak_memory=known)
    assert peak_figure(plain) == "300.2 (299.1 to 301.3)"
    assert str(peak_figure(replace(plain, extrapolated_mib=90.0))).startswith("~300.2")
    assert any("one more process" in line for line in speed_remarks([plain]))


def test_the_remarks_name_the_contexts_that_were_timed_and_filled() -> None:
    assert speed_remarks([speed(2048, 0.2), None]) == ["speed: timed at context 8192"]
    assert speed_remarks([speed(8192, 90.0), speed(8192, 90.0)]) == [
        "speed: timed at context 8192",
        "~ extrapolated: measured with 1946 tokens in the context of 8192",
    ]
    assert speed_remarks([None]) == []


def test_the_remarks_say_that_some_were_timed_apart() -> None:
    factor = Estimate(value=1.1, low=1.0, high=1.2)
    apart = replace(speed(2048, 0.2), anchored=factor)
    assert any("another group" in line for line in speed_remarks([apart]))
