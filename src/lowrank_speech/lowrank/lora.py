"""LoRA adapters through ``peft``, on dense and on factorised models.

Targets are ``fnmatch`` patterns on qualified names. A ``LowRankLinear`` that matches gets adapters on its factors, or
one on their product (``lowrank.product``).
``peft`` has no default targets for speech models and silently skips targets that it does not find. Here each pattern
must match, and the adapted layers are checked and counted.

Source: Hu et al., "LoRA", ICLR 2022; Kalajdzievski, "rsLoRA", 2023; Liu et al., "DoRA", ICML 2024; Meng et al.,
"PiSSA", NeurIPS 2024; Büyükakyüz, "OLoRA", 2024.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_speech.lowrank.counts import count_parameters
from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.lowrank.lora_settings import CHANGES_BASE, LoraSettings
from lowrank_speech.lowrank.select import select

_STATE, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_INSIDE = "base_model.model."  # peft's prefix for the names of the model that it wraps


def add_lora(
    model: nn.Module, settings: LoraSettings, targets: Sequence[str] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Add adapters to the targets, in place, and freeze everything else. Returns the peft model and a report.

    ``targets``: name patterns of dense or factorised layers, by default those of ``settings``; each must match.
    The report: ``layers`` (how many have an adapter), ``targets`` (pattern -> how many layers matched), ``trainable``
    and ``total`` (parameters), ``share``. The adapters are initialised with torch's global generator.

    Raises ValueError if there is no target, a pattern matches nothing, or the rank is above a target's full rank.
    """
    from peft import LoraConfig, get_peft_model

    from lowrank_speech.lowrank.adapter import LinearLora
    from lowrank_speech.lowrank.product import ProductLora

    targets = targets or settings.targets or ()
    chosen = select(model, targets, low_rank=True)
    names = [inner for name, layer in chosen.items() for inner in _inner(name, layer, settings.where)]
    modules = dict(model.named_modules())
    for name in names:
        layer = modules[name]
        if settings.rank > min(layer.in_features, layer.out_features):
            raise ValueError(
                f"LoRA rank {settings.rank} is above the full rank of {name!r} "
                f"({layer.out_features}, {layer.in_features})"
            )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=names,
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
        raise ValueError(f"peft did not adapt exactly the targets; the first difference is {odd[0]!r}")
    # peft has a set here; its order in the saved file would differ between runs.
    peft_model.peft_config["default"].target_modules = sorted(names)
    if CHANGES_BASE.fullmatch(settings.init):
        peft_model.initial_adapter = {name: tensor.clone() for name, tensor in _adapter_state(peft_model).items()}
    counts = count_parameters(peft_model)
    report = {
        "layers": len(names),
        "targets": {p: sum(fnmatchcase(name, p) for name in chosen) for p in targets},
        "trainable": counts["trainable"],
        "total": counts["total"],
        "share": counts["trainable"] / counts["total"],
    }
    return peft_model, report


def _inner(name: str, layer: nn.Module, where: str) -> list[str]:
    if not isinstance(layer, LowRankLinear) or where == "product":
        return [name]
    return [f"{name}.{part}" for part in ("first", "second") if where in ("factors", part)]


def on_products(model: nn.Module) -> bool:
    """Whether ``model`` has adapters on the product of two factors, which need a layer that peft does not have."""
    from lowrank_speech.lowrank.product import ProductLora

    return any(isinstance(module, ProductLora) for module in model.modules())


def merge(peft_model: nn.Module) -> nn.Module:
    """Merge the adapters into the weights; returns the base model with the same outputs and structure.

    With ``where: product`` the adapted factors have a larger rank afterwards.

    Raises ValueError if a merged weight is not finite.
    """
    return peft_model.merge_and_unload(safe_merge=True)


def save_adapter(
    peft_model: nn.Module,
    folder: str | Path,
    prefix: str = "",
    trained: Mapping[str, nn.Module] | None = None,
    base_class: type | None = None,
) -> None:
    """Write the adapter in peft's format, for ``PeftModel.from_pretrained``; the bytes depend only on the weights.

    ``prefix``: prefix of the adapted layers' names in the model onto which the adapter will be loaded.
    ``trained``: name in that model -> module that was fully trained besides the adapters (peft's ``modules_to_save``).
    ``base_class``: that model's class, if it differs from the adapted module's. This never accesses the hub.

    Adapters with an init that changes the base are converted to plain LoRA of twice the rank, [A; A0] and [B, -B0], so
    that they fit the original base.
    """
    folder = Path(folder)
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    state = load_file(folder / _STATE)
    initial = getattr(peft_model, "initial_adapter", None)
    if initial is not None:
        for name in state:
            if ".lora_A." in name:
                state[name] = torch.cat([state[name], initial[name].cpu()], 0)
            elif ".lora_B." in name:
                state[name] = torch.cat([state[name], -initial[name].cpu()], 1)
        # Keep the scaling, alpha / r or alpha / sqrt(r).
        factor = 2**0.5 if config["use_rslora"] else 2
        config |= {"r": 2 * config["r"], "lora_alpha": factor * config["lora_alpha"], "init_lora_weights": True}
    state = {f"{_INSIDE}{prefix}{name.removeprefix(_INSIDE)}": tensor for name, tensor in state.items()}
    for name, module in (trained or {}).items():
        for part, tensor in module.state_dict().items():
            state[f"{_INSIDE}{name}.{part}"] = tensor.detach().cpu().contiguous()
    save_file(state, folder / _STATE, metadata={"format": "pt"})
    config |= {
        "target_modules": sorted(f"{prefix}{name}" for name in config["target_modules"]),
        "modules_to_save": sorted(trained) if trained else None,
        "base_model_name_or_path": None,  # with a local path, equal runs would differ
    }
    if base_class is not None:
        config["auto_mapping"] = {"base_model_class": base_class.__name__, "parent_library": base_class.__module__}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _adapter_state(peft_model: nn.Module) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(peft_model, save_embedding_layers=False)


def trainable(model: nn.Module) -> dict[str, Any]:
    """``trainable``, ``total``, ``share``, and ``names`` of the trainable tensors."""
    counts = count_parameters(model)
    return {
        "trainable": counts["trainable"],
        "total": counts["total"],
        "share": counts["trainable"] / max(counts["total"], 1),
        "names": [name for name, p in model.named_parameters() if p.requires_grad],
    }


def frozen_digest(model: nn.Module) -> str:
    """sha256 over names, shapes and bytes of all frozen parameters, to detect whether a training changed them."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            flat = parameter.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
