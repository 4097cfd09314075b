"""Select the layers of a model for factorisation or calibration."""

from collections.abc import Sequence

from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.select import select
from lowrank_speech.models.speech import SpeechModel


def dense_layers(model: SpeechModel, layers: str | Sequence[str]) -> dict[str, nn.Module]:
    """Name (relative to the body) -> layer, for the ``layers`` (a group of the family, a pattern, or several).

    Linear layers, and the embedding if one of ``layers`` is its group or its name. Raises UserError if the embedding is
    not tied to the output projection.
    """
    patterns, name = model.layer_patterns(layers), model.EMBEDDING
    # Only by its name: a pattern such as *decoder* means linear layers.
    wanted = [pattern for pattern in patterns if pattern == name]
    rest = [pattern for pattern in patterns if pattern != name]
    chosen = select(model.body, rest, exclude=model.KEPT_OUT) if rest else {}
    if not wanted:
        return chosen
    if model.projection() is None:
        raise UserError(
            f"layers: the embedding {name} of this {model.family} model ({model.task}) is not tied to its output "
            f"projection, so it cannot be factorised; leave `embedding` out of layers"
        )
    return {**chosen, name: model.body.get_submodule(name)}


def observed(model: SpeechModel, layers: dict[str, nn.Module]) -> dict[str, nn.Linear]:
    """The modules whose inputs calibration sees: of an embedding it is the output projection."""
    return {name: model.projection() if isinstance(layer, nn.Embedding) else layer for name, layer in layers.items()}
