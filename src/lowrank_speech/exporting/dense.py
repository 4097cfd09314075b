"""Export format dense: a plain Hugging Face folder with the factors multiplied out (in float64).

The class under ``architectures`` in its config.json loads it with ``from_pretrained``, without this package.
"""

from pathlib import Path
from typing import Any

NOISE_SEED = 0


def write(model: Any, source: Path, out: Path) -> dict[str, Any]:
    """Write ``model`` with dense layers to the folder ``out``; returns how much its encoder differs from ``model``'s.

    ``largest_difference``: the largest absolute difference of encoder states on one second of seeded noise.
    """
    from lowrank_speech.models.folder import save_model

    expected = _states(model, source)
    difference = float((_states(model.densified(), source) - expected).abs().max())
    save_model(model, out, copy_from=source)
    return {"largest_difference": difference}


def _states(model: Any, folder: Path) -> Any:
    """Encoder states on one second of noise, or less if the model's window is shorter."""
    import torch

    from lowrank_speech.features.inputs import RATE, inputs_of

    seconds = min(1.0, model.window_seconds or 1.0)
    noise = torch.randn(int(RATE * seconds), generator=torch.Generator().manual_seed(NOISE_SEED))
    features = inputs_of(folder).of(noise)
    with torch.inference_mode():
        return model.states(features[None], torch.tensor([len(features)]))[0]
