"""Set the dropout of a whole model."""

from torch import nn


def set_dropout(model: nn.Module, p: float) -> None:
    """Set every dropout of a speech model to ``p``: modules, and the floats that transformers' attention reads.

    LoRA's own dropout (peft's ``lora_dropout``) belongs to the adapters' settings and does not change.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in name.split("."):
            module.p = p
        for attribute in ("dropout", "activation_dropout", "attention_dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, p)
