"""The YAML metadata at the top of a model card, as the Hugging Face Hub reads it.

Only what is known is written: a base model that was not fetched from the Hub by its
commit is named in the card's text, not in the metadata, where a wrong id would link to
somebody else's model.
"""

from collections.abc import Iterator, Sequence

from slmops.domain.release import Variant
from slmops.domain.tasks import TaskResult
from slmops.workshop.build_result import BuildResult
from slmops.workshop.evidence.graph import hub_source
from slmops.workshop.licences import hub_licence

_TASK_TYPES = {
    "classification": "text-classification",
    "extraction": "text-generation",
    "text": "text-generation",
}
"""Our kinds of tasks → pipeline tags of the Hub."""


def front_matter(build: BuildResult, title: str, variants: Sequence[Variant]) -> str:
    """Return the metadata block of a card, without its dashes.

    Args:
        build: the evidence.
        title: name of the ``model-index`` entry.
        variants: whose measured results are listed.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(**result)
        for variant in variants
        for result in _results(build, variant)
    ]
    hub = hub_source(build.model)
    data = ModelCardData(
        base_model=hub[0] if hub else None,
        library_name="gguf",
        pipeline_tag="text-generation",
        tags=["gguf", "slmops", *sorted({v.card.quantization for v in variants})],
        model_name=title,
        eval_results=results,
        **hub_licence(build.model.licence),
        **({"base_model_relation": _relation(build, variants)} if hub else {}),
    )
    # Line ends in a value would end the block: the YAML writer quotes them.
    return f"{data.to_yaml()}\n"


def _relation(build: BuildResult, variants: Sequence[Variant]) -> str:
    """Return the Hub's word for how variants came from their base model."""
    changed = build.blueprint.recipe.prepare or any(
        variant.card.steps or variant.card.recovered for variant in variants
    )
    return "finetune" if changed else "quantized"


def _results(build: BuildResult, variant: Variant) -> Iterator[dict[str, object]]:
    """Yield what one variant measured, as the Hub's evaluation results."""
    card = variant.card
    text = build.blueprint.evaluation.text
    for name, kind, estimate in (
        ("Mean KL divergence from the 16-bit reference, nats", "kl_divergence", card.fidelity.mean_kld),
        ("Share of equal most likely tokens", "top1_agreement", card.fidelity.same_top1),
        ("Perplexity", "perplexity", card.fidelity.perplexity),
    ):  # fmt: skip
        yield {
            "task_type": "text-generation",
            "dataset_type": "text",
            "dataset_name": f"evaluation text {text}",
            "dataset_args": {"digest": str(card.fidelity.text_digest)},
            "metric_type": kind,
            "metric_name": f"{name} ({card.label})",
            "metric_value": estimate.value,
            "metric_args": {"low": estimate.low, "high": estimate.high},
            "verified": False,
        }
    for task in card.tasks:
        yield _task(task, card.label)


def _task(task: TaskResult, label: str) -> dict[str, object]:
    return {
        "task_type": _TASK_TYPES[task.kind],
        "dataset_type": task.name,
        "dataset_name": f"{task.name}, {task.examples} examples",
        "dataset_split": str(task.split),
        "dataset_args": {"digest": str(task.examples_digest)},
        "metric_type": str(task.metric),
        "metric_name": f"{task.metric} ({label})",
        "metric_value": task.score.value,
        "metric_args": {"low": task.score.low, "high": task.score.high},
        "verified": False,
    }
