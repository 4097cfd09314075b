"""LoRA adapters through ``peft``, on dense and on factorised models.

Targets are ``fnmatch`` patterns on qualified names; a ``LowRankLinear`` that matches gets its adapters on its factors,
or one on their product (``lowrank.product``).
``peft`` has no default targets for speech models and skips silently what it does not find: here each pattern must
match, and what was adapted is checked and counted.

Source: Hu et al., "LoRA", ICLR 2022; Kalajdzievski, "rsLoRA", 2023; Liu et al., "DoRA", ICML 2024; Meng et al.,
"PiSSA", NeurIPS 2024; Büyükakyüz, "OLoRA", 2024.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_speech.lowrank.counts import count_parameters
from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.lowrank.select import select

INITS = ("default", "gaussian", "orthogonal", "pissa", "olora")
_CHANGES_BASE = re.compile(r"pissa(_niter_\d+)?|olora")
_STATE, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class LoraSettings:
    """What to adapt and how.

    rank, alpha       the update is (alpha / rank) B A, with ``rslora`` (alpha / sqrt(rank)) B A
    dropout           on the adapter's input
    targets           name patterns of dense or factorised layers; none must miss
    where             what of a ``LowRankLinear`` is adapted: its factors, one of them, or their product, whose
                      rank then grows by that of the adapter when it is merged
    dora              a trained magnitude for each output beside the update
    init              default (B = 0), gaussian, orthogonal, pissa, pissa_niter_N, olora; the last three take the
                      adapter's start out of the base weights, which therefore change once, before training
    extra_trainable   names of modules that train in full beside the adapters (heads); saved with the adapter
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    rslora: bool = False
    dora: bool = False
    init: str = "default"
    where: Literal["factors", "first", "second", "product"] = "factors"
    extra_trainable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"rank {self.rank} must be at least 1, alpha {self.alpha} positive, dropout {self.dropout} in [0, 1)"
            )
        if self.init not in INITS and not _CHANGES_BASE.fullmatch(self.init):
            raise ValueError(f"init is {self.init!r}; expected one of {', '.join(INITS)} or pissa_niter_N")
        if self.where not in ("factors", "first", "second", "product"):
            raise ValueError(f"where is {self.where!r}; expected factors, first, second or product")
        if self.where == "product" and (self.dora or self.init not in ("default", "gaussian")):
            raise ValueError(
                f"where: product goes with plain LoRA (init default or gaussian), not with "
                f"{'dora' if self.dora else f'init: {self.init}'}, which reads one weight matrix"
            )
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init: orthogonal needs an even rank, not {self.rank}")
        if self.dora and _CHANGES_BASE.fullmatch(self.init):
            raise ValueError(f"dora does not go with init: {self.init}")


def add_lora(model: nn.Module, settings: LoraSettings) -> tuple[nn.Module, dict[str, Any]]:
    """Put adapters on the targets, in place, and freeze all else. Returns the peft model and a report.

    The report: ``layers`` (how many have an adapter), ``targets`` (pattern -> how many layers matched), ``trainable``
    and ``total`` (parameters), ``share``. Weights are drawn from torch's global generator.

    ValueError when a pattern or a name in ``extra_trainable`` matches nothing, or the rank is above a target's own.
    """
    from peft import LoraConfig, get_peft_model

    from lowrank_speech.lowrank.adapter import LinearLora
    from lowrank_speech.lowrank.product import ProductLora

    chosen = select(model, settings.targets, low_rank=True)
    names = [inner for name, layer in chosen.items() for inner in _inner(name, layer, settings.where)]
    modules = dict(model.named_modules())
    for name in names:
        layer = modules[name]
        if settings.rank > min(layer.in_features, layer.out_features):
            raise ValueError(
                f"LoRA rank {settings.rank} is above the full rank of {name!r} "
                f"({layer.out_features}, {layer.in_features})"
            )
    for name in settings.extra_trainable:
        if name not in modules:
            raise ValueError(f"extra_trainable names {name!r}, which is no module of the model")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=names,
        modules_to_save=list(settings.extra_trainable) or None,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights=True if settings.init == "default" else settings.init,
        bias="none",
    )
    config._register_custom_module({LowRankLinear: ProductLora, nn.Linear: LinearLora})
    peft_model = get_peft_model(model, config)
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    if adapted != set(names):
        odd = sorted(adapted ^ set(names))
        raise ValueError(f"peft adapted other layers than were asked for; the first that differs is {odd[0]!r}")
    # peft holds a set here, whose order in the saved file would change from run to run.
    peft_model.peft_config["default"].target_modules = sorted(names)
    if _CHANGES_BASE.fullmatch(settings.init):
        peft_model.initial_adapter = {name: tensor.clone() for name, tensor in _adapter_state(peft_model).items()}
    counts = count_parameters(peft_model)
    report = {
        "layers": len(names),
        "targets": {p: sum(fnmatchcase(name, p) for name in chosen) for p in settings.targets},
        "trainable": counts["trainable"],
        "total": counts["total"],
        "share": counts["trainable"] / counts["total"],
    }
    return peft_model, report


def _inner(name: str, layer: nn.Module, where: str) -> list[str]:
    if not isinstance(layer, LowRankLinear) or where == "product":
        return [name]
    return [f"{name}.{part}" for part in ("first", "second") if where in ("factors", part)]


def merge(peft_model: nn.Module) -> nn.Module:
    """Add the adapters into the weights and take them out; returns the base model, same outputs, same structure.

    With ``where: product`` the adapted factors have a larger rank afterwards.

    ValueError when a merged weight is not finite.
    """
    return peft_model.merge_and_unload(safe_merge=True)


def save_adapter(peft_model: nn.Module, folder: str | Path) -> None:
    """Write the adapter in peft's format; the bytes depend on the weights alone, and no hub is asked.

    Adapters of the inits that change the base are converted to plain LoRA of twice the rank, [A; A0] and [B, -B0], so
    that they fit the base as it came.
    """
    folder = Path(folder)
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    initial = getattr(peft_model, "initial_adapter", None)
    if initial is not None:
        state = load_file(folder / _STATE)
        for name in state:
            if ".lora_A." in name:
                state[name] = torch.cat([state[name], initial[name].cpu()], 0)
            elif ".lora_B." in name:
                state[name] = torch.cat([state[name], -initial[name].cpu()], 1)
        save_file(state, folder / _STATE, metadata={"format": "pt"})
        # The scaling stays: alpha / r, or alpha / sqrt(r).
        factor = 2**0.5 if config["use_rslora"] else 2
        config |= {"r": 2 * config["r"], "lora_alpha": factor * config["lora_alpha"], "init_lora_weights": True}
    config["target_modules"] = sorted(config["target_modules"])
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _adapter_state(peft_model: nn.Module) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(peft_model, save_embedding_layers=False)


def trainable(model: nn.Module) -> dict[str, Any]:
    """``trainable``, ``total``, ``share``, and ``names`` of the tensors that train."""
    counts = count_parameters(model)
    return {
        "trainable": counts["trainable"],
        "total": counts["total"],
        "share": counts["trainable"] / max(counts["total"], 1),
        "names": [name for name, p in model.named_parameters() if p.requires_grad],
    }


def frozen_digest(model: nn.Module) -> str:
    """sha256 over names, shapes and bytes of all frozen parameters: equal before and after training, or they moved."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            flat = parameter.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
