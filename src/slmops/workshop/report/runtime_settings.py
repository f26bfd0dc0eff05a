"""The page's table of runtime settings that chosen variants were tried at."""

from slmops.domain.release import Estimate, Speed
from slmops.workshop.build_result import BuildResult, SettingResult
from slmops.workshop.report.markup import (
    estimate_cell,
    headings,
    join,
    number_cell,
    table,
    text_cell,
)


def setting_table(result: BuildResult) -> str:
    """Return every setting at every place it was measured; empty when none was tried."""
    if not result.setting_results:
        return ""
    head = headings(
        (
            *("variant", "setting", "threads, context", "mean KLD", "decode tok/s"),
            *("peak memory, MiB", "adopted", "why"),
        ),
        numbers=range(2, 6),
    )
    rows = [row for each in result.setting_results for row in _rows(each)]
    return (
        f"<h2>Runtime settings that were tried</h2>{table(head, rows)}"
        '<p class="soft">Each against the same variant at the defaults, asked in turn;'
        " adopted where it wins for every class the variant serves. Decode: the median with"
        " the bounds it is compared by. Memory with the context full, measured on this very"
        " variant.</p>"
    )


def _rows(result: SettingResult) -> list[str]:
    return [_row(result, speed) for speed in result.speed or (None,)]


def _row(result: SettingResult, speed: Speed | None) -> str:
    fidelity = result.fidelity
    cells = [
        text_cell(result.variant),
        text_cell(result.name),
        number_cell(f"{speed.threads}, {speed.context_tokens}" if speed else "–"),
        estimate_cell(fidelity.mean_kld, 4) if fidelity else number_cell("–"),
        estimate_cell(_decode(speed), 1) if speed else number_cell("–"),
        _peak(speed) if speed else number_cell("–"),
        text_cell("yes" if result.adopted else "no"),
        text_cell(result.reason),
    ]
    return f"<tr>{join(cells)}</tr>"


def _peak(speed: Speed) -> str:
    known = speed.peak_memory
    if known is None:
        return number_cell(f"{speed.peak_rss_mib:.1f}")
    return estimate_cell(known.full, 1)


def _decode(speed: Speed) -> Estimate:
    return speed.decode_median or speed.decode_tokens_per_s
