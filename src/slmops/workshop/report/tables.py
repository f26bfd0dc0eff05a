"""The page's tables of figures: classes, fidelity, speed, memory, tasks, structures."""

from collections.abc import Iterator
from html import escape

from slmops.domain.device import DeviceClass
from slmops.domain.levers import RecipeStep
from slmops.domain.release import Card, Speed
from slmops.domain.tasks import TaskResult
from slmops.wire.codec import to_plain
from slmops.workshop.build_result import BuildResult, Candidate, ClassSelection
from slmops.workshop.evidence.figures import structure_of, treatment_of
from slmops.workshop.feasibility import SelectionRules, tail_name
from slmops.workshop.report.chart import reported_rules
from slmops.workshop.report.markup import (
    estimate_cell,
    headings,
    join,
    number,
    number_cell,
    table,
    text_cell,
)

_MB = 1_000_000
_MIB = 1 << 20


def class_table(result: BuildResult) -> str:
    """Return what each class got, against what it may spend."""
    tail = tail_name(result.blueprint.evaluation.speed_runs)
    head = headings(
        (
            *("class", "variant", "size, MiB", "peak memory, MiB"),
            *(f"first token, {tail}, ms", "decode tok/s", "mean KLD", "runner-up"),
        ),
        numbers=range(2, 7),
    )
    rules = reported_rules(result)
    by_name = {
        device_class.name: device_class for device_class in result.blueprint.classes
    }
    rows = (
        _class_row(result, selection, by_name[selection.device_class], rules)
        for selection in result.selection
    )
    return (
        f"{table(head, rows)}"
        '<p class="soft">Small print: what the class may spend, or must reach. Figures are'
        " of the class's own threads and context. ~ marks memory of which a part was"
        " extrapolated; the memory table below tells them apart. Memory's <em>up to</em> is"
        " the upper bound that the budget is compared with.</p>"
    )


def _class_row(
    result: BuildResult,
    selection: ClassSelection,
    device_class: DeviceClass,
    rules: SelectionRules,
) -> str:
    card = result.chosen_card(selection.device_class)
    budget = device_class.budget
    threads = (
        "1 thread" if device_class.threads == 1 else f"{device_class.threads} threads"
    )
    setting = f"{threads}, context {device_class.context_tokens}"
    cells = [
        text_cell(device_class.name, small=setting),
        text_cell(
            card.label, small=f"objective: {device_class.objective}{_run_with(card)}"
        ),
        number_cell(
            f"{card.bytes / _MIB:.1f}", small=_limit("at most", budget.disk_mib)
        ),
        *_class_speed(card.speed_for(device_class), device_class),
        number_cell(
            number(card.fidelity.mean_kld.value, 4),
            small=f"at most {number(rules.max_kld, 4)}",
        ),
        text_cell(selection.runner_up or "none"),
    ]
    return f"<tr>{join(cells)}</tr>"


def _run_with(card: Card) -> str:
    return "" if card.settings.is_default else f"; runs with {card.settings.label}"


def _class_speed(speed: Speed | None, device_class: DeviceClass) -> Iterator[str]:
    budget = device_class.budget
    if speed is None:
        yield from (number_cell("–") for _ in range(3))
        return
    sign = "~" if speed.extrapolated_mib else ""
    limit = _limit("at most", budget.memory_mib)
    bound = "" if speed.peak_memory is None else f"up to {speed.most_peak_mib:.1f}; "
    yield number_cell(f"{sign}{speed.peak_rss_mib:.0f}", small=f"{bound}{limit}")
    yield number_cell(
        f"{speed.first_token_tail_ms:.0f}",
        small=_limit("at most", budget.first_token_ms),
    )
    yield number_cell(
        f"{speed.decode_tokens_per_s.value:.1f}",
        small=_limit("at least", budget.decode_tokens_per_s),
    )


def _limit(words: str, value: float | None) -> str:
    return f"{words} {value:g}" if value is not None else "no limit"


def fidelity_table(result: BuildResult) -> str:
    """Return every candidate's size, making and closeness to the reference."""
    head = headings(
        (
            *("candidate", "structure, weights, types", "MB", "bits/weight"),
            *("mean KLD", "p99 KLD", "same top\u20111", "perplexity"),
        ),
        numbers=range(2, 8),
    )
    rows = [_fidelity_row(result, result.reference)]
    rows += [_fidelity_row(result, candidate) for candidate in result.candidates]
    return (
        f"{table(head, rows)}"
        '<p class="soft">KLD: KL divergence from the reference in nats, over its 256'
        " likeliest tokens and one bucket for all others. That is a <em>lower bound</em> of"
        " the divergence over the whole vocabulary. Small print: 95 % bounds."
        f"{_chosen_by(result)}</p>"
    )


def _chosen_by(result: BuildResult) -> str:
    if result.blueprint.evaluation.search_share == 0:
        return " Candidates were chosen by these figures, which flatters the chosen."
    return (
        " Candidates were chosen by these figures; what each class got was measured again"
        " on text that nothing was chosen by, for the table of classes and the cards."
    )


def _fidelity_row(result: BuildResult, candidate: Candidate) -> str:
    card, fidelity = candidate.card, candidate.card.fidelity
    classes, tags = _roles(result, candidate)
    shown = join(f'<span class="tag">{escape(tag)}</span>' for tag in tags)
    cells = [
        f"<td>{escape(card.label)}{shown}</td>",
        _making(result, candidate),
        number_cell(f"{card.bytes / _MB:.1f}"),
        number_cell(f"{card.bits_per_weight:.2f}"),
        estimate_cell(fidelity.mean_kld, 4),
        estimate_cell(fidelity.p99_kld, 3),
        estimate_cell(fidelity.same_top1, 3),
        estimate_cell(fidelity.perplexity, 2),
    ]
    return f'<tr class="{" ".join(classes)}">{join(cells)}</tr>'


def _making(result: BuildResult, candidate: Candidate) -> str:
    card = candidate.card
    kinds = sorted(card.tensor_types.items())
    how = treatment_of(card)
    if candidate.digest == result.reference.digest:
        how = "nothing rounded"
    parts = [
        f"{card.parameters / 1e6:.1f} million; {how}",
        ", ".join(f"{kind}\u00a0×\u00a0{n}" for kind, n in kinds),
    ]
    small = join(f"<small>{escape(part)}</small>" for part in parts)
    name = escape(structure_of(card) or "as imported")
    return f'<td class="making">{name}{small}</td>'


def _roles(result: BuildResult, candidate: Candidate) -> tuple[list[str], list[str]]:
    """Return a row's CSS classes and the tags beside its name."""
    classes, tags = [], []
    if any(s.digest == candidate.digest for s in result.selection):
        classes.append("chosen")
    if candidate.digest == result.reference.digest:
        classes.append("control")
        tags.append("control: reference against itself")
    if candidate.digest == result.control.digest:
        classes.append("control")
        tags.append("control: 8-bit")
    if candidate.on_reference_grid:
        tags.append(candidate.flattery)
    return classes, tags


def speed_table(result: BuildResult) -> str:
    """Return every candidate's measured times."""
    tail = tail_name(result.blueprint.evaluation.speed_runs)
    head = headings(
        (
            *("candidate", "threads", "timed at context", "decode tok/s"),
            *("prefill tok/s", "first token ms", f"{tail}, ms", "load ms"),
        ),
        numbers=range(1, 8),
    )
    rows = [
        _speed_row(candidate.card, speed)
        for candidate in result.candidates
        for speed in candidate.card.speed
        if speed.timed_context_tokens is None
    ]
    apart = sorted({row.label for row in _anchored(result)})
    remark = (
        f" Timed in another group: {', '.join(map(escape, apart))}; brought onto the"
        " others' scale by the 8-bit control, which was in both, with bounds carried over."
        if apart
        else ""
    )
    return (
        f"{table(head, rows)}"
        '<p class="soft">Medians with the range of all runs, at the largest context that a'
        " class with so many threads asks for; shorter ones are not timed again and count"
        " as equally fast. Measured, not modelled;"
        " the 16-bit reference is not timed: no class could be served by it."
        f"{remark}</p>"
    )


def _anchored(result: BuildResult) -> list[Card]:
    """Return the cards of candidates that were timed apart from the others."""
    cards = [candidate.card for candidate in result.candidates]
    return [card for card in cards if any(speed.anchored for speed in card.speed)]


def _speed_row(card: Card, speed: Speed) -> str:
    cells = [
        text_cell(card.label),
        number_cell(str(speed.threads)),
        number_cell(str(speed.context_tokens)),
        estimate_cell(speed.decode_tokens_per_s, 1),
        estimate_cell(speed.prefill_tokens_per_s, 0),
        estimate_cell(speed.first_token_ms, 0),
        number_cell(f"{speed.first_token_tail_ms:.0f}"),
        number_cell(f"{speed.load_ms:.0f}"),
    ]
    return f"<tr>{join(cells)}</tr>"


def memory_table(result: BuildResult) -> str:
    """Return every candidate's memory, measured and modelled in columns of their own."""
    head = headings(
        (
            *("candidate", "threads", "context", "tokens in it"),
            *("peak RSS MiB, measured", "private MiB", "mapped MiB"),
            *("peak MiB, extrapolated to all of the context", "processes, deviation"),
        ),
        numbers=range(1, 9),
    )
    rows = [
        _memory_row(candidate.card, speed)
        for candidate in result.candidates
        for speed in candidate.card.speed
    ]
    return (
        f"{table(head, rows)}"
        '<p class="soft">Of the serving process: each variant\'s own peak with the standard'
        " prompt, and what filling the context to the tokens named adds, measured on one"
        " variant for all. Private: KV cache, scratch, reordered weights; mapped: weights"
        " and code, which several processes share. The extrapolated peak is modelled: a line"
        " through the measured points, drawn on to the whole context. Budgets are compared"
        " with its upper bound, where it is there, else with the measured one. Small print:"
        " where the peak of one more process lies, by a 95 % prediction interval over the"
        " processes' peaks; widened by 0.6 MiB where another variant's context was filled."
        " The deviation is the standard deviation of the processes' peaks.</p>"
    )


def _memory_row(card: Card, speed: Speed) -> str:
    measured_private = speed.rss_anon_mib - speed.extrapolated_mib
    known = speed.peak_memory
    modelled = "–"
    if speed.extrapolated_mib:
        modelled = f"~{speed.peak_rss_mib:.0f}"
        if known is not None:
            modelled += f"<small>~{known.full.low:.1f} to {known.full.high:.1f}</small>"
    spread = "1" if known is None else f"{known.processes}, {known.deviation_mib:.2f}"
    cells = [
        text_cell(card.label),
        number_cell(str(speed.threads)),
        number_cell(str(speed.context_tokens)),
        number_cell(str(speed.filled_tokens or speed.prompt_tokens)),
        number_cell(f"{speed.measured_peak_mib:.0f}")
        if known is None
        else estimate_cell(known.measured, 1),
        number_cell(f"{measured_private:.0f}"),
        number_cell(f"{speed.rss_file_mib:.0f}"),
        f'<td class="n modelled">{modelled}</td>',
        number_cell(spread),
    ]
    return f"<tr>{join(cells)}</tr>"


def task_table(result: BuildResult) -> str:
    """Return every candidate's scores on the user's tasks; empty when there are none."""
    rows = [
        _task_row(candidate.card, task)
        for candidate in (result.reference, *result.candidates)
        for task in candidate.card.tasks
    ]
    if not rows:
        return ""
    head = headings(
        (
            *("task", "candidate", "score", "minus reference", "right → wrong"),
            *("wrong → right", "McNemar p", "examples", "other figures"),
        ),
        numbers=range(2, 8),
    )
    limit = result.blueprint.quality.max_task_loss
    return (
        f"<h2>Tasks</h2>{table(head, sorted(rows))}"
        '<p class="soft">On the test split, which nothing was chosen by. The difference is'
        " paired: the same examples, answer by answer; small print: 95 % bounds. A variant"
        f" may be at most {limit:g} below the reference, and the lower bound counts.</p>"
    )


def _task_row(card: Card, task: TaskResult) -> str:
    others = "; ".join(
        f"{name} {number(e.value, 3)} ({number(e.low, 3)} to {number(e.high, 3)})"
        for name, e in sorted(task.metrics.items())
    )
    asked = f"{task.metric}, {task.method}" + (
        ", constrained" if task.constrained else ""
    )
    flips = task.flips
    cells = [
        text_cell(task.name, small=asked),
        text_cell(card.label),
        estimate_cell(task.score, 3),
        estimate_cell(task.difference, 3)
        if task.difference
        else number_cell("reference"),
        number_cell(str(flips.right_to_wrong) if flips else "–"),
        number_cell(str(flips.wrong_to_right) if flips else "–"),
        number_cell(f"{flips.p_value:.3g}" if flips else "–"),
        number_cell(str(task.examples)),
        f'<td class="types"><small>{escape(others)}</small></td>',
    ]
    return f"<tr>{join(cells)}</tr>"


def structure_table(result: BuildResult) -> str:
    """Return the structures that were tried or dropped; empty when there were none."""
    if not result.trials:
        return ""
    head = headings(
        (
            "structure",
            "steps",
            "16-bit MB",
            "mean KLD after short recovery",
            "kept",
            "why",
        ),
        numbers=(2, 3),
    )
    rows = (
        f"<tr>{text_cell(trial.name)}"
        f"{text_cell('; '.join(map(_step, trial.plan.steps)))}"
        f"{number_cell(f'{trial.bytes / _MB:.1f}')}"
        f"{number_cell('–' if trial.kld is None else number(trial.kld, 4))}"
        f"{text_cell('yes' if trial.kept else 'no')}{text_cell(trial.reason)}</tr>"
        for trial in result.trials
    )
    return f"<h2>Structures that were tried</h2>{table(head, rows)}"


def _step(step: RecipeStep) -> str:
    """Say what one lever was set to: ``prune_depth layers 6``."""
    given = to_plain(step.lever)
    settings = (
        f"{name} {value}"
        for name, value in given.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    )
    return f"{step.name} {', '.join(settings)}"
