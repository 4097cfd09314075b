"""Dimensions of published models, for counting and benchmarks without weights.

``build_meta("xls-r-300m")`` is a SpeechModel on the meta device: shapes, no memory. The numbers are those of the
published ``config.json`` files (XLS-R: Babu et al. 2022; Whisper: Radford et al. 2023; MMS: Pratap et al. 2023; HuBERT:
Hsu et al. 2021; WavLM: Chen et al. 2022; data2vec: Baevski et al. 2022; w2v-BERT 2.0: Barrault et al. 2023).

XLS-R is published as a pretraining checkpoint; adaptation takes the Wav2Vec2Model in it (task ``body``, the default:
315,438,720 parameters for 300M). A CTC head on 32 symbols adds 32,800.
"""

from dataclasses import dataclass, field
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.models.build import skeleton
from lowrank_speech.models.registry import family_of
from lowrank_speech.models.speech import SpeechModel


@dataclass(frozen=True)
class Preset:
    """A published model: transformers' model type, the task of its published class, and keys of its config."""

    model_type: str
    task: str
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return family_of(self.model_type, "preset")


def _xls_r(hidden: int, layers: int, codevector: int = 768, model_type: str = "wav2vec2", **more: Any) -> Preset:
    """XLS-R's dimensions, which MMS and the large HuBERT share."""
    config = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "intermediate_size": 4 * hidden,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "do_stable_layer_norm": True,
        "codevector_dim": codevector,
        "proj_codevector_dim": codevector,
        "vocab_size": 32,
    }
    return Preset(model_type, "body", config | more)


def _whisper(width: int, layers: int, heads: int, decoder_layers: int | None = None, **more: Any) -> Preset:
    decoder_layers = decoder_layers or layers
    config = {
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": decoder_layers,
        "num_hidden_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "vocab_size": 51865,
        "num_mel_bins": 80,
    }
    return Preset("whisper", "seq2seq", config | more)


PRESETS = {
    "xls-r-300m": _xls_r(1024, 24, 768),
    "xls-r-1b": _xls_r(1280, 48, 1024),
    "xls-r-2b": _xls_r(1920, 48, 1024),
    "mms-300m": _xls_r(1024, 24, 768),
    "mms-1b": _xls_r(1280, 48, 1024),
    "hubert-large": _xls_r(1024, 24, model_type="hubert"),
    "wavlm-large": _xls_r(1024, 24, model_type="wavlm", conv_bias=False),
    "data2vec-audio-large": _xls_r(1024, 24, model_type="data2vec-audio", conv_bias=False),
    "w2v-bert-2.0": Preset("wav2vec2-bert", "body", {"vocab_size": 32}),  # transformers' defaults are its dimensions
    "whisper-tiny": _whisper(384, 4, 6),
    "whisper-base": _whisper(512, 6, 8),
    "whisper-small": _whisper(768, 12, 12),
    "whisper-medium": _whisper(1024, 24, 16),
    "whisper-large-v2": _whisper(1280, 32, 20),
    "whisper-large-v3": _whisper(1280, 32, 20, vocab_size=51866, num_mel_bins=128),
}


def preset_named(name: str) -> Preset:
    """The preset of that name. Raises UserError with the known names if it does not exist."""
    if name not in PRESETS:
        raise UserError(f"{name!r} is not a preset; expected one of: {', '.join(PRESETS)}")
    return PRESETS[name]


def build_meta(preset: str, task: str | None = None) -> SpeechModel:
    """The preset's model on the meta device, with weights tied as in the published one.

    ``task``: another task (``ctc``, ``classify``) instead of the preset's own.
    """
    from transformers import AutoConfig

    found = preset_named(preset)
    return skeleton(task or found.task, AutoConfig.for_model(found.model_type, **found.config))
