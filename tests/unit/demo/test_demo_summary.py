"""What the demo claims, and what makes it say that something did not happen."""

from dataclasses import replace
from typing import Any

import pytest

from slmops.demo.summary import OnDevice, Summary, missing, variant_summaries
from slmops.domain.blueprint import Blueprint
from slmops.domain.device import DeviceClass
from slmops.domain.release import Estimate, Speed
from slmops.testing.sample_release import sample_release

GOOD = Summary(
    devices=6,
    requests_sent=400,
    requests_failed=0,
    release_1="assistant-1",
    release_1_done=True,
    release_2="assistant-2",
    release_2_halted=True,
    halt_reason="wave 1 of 2: class gateway: 1 of 1 devices failed",
    devices_exposed=3,
    devices_back_on_release_1=6,
    bytes_shipped=900_000_000,
    variants={},
    on_devices={
        "gateway": OnDevice(devices=2, decode_tokens_per_s=40.0, peak_rss_mib=210.0)
    },
    question="What is the capital of France?",
    answer="Paris.",
    seconds=200.0,
    failures=(),
)


def test_a_run_that_showed_everything_misses_nothing() -> None:
    assert missing(GOOD) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"requests_sent": 0}, "the load sent requests"),
        ({"requests_failed": 1}, "no request failed"),
        ({"release_1_done": False}, "release 1 reached the whole fleet"),
        ({"release_2_halted": False}, "release 2 halted by itself"),
        ({"halt_reason": ""}, "the halt has a reason"),
        ({"devices_exposed": 0}, "release 2 reached some devices and not all"),
        ({"devices_exposed": 6}, "release 2 reached some devices and not all"),
        ({"devices_back_on_release_1": 5}, "every device is back on release 1"),
        ({"answer": "  "}, "a device answered the question"),
        ({"bytes_shipped": 0}, "artefacts were shipped"),
    ],
)
def test_whatever_did_not_happen_is_named(change: dict[str, Any], said: str) -> None:
    assert missing(replace(GOOD, **change)) == (said,)


def test_a_class_s_figures_are_those_measured_in_its_own_settings() -> None:
    def speed(context_tokens: int, decode: float) -> Speed:
        figure = Estimate(value=decode, low=decode, high=decode)
        return Speed(
            threads=1,
            context_tokens=context_tokens,
            prompt_tokens=64,
            first_token_ms=figure,
            first_token_tail_ms=decode,
            prefill_tokens_per_s=figure,
            decode_tokens_per_s=figure,
            load_ms=1.0,
            peak_rss_mib=float(context_tokens),
            rss_anon_mib=1.0,
            rss_file_mib=1.0,
            machine="test",
            runs=3,
        )

    classes = (
        DeviceClass(name="small", context_tokens=512),
        DeviceClass(name="large", context_tokens=1024),
    )
    plain = sample_release(classes=classes)
    release = replace(
        plain,
        blueprint=Blueprint(name="sample", model="m", classes=classes),
        variants=tuple(
            replace(
                variant,
                card=replace(variant.card, speed=(speed(512, 10.0), speed(1024, 20.0))),
            )
            for variant in plain.variants
        ),
    )
    found = variant_summaries(release)
    assert found["small"].peak_rss_mib == 512
    assert found["large"].decode_tokens_per_s == 20.0
