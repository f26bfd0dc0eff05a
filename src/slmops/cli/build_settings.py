"""The table of runtime settings that a build tried on its variants."""

from typing import TYPE_CHECKING

from slmops.cli import render
from slmops.cli.card_figures import peak_figure

if TYPE_CHECKING:
    from slmops.workshop.build_result import BuildResult, SettingResult


def render_settings(build: "BuildResult") -> None:
    """Print every setting that was tried, and why it is used or not; nothing if none."""
    if not build.setting_results:
        return
    render.text()
    render.table(
        (
            "variant",
            "setting",
            "mean KLD",
            "decode tok/s",
            "peak MiB",
            "adopted",
            "why",
        ),
        [_row(each) for each in build.setting_results],
    )


def _row(result: "SettingResult") -> tuple[object, ...]:
    decode = [
        f"{(each.decode_median or each.decode_tokens_per_s).value:.1f}"
        for each in result.speed
    ]
    return (
        result.variant,
        result.name,
        f"{result.fidelity.mean_kld.value:.4f}" if result.fidelity else None,
        ", ".join(decode) or None,
        ", ".join(str(peak_figure(each)) for each in result.speed) or None,
        "yes" if result.adopted else "no",
        result.reason,
    )
