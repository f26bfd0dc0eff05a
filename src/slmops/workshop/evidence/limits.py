"""What the figures of a build do not say: one list of sentences for card and BOM."""

from slmops.workshop.build_result import BuildResult


def limitations(build: BuildResult) -> tuple[str, ...]:
    """Return what a reader must know before believing the figures of a build."""
    model = build.model
    lines = [
        "KL divergence is over the reference's 256 likeliest tokens and one bucket for all"
        " others: a lower bound of the divergence over the whole vocabulary.",
        f"Fidelity was measured on {build.reference.reported.fidelity.tokens} positions of"
        " one text against the 16-bit reference; it says nothing about that reference's"
        " own quality, biases or safety, which were not measured.",
        f"Speed and memory are of one machine ({build.machine}); others differ.",
    ]
    if any(c.card.modelled_energy for c in build.candidates):
        lines.append(
            "Modelled energy is a class's stated power over this machine's speed: nobody"
            " measured it, and a slower device takes more."
        )
    if not build.reference.card.tasks:
        lines.append("No task was evaluated: nothing here says what the model can do.")
    if model.source_quantization:
        lines.append(_flattered(build))
    lines += [
        f"Class {selection.device_class}: {violation}"
        for selection in build.selection
        for violation in selection.violations
    ]
    return tuple(lines)


def _flattered(build: BuildResult) -> str:
    labels = [c.card.label for c in build.candidates if c.on_reference_grid]
    named = f"flattered here: {', '.join(labels)}" if labels else "none here is"
    return (
        "The reference was dequantized from a quantized file, mainly"
        f" {build.model.source_quantization}: fidelity of variants whose tensors have that"
        f" file's types is flattered ({named})."
    )
