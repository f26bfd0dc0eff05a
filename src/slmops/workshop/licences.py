"""Licences as the Hugging Face Hub writes them in a card's metadata."""

_OTHER = "other"
_HUB_ONLY = frozenset(
    {
        *("bigcode-openrail-m", "bigscience-bloom-rail-1.0", "bigscience-openrail-m"),
        *("creativeml-openrail-m", "deepfloyd-if-license", "etalab-2.0", "gemma"),
        *("intel-research", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3"),
        *("llama4", "open-mdw", "openrail", "openrail++", "unknown"),
    }
)
"""Ids of the Hub's own, of licences that have none of SPDX's (its documentation on
repositories, "Licenses")."""


def hub_licence(
    licence: str | None, *, name: str | None = None, link: str | None = None
) -> dict[str, str]:
    """Return a card's metadata of a licence; empty when none is known.

    Args:
        licence: SPDX id, an id of the Hub's, or a name.
        name: of a licence without an id, where the model gives one.
        link: where it can be read.

    >>> hub_licence("Apache-2.0"), hub_licence("gemma")
    ({'license': 'apache-2.0'}, {'license': 'gemma'})
    >>> hub_licence("Some Model Licence")
    {'license': 'other', 'license_name': 'Some Model Licence'}
    """
    if not licence:
        return {}
    from cyclonedx.spdx import fixup_id

    known = licence.lower() if licence.lower() in _HUB_ONLY else fixup_id(licence)
    linked = {"license_link": link} if link else {}
    if known:
        return {"license": known.lower(), **linked}
    own = name or licence if licence.lower() == _OTHER else licence
    named = {} if own.lower() == _OTHER else {"license_name": own}
    return {"license": _OTHER, **named, **linked}
