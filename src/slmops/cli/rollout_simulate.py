"""`slmops rollout simulate`: what a policy would do, before it does it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.cli.operator_client import OperatorClient, server_options
from slmops.domain.errors import InvalidInputError
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.control.preview import RolloutPreview
    from slmops.control.simulation import Outlook

_MULTIPLES = (0.0, 0.5, 1.0, 2.0, 4.0, 10.0)


@click.command()
@click.argument("release", required=False)
@click.option(
    "--blueprint",
    type=click.Path(path_type=Path),
    help="Take the policy from this file and the fleet from --devices: asks no server.",
)
@click.option(
    "--devices",
    multiple=True,
    metavar="CLASS=N",
    help="Devices of a class, for --blueprint. Repeatable.",
)
@click.option(
    "--rate",
    multiple=True,
    metavar="CLASS=P",
    help="True failure rate of a class, 0 to 1; others fail at the tolerated rate / 2."
    " Repeatable. Without any, all classes together at several rates.",
)
@click.option("--runs", default=1000, show_default=True, help="Plays for each row.")
@server_options
@render.as_json
@click.pass_obj
def simulate(
    workspace: Workspace,
    *,
    release: str | None,
    blueprint: Path | None,
    devices: Sequence[str],
    rate: Sequence[str],
    runs: int,
    server: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Play the rollout policy of RELEASE against assumed failure rates.

    Example: slmops rollout simulate assistant-2 --rate till=0.2

    Nothing is offered to any device. Shown are the chance to complete (at rates the
    policy tolerates, the rest is the chance of a false halt) and the devices exposed.
    """
    from slmops.control.simulation import simulate as play

    if (release is None) == (blueprint is None):
        raise click.UsageError("give either RELEASE or --blueprint")
    if blueprint is not None:
        plan = _from_blueprint(blueprint, _pairs(devices, "--devices"))
    else:
        plan = _from_server(OperatorClient(workspace, server, token), str(release))
    classes = sorted({name for wave in plan.waves for name in wave})
    rates = _scenarios(plan, classes, _pairs(rate, "--rate"))
    outlooks = [play(plan.waves, plan.policy, one, runs=runs) for one in rates]
    if as_json:
        render.json_document({"plan": plan, "outlooks": outlooks})
        return
    _show(plan, classes, outlooks)


def _from_server(client: OperatorClient, release: str) -> "RolloutPreview":
    from slmops.control.orders import RolloutOrder
    from slmops.control.preview import RolloutPreview

    order = RolloutOrder(release=release, allow_downgrade=True, despite_quarantine=True)
    return client.post("/v1/rollouts/preview", order, RolloutPreview)


def _from_blueprint(path: Path, devices: Mapping[str, float]) -> "RolloutPreview":
    from slmops.control.preview import imagined_preview
    from slmops.workshop.blueprints import load_blueprint

    if not devices:
        raise click.UsageError("--blueprint needs --devices CLASS=N for its classes")
    blueprint = load_blueprint(path)
    known = {one.name for one in blueprint.classes}
    for name, count in devices.items():
        if name not in known:
            raise InvalidInputError(
                f"--devices {name}: {path} has no such class; it has"
                f" {', '.join(sorted(known))}"
            )
        if count < 1 or count != int(count):
            raise InvalidInputError(f"--devices {name}: expected a number >= 1")
    fleet = {name: int(count) for name, count in devices.items()}
    return imagined_preview(blueprint.name, blueprint.rollout, fleet)


def _pairs(texts: Sequence[str], option: str) -> dict[str, float]:
    """Read ``NAME=NUMBER`` words.

    >>> _pairs(["till=0.2"], "--rate")
    {'till': 0.2}
    """
    pairs = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            pairs[name] = float(number)
        except ValueError:
            raise InvalidInputError(
                f"{option} must be CLASS=NUMBER, got {text[:80]!r}"
            ) from None
    return pairs


def _scenarios(
    plan: "RolloutPreview", classes: Sequence[str], given: Mapping[str, float]
) -> list[dict[str, float]]:
    tolerated = plan.policy.tolerated_failure_rate
    if given:
        return [{**dict.fromkeys(classes, tolerated / 2), **given}]
    rates = [min(tolerated * multiple, 1.0) for multiple in _MULTIPLES]
    return [dict.fromkeys(classes, rate) for rate in rates]


def _show(
    plan: "RolloutPreview", classes: Sequence[str], outlooks: Sequence["Outlook"]
) -> None:
    names = [
        "lab" if plan.lab and index == 0 else f"wave {index + 1 - int(plan.lab)}"
        for index in range(len(plan.waves))
    ]
    render.table(
        ("devices", *classes, "all"),
        [
            (name, *(wave.get(one, 0) for one in classes), sum(wave.values()))
            for name, wave in zip(names, plan.waves, strict=True)
        ],
    )
    if plan.emulated:
        render.text(f"emulated: {', '.join(plan.emulated)}")
    for missed in plan.left_out[:10]:
        render.text(f"  – {missed.device} left out: {missed.reason}")
    total = sum(sum(wave.values()) for wave in plan.waves)
    render.table(
        ("failure rate", "completes", "95 % interval", "exposed", "of 95 %", "broken"),
        [
            (
                _rates(one.failure_rates),
                f"{one.completed:.1%}",
                f"{one.completed_low:.1%}..{one.completed_high:.1%}",
                f"{one.exposed_mean:.0f} of {total}",
                f"{one.exposed_p95:.0f}",
                f"{one.broken_mean:.1f}",
            )
            for one in outlooks
        ],
    )
    render.note(
        f"tolerated: {plan.policy.tolerated_failure_rate:.1%} a class; at most"
        f" {plan.policy.alpha:.1%} of rollouts at that rate are halted by the stop rule."
        " Simulated, not measured: devices fail independently"
    )


def _rates(rates: Mapping[str, float]) -> str:
    """Show equal rates once.

    >>> _rates({"a": 0.02, "b": 0.02}), _rates({"a": 0.02, "b": 0.2})
    ('2.0% everywhere', 'a 2.0%, b 20.0%')
    """
    if len(set(rates.values())) == 1:
        return f"{next(iter(rates.values())):.1%} everywhere"
    return ", ".join(f"{name} {rate:.1%}" for name, rate in sorted(rates.items()))
