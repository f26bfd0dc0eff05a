"""Model cards: Markdown with the Hub's metadata, written from measurements only.

Metadata format: https://huggingface.co/docs/hub/model-cards and the ``model-index`` of
Papers with Code, through `huggingface_hub`. Whatever a card says was measured, counted or
recorded at import; what nobody measured is not on it. Modelled and measured figures
never share a column. Texts that come from the model's source are escaped.

One card for a product with all its variants, and one for each variant.
"""

import re
from collections.abc import Iterable, Sequence

from slmops.domain.release import Card, Estimate, Speed, Variant
from slmops.domain.tasks import TaskResult
from slmops.wire.codec import document_digest
from slmops.workshop.build_result import BuildResult, Candidate
from slmops.workshop.evidence.bom import Product
from slmops.workshop.evidence.energy_tables import energy_absences, energy_tables
from slmops.workshop.evidence.figures import structure_of, treatment_of
from slmops.workshop.evidence.graph import (
    artefact_file,
    hub_source,
    materials,
    tools,
)
from slmops.workshop.evidence.hub_metadata import front_matter
from slmops.workshop.evidence.limits import limitations
from slmops.workshop.feasibility import tail_name

_MB = 1_000_000
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")


def release_card(build: BuildResult, product: Product) -> str:
    """Return the card of a product: all chosen variants, all candidates, all limits."""
    variants = build.variants
    title = f"{product.name} {product.version}"
    return _document(
        front_matter(build, title, variants),
        f"# {_text(title)}",
        _origin(build, product),
        "## Variants",
        _choices(build, variants),
        *_measured(build, rows=(build.reference, *build.candidates)),
        *_settings(build),
        *_closing(build),
    )


def variant_card(build: BuildResult, variant: Variant, product: Product) -> str:
    """Return the card of one variant, with the control rows beside it."""
    own = next(c for c in build.candidates if c.digest == variant.digest)
    controls = [build.reference, build.control]
    title = f"{product.name} {product.version}: {variant.card.label}"
    return _document(
        front_matter(build, title, (variant,)),
        f"# {_text(title)}",
        _origin(build, product),
        "## What it is",
        _choices(build, (variant,)),
        *_measured(
            build, rows=(*controls, *([] if own.digest in _ids(controls) else [own]))
        ),
        *_settings(build, variant.card.label),
        "## Tensor types",
        _table(
            ("stored as", "tensors"),
            [(kind, str(n)) for kind, n in sorted(variant.card.tensor_types.items())],
        ),
        *_closing(build),
    )


def _origin(build: BuildResult, product: Product) -> str:
    model = build.model
    hub = hub_source(model)
    base = f"[{hub[0]}](https://huggingface.co/{hub[0]})" if hub else _text(model.name)
    return (
        f"Variants of {base} ({model.parameters / 1e6:.1f} million weights, licence"
        f" {_text(model.licence or 'not stated by its source')}), made and measured by"
        f" slmops from `{_code(model.source)}`. Every figure below was measured in the"
        " runtime that serves the variant, or counted; nothing was copied from elsewhere."
        f"\n\nEvidence: build `{document_digest(build)}`, product {_text(product.name)}"
        f" {_text(product.version)}."
    )


def _choices(build: BuildResult, variants: Sequence[Variant]) -> str:
    reasons = {s.device_class: s.reason for s in build.selection}
    rows = [
        (
            _text(variant.card.label),
            f"`{artefact_file(build.blueprint.name, variant.card, variant.format)}`",
            f"{variant.bytes / _MB:.1f}",
            _text(structure_of(variant.card) or "as imported"),
            treatment_of(variant.card),
            _text(", ".join(variant.classes)),
            _text("; ".join(reasons[name] for name in variant.classes)),
            f"`{variant.digest}`",
        )
        for variant in variants
    ]
    head = ("variant", "file", "MB", "structure", "weights", "for", "why", "digest")
    return _table(head, rows)


def _measured(build: BuildResult, rows: Sequence[Candidate]) -> list[str]:
    runs = build.blueprint.evaluation.speed_runs
    tested = [row for row in rows if row.test_fidelity is not None] or list(rows)
    share = build.blueprint.evaluation.search_share
    new = share > 0 and build.reference.test_fidelity is not None
    apart = " of text that nothing was chosen by" if new else ""
    parts = [
        "## Fidelity, measured",
        _fidelity(build, [(row, row.reported) for row in tested]),
        "Value and 95 % bootstrap bounds, against the 16-bit reference on the same"
        f" {build.reference.reported.fidelity.tokens} positions{apart}. *Control* rows show"
        " the noise of measuring and 8-bit; gates are relative to 8-bit.",
    ]
    if len(tested) < len(rows):
        parts += [
            "## Fidelity that candidates were chosen by, measured",
            _fidelity(build, [(row, row.card) for row in rows]),
            f"On {build.reference.card.fidelity.tokens} positions of another part of the"
            " text. The best of many looks better here than it is.",
        ]
    timed = [(c, s) for c in rows for s in c.card.speed]
    if timed:
        parts += [
            "## Speed and memory, measured",
            _speeds(timed, runs),
            f"Median and range of {runs} runs; on {_text(build.machine)},"
            f" {_text(build.reference.card.runtime)}. Memory is of the serving process; its"
            " bounds are for one more process: a 95 % prediction interval over the"
            " deviation of as many processes as the table says.",
            *_anchored(timed),
        ]
    if any(speed.extrapolated_mib for _, speed in timed):
        parts += [
            "## Memory with a full context, modelled",
            _extrapolated(timed),
            "A line through measured points, drawn on to the whole context: not measured.",
        ]
    parts += _energy(build, [c.card for c in rows])
    if any(c.card.tasks for c in rows):
        parts += ["## Tasks, measured", _tasks(rows)]
    return parts


def _fidelity(build: BuildResult, rows: Sequence[tuple[Candidate, Card]]) -> str:
    head = (
        *("candidate", "MB", "bits/weight", "mean KLD, nats", "p99 KLD, nats"),
        *("same top-1", "perplexity", "mark"),
    )
    return _table(
        head,
        [
            (
                _text(card.label),
                f"{card.bytes / _MB:.1f}",
                f"{card.bits_per_weight:.2f}",
                _bounds(card.fidelity.mean_kld, 4),
                _bounds(card.fidelity.p99_kld, 3),
                _bounds(card.fidelity.same_top1, 3),
                _bounds(card.fidelity.perplexity, 2),
                ", ".join(_marks(build, row)),
            )
            for row, card in rows
        ],
    )


def _marks(build: BuildResult, row: Candidate) -> list[str]:
    marks = []
    if row.digest == build.reference.digest:
        marks.append("control: reference against itself")
    if row.digest == build.control.digest:
        marks.append("control: 8-bit")
    if row.on_reference_grid:
        marks.append(row.flattery)
    chosen = [s.device_class for s in build.selection if s.digest == row.digest]
    if chosen:
        marks.append(f"chosen for {_text(', '.join(chosen))}")
    return marks


def _speeds(timed: Sequence[tuple[Candidate, Speed]], runs: int) -> str:
    head = (
        *("candidate", "threads", "context", "decode tok/s", "prefill tok/s"),
        *(
            "first token ms",
            f"{tail_name(runs)}, ms",
            "load ms",
            "processes",
            "peak RSS MiB",
        ),
    )
    return _table(
        head,
        [
            (
                _text(candidate.card.label),
                str(speed.threads),
                str(speed.context_tokens),
                *_times(speed),
                str(speed.peak_memory.processes) if speed.peak_memory else "1",
                _measured_peak(speed),
            )
            for candidate, speed in timed
        ],
    )


def _anchored(timed: Sequence[tuple[Candidate, Speed]]) -> list[str]:
    names = sorted({_text(c.card.label) for c, speed in timed if speed.anchored})
    if not names:
        return []
    return [
        f"Timed in another group than the others: {', '.join(names)}. Times and speeds"
        " were brought onto the others' scale by those of the 8-bit control, which was in"
        " both groups; bounds are carried over from all three, not a range of runs."
    ]


def _times(speed: Speed) -> tuple[str, ...]:
    if speed.timed_context_tokens is not None:
        return (f"as at context {speed.timed_context_tokens}", "", "", "", "")
    return (
        _bounds(speed.decode_tokens_per_s, 1),
        _bounds(speed.prefill_tokens_per_s, 0),
        _bounds(speed.first_token_ms, 0),
        f"{speed.first_token_tail_ms:.0f}",
        f"{speed.load_ms:.0f}",
    )


def _extrapolated(timed: Sequence[tuple[Candidate, Speed]]) -> str:
    return _table(
        ("candidate", "context", "tokens measured with", "peak RSS MiB, modelled"),
        [
            (
                _text(candidate.card.label),
                str(speed.context_tokens),
                str(speed.filled_tokens or speed.prompt_tokens),
                f"~{_peak(speed.peak_memory.full)}"
                if speed.peak_memory
                else f"~{speed.peak_rss_mib:.0f}",
            )
            for candidate, speed in timed
            if speed.extrapolated_mib
        ],
    )


def _tasks(rows: Sequence[Candidate]) -> str:
    head = (
        *("task", "candidate", "metric", "score", "minus reference"),
        *("right → wrong", "wrong → right", "McNemar p", "examples", "other figures"),
    )
    return _table(head, [_task(c.card, task) for c in rows for task in c.card.tasks])


def _task(card: Card, task: TaskResult) -> tuple[str, ...]:
    flips = task.flips
    others = "; ".join(f"{n} {_bounds(e, 3)}" for n, e in sorted(task.metrics.items()))
    return (
        _text(task.name),
        _text(card.label),
        f"{task.metric} ({task.method}, {task.split} split)",
        _bounds(task.score, 3),
        _bounds(task.difference, 3) if task.difference else "reference",
        str(flips.right_to_wrong) if flips else "",
        str(flips.wrong_to_right) if flips else "",
        f"{flips.p_value:.3g}" if flips else "",
        str(task.examples),
        _text(others),
    )


def _settings(build: BuildResult, label: str | None = None) -> list[str]:
    """Return what variants, or one of them, were tried at; nothing if at nothing else."""
    tried = [r for r in build.setting_results if label in {None, r.variant}]
    if not tried:
        return []
    head = (
        *("variant", "setting", "mean KLD, nats", "threads, context"),
        *("decode tok/s, median", "peak RSS MiB", "adopted", "why"),
    )
    rows = [
        (
            _text(each.variant),
            _text(each.name),
            _bounds(each.fidelity.mean_kld, 4) if each.fidelity else "",
            *(_place(speed) if speed else ("", "", "")),
            "yes" if each.adopted else "no",
            _text(each.reason),
        )
        for each in tried
        for speed in each.speed or (None,)
    ]
    return [
        "## Runtime settings, measured",
        _table(head, rows),
        "Figures above are of the defaults; a variant runs with what was adopted here.",
    ]


def _place(speed: Speed) -> tuple[str, str, str]:
    return (
        f"{speed.threads}, {speed.context_tokens}",
        _bounds(speed.decode_median or speed.decode_tokens_per_s, 1),
        _measured_peak(speed),
    )


def _closing(build: BuildResult) -> list[str]:
    data = [
        f"- {_text(', '.join(one.roles))}: `{one.digest}`" for one in materials(build)
    ]
    made = ", ".join(f"{tool.name} {tool.version}" for tool in tools(build.provenance))
    used = f"- packages: {_text(made)}" if made else "- packages: none named"
    plan = build.blueprint.evaluation
    return [
        "## How it was measured",
        "\n".join(
            [
                f"- machine: {_text(build.machine)}",
                f"- runtime: {_text(build.reference.card.runtime)}",
                f"- windows of {plan.window_tokens} tokens, the first quarter only gives"
                " context",
                f"- 16-bit reference: `{build.model.id}`",
                f"- model's source: `{build.model.source_digest}`",
                *data,
                used,
            ]
        ),
        "## Limits",
        "\n".join(f"- {_text(line)}" for line in limitations(build)),
    ]


def _ids(rows: Iterable[Candidate]) -> set[str]:
    return {row.digest for row in rows}


def _bounds(estimate: Estimate, digits: int) -> str:
    value, low, high = (
        f"{number:.1e}"
        if 0 < abs(number) < 0.5 * 10**-digits
        else f"{number:.{digits}f}"
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return value if low == high else f"{value} ({low} to {high})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _energy(build: BuildResult, cards: Sequence[Card]) -> list[str]:
    parts = []
    for found in energy_tables(cards):
        rows = [[_text(cell) for cell in row] for row in found.rows]
        parts += [f"## {found.title}", _table(found.head, rows), found.note]
    missing = energy_absences(build.control.card, build.blueprint.classes)
    if missing:
        why = "\n".join(f"- {_text(line)}" for line in missing)
        parts += ["## Energy that is not known", why]
    return parts


def _measured_peak(speed: Speed) -> str:
    known = speed.peak_memory
    return f"{speed.measured_peak_mib:.5g}" if known is None else _peak(known.measured)


def _peak(estimate: Estimate) -> str:
    return _bounds(estimate, 1)


def _text(text: str) -> str:
    r"""Return text that Markdown shows as it is, on one line.

    >>> _text("a|b\n<script>")
    'a\\|b \\<script\\>'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Return text for a code span: on one line, without its delimiter."""
    return " ".join(text.split()).replace("`", "'")


def _document(metadata: str, *parts: str) -> str:
    return f"---\n{metadata}---\n\n" + "\n\n".join(parts) + "\n"
