"""Tiny random models of each family that the tests compare, compiled against eager.

    tiny = families.tiny("llama")
    tiny.model(**tiny.inputs(batch=2, length=7))

The configurations are the published ones with two layers, a hidden width of 64 and a vocabulary of 256; the
weights are drawn from a seed. Every architecture comes from transformers except `resnet`, a plain module that
has no pathway at all.
"""

from srrc.errors import ModelError
from srrc.models_zoo.families import decoders, encoder_decoders, encoders, state_space, vision
from srrc.models_zoo.families.tiny import Family, Tiny, seeded

__all__ = ["Family", "Tiny", "names", "tiny"]

_FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *decoders.FAMILIES,
        *encoders.FAMILIES,
        *encoder_decoders.FAMILIES,
        *vision.FAMILIES,
        *state_space.FAMILIES,
    )
}


def names() -> list[str]:
    """Names of all families, in the order decoders, encoders, encoder-decoders, vision, state space."""
    return list(_FAMILIES)


def tiny(name: str, seed: int = 0) -> Tiny:
    """Build the tiny model of a family, in fp32 and evaluation mode, with the weights that `seed` gives.

    Raises ModelError for a name that is not in `names()`, or where transformers is missing.
    """
    if name not in _FAMILIES:
        raise ModelError(f"no family {name!r}; known: {', '.join(_FAMILIES)}")
    family = _FAMILIES[name]
    try:
        with seeded(seed):
            model = family.build().eval()
    except ImportError as error:
        raise ModelError(f"the family {name!r} needs transformers; pip install 'srrc[zoo]'") from error
    return Tiny(name, model, family.kind, family.generates, family.draw)
