"""Load factorised model folders with transformers' own classes: import this module first.

    import lowrank_speech.hf
    from transformers import AutoModelForCTC, pipeline

    model = AutoModelForCTC.from_pretrained("folder")
    recognise = pipeline("automatic-speech-recognition", model="folder")

The folder's config.json names the quantisation method ``lowrank_speech``, which this module registers with
transformers. Before weights are loaded, the layers of the plan become factors, so that ``from_pretrained`` fills them
bit for bit, and ``save_pretrained`` writes them. Nothing is quantised: the model can be moved, cast, trained and
adapted as any other. Without the import, transformers refuses the folder (``models.files.GUARDED``).

A LoRA adapter of the folder ``adapter`` loads on its base with ``peft``; one on the product of factors
(``lora.where: product``) needs ``PeftModel.from_pretrained(base, folder, config=adapter_config(folder))``.

``save_pretrained`` cannot write the key that makes transformers refuse. Instead it writes an empty tensor for the
weight of each factorised layer, whose shape does not fit without the import.
"""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.embedding import TiedProjection
from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.lowrank.structure import apply_plan, low_rank_layers
from lowrank_speech.models.families.corrections import correct
from lowrank_speech.models.files import GUARDED, KEY, METHOD
from lowrank_speech.models.registry import family_class


@register_quantization_config(METHOD)
class LowRankConfig(QuantizationConfigMixin):
    """The key ``quantization_config`` of a factorised folder. The plan itself is in the key ``lowrank_speech``."""

    def __init__(self, quant_method: str = METHOD):
        self.quant_method = quant_method


@register_quantizer(METHOD)
class LowRankLoader(HfQuantizer):
    """Gives a model of transformers its factors before its weights are loaded."""

    requires_calibration = True  # the factors come from a folder; transformers cannot make them from a dense one

    def update_attn_implementation(self, config: Any) -> Any:
        """Called before transformers looks for the weights: removes the key that makes it refuse the folder."""
        for name in GUARDED.keys() - {"quantization_config"}:
            if hasattr(config, name):
                delattr(config, name)
        return config

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        said = getattr(model.config, KEY, None) or {}
        if not said.get("plan"):
            raise UserError(
                f"{model.config.name_or_path}: config.json names the method {METHOD}, but has no plan under {KEY}; "
                f"make the folder again"
            )
        family, body = family_class(said["family"]), model.base_model
        prefix = f"{model.base_model_prefix}."
        plan = {name.removeprefix(prefix): rank for name, rank in said["plan"].items()}
        # A class may have only a part of the model, such as Whisper's encoder.
        parts = {name for name, _ in body.named_children()}
        plan = {name: rank for name, rank in plan.items() if name.partition(".")[0] in parts}
        with torch.device("meta"):
            apply_plan(body, plan, said.get("exact", 0))
        if family.EMBEDDING in plan and model.config.tie_word_embeddings and hasattr(model, "proj_out"):
            model.proj_out = TiedProjection(body.get_submodule(family.EMBEDDING))
            model._tied_weights_keys, model.all_tied_weights_keys = None, {}
        correct(model)
        ignored = {rf"(^|\.){re.escape(name)}\.weight$" for name in plan}
        model._keys_to_ignore_on_load_unexpected = set(model._keys_to_ignore_on_load_unexpected or ()) | ignored

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        model.is_quantized = False  # half(), float() and training work as for any model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything to save, with an empty weight for each factorised layer."""
        return model.state_dict() | {f"{name}.weight": torch.empty(0) for name in low_rank_layers(model)}, {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def adapter_config(folder: str | Path) -> Any:
    """The config of a saved LoRA adapter, for ``PeftModel.from_pretrained(base, folder, config=...)``.

    It has the layer for adapters on the product of two factors (``where: product``), which peft cannot store.
    """
    from peft import PeftConfig

    from lowrank_speech.lowrank.product import ProductLora

    config = PeftConfig.from_pretrained(str(folder))
    config._register_custom_module({LowRankLinear: ProductLora})
    return config
