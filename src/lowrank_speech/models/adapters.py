"""Save a system's LoRA adapter in peft's format, together with the task's head, for transformers' class of the base.

    import lowrank_speech.hf                                        # for a factorised base
    base = Wav2Vec2ForCTC.from_pretrained(BASE, vocab_size=..., ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(base, ADAPTER)

Layer names are those of that class, and the head is one of peft's ``modules_to_save``, so the loaded model has the same
outputs as the system. README.md in the folder has the lines for the given system.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from lowrank_speech.lowrank.lora import on_products
from lowrank_speech.lowrank.lora import save_adapter as save_peft
from lowrank_speech.models.speech import SpeechModel

HEAD = "head.safetensors"


def save_adapter(model: SpeechModel, peft_model: nn.Module, folder: str | Path) -> None:
    """Write the adapter of ``peft_model``, which wraps the body of ``model``, and the model's head to ``folder``.

    The folder gets ``adapter_config.json``, ``adapter_model.safetensors`` and ``README.md``, and also
    ``head.safetensors`` if transformers has no class with that head.
    """
    import transformers

    folder = Path(folder)
    known = model.head is not None and model.known_head
    trained = {theirs: getattr(model.head, own) for own, theirs in model.head.NAMES.items()} if known else {}
    base_class = getattr(transformers, model.architecture)
    save_peft(peft_model, folder, prefix=model.body_prefix, trained=trained, base_class=base_class)
    if model.parameters_head() and not known:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.head.state_dict().items()}
        save_file(state, folder / HEAD, metadata={"format": "pt"})
    (folder / "README.md").write_text(_readme(model), encoding="utf-8")


def _readme(model: SpeechModel) -> str:
    outputs = _outputs(model) if model.head is not None and model.known_head else {}
    given = "".join(f", {name}={value}" for name, value in outputs.items())
    # Adapters on the product of two factors need a layer that peft does not have.
    first = ["import lowrank_speech.hf"] if model.plan else []
    config = ", config=lowrank_speech.hf.adapter_config(ADAPTER)" if on_products(model.body) else ""
    lines = [
        "# LoRA adapter",
        "",
        "BASE is the folder of the model that was adapted, ADAPTER is this one. The result computes what the system",
        "does; the folder `model` beside this one has the adapter merged.",
        "",
        "```python",
        *first,
        "from peft import PeftModel",
        f"from transformers import {model.architecture}",
        "",
        f"base = {model.architecture}.from_pretrained(BASE{given})",
        f"model = PeftModel.from_pretrained(base, ADAPTER{config}).eval()",
        "```",
        "",
    ]
    if model.plan:
        lines += [
            "The adapted base is factorised: without the first line, transformers refuses to load it.",
            "",
        ]
    if model.head is not None and model.head.DECODER:
        lines += [
            "The decoder's language tokens are the classifier: the logits of the languages' tokens after",
            "`<|startoftranscript|>`, restricted to the languages in the config.json of the folder `model`.",
            "",
        ]
    elif model.head is not None and not model.known_head:
        lines += [
            f"transformers has no head of the kind `{model.head.KIND}`: its weights are in `{HEAD}`, and the lines",
            "above load only the encoder.",
            "",
        ]
    elif model.head is not None and model.family == "whisper":
        lines += [
            "WhisperForAudioClassification averages the encoder's states over the whole window, padding included. The",
            "head was trained on the mean over the utterance: pool the states of the valid frames, or use the folder",
            "`model` with `lowrank_speech.models.folder.load_model`.",
            "",
        ]
    return "\n".join(lines)


def _outputs(model: SpeechModel) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` for a head of the right size."""
    name = "vocab_size" if model.task == "ctc" else "num_labels"
    return {name: getattr(model.config, name), "ignore_mismatched_sizes": True}
