"""Build models from transformers' configs: with random weights, without weights (on the meta device), or by wrapping.

build("ctc", config)       random weights from torch's current seed, as transformers' own class would initialise them
skeleton("ctc", config)    only the structure, to load weights into or to count
wrap(hf, meta)             wraps a model of transformers' class for the task, sharing weights; ``unwrap`` is the inverse
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_speech.errors import UserError
from lowrank_speech.models.heads.base import Head
from lowrank_speech.models.heads.registry import DEFAULT, head_class
from lowrank_speech.models.mixing import LayerSum
from lowrank_speech.models.registry import family_class, family_of
from lowrank_speech.models.speech import Meta, SpeechModel


def quiet_config(config: Any) -> Any:
    """Switch off transformers' SpecAugment, which the training recipe does itself, and LayerDrop."""
    for name, value in {
        "apply_spec_augment": False,
        "layerdrop": 0.0,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "use_weighted_layer_sum": False,
    }.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def wrap(hf: nn.Module, meta: Meta) -> SpeechModel:
    """Wrap ``hf``, a model of transformers' own class for ``meta.task``, in a SpeechModel; weights are shared."""
    return family_class(meta.family).from_transformers(hf, meta).train(hf.training)


def unwrap(model: SpeechModel) -> nn.Module:
    """The inverse of ``wrap``: a model of transformers' own class for the task; weights are shared."""
    import transformers

    with torch.device("meta"):
        hf = getattr(transformers, model.architecture)(model.config)
    state, names = model.state_dict(), {name: model.disk_name(name) for name in stored(model)}
    hf.load_state_dict({theirs: state[own] for own, theirs in names.items()}, strict=not model.tied(), assign=True)
    hf.tie_weights()
    trains = {names[name]: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in hf.named_parameters():
        parameter.requires_grad_(trains[name])
    if hasattr(model.hf, "generation_config"):
        hf.generation_config = model.hf.generation_config
    return hf.train(model.training)


def build(task: str, config: Any) -> SpeechModel:
    """A model for a transformers config and a task, with random weights from torch's current seed, in eval mode."""
    family = family_of(config.model_type, "config")
    cls = family_class(family)
    hf = cls.bare(config, task)
    head = empty_head(cls, task, config)
    if head is not None:
        head = drawn(head, config)
    return cls(hf, head, Meta(family, task)).eval()


def skeleton(
    task: str,
    config: Any,
    plan: Mapping[str, int] | None = None,
    head: Any = None,
    meta: Meta | None = None,
    exact: int = 0,
) -> SpeechModel:
    """A model on the meta device, with tied weights.

    ``plan``: its low-rank layers; ``exact``: exact rows of a factorised embedding; ``head``: settings of its head (the
    low-rank layers of a head are in ``meta``).
    """
    family = family_of(config.model_type, "config")
    cls = family_class(family)
    own = empty_head(cls, task, config, head)
    with torch.device("meta"):
        hf = cls.bare(config, task, own is not None and own.DECODER)
    # The constructor of wav2vec 2.0's masked_spec_embed ignores the default device.
    hf.to("meta")
    hf.tie_weights()
    model = cls(hf, own, meta or Meta(family, task))
    with torch.device("meta"):
        return model.factorised(plan, exact).factorised_head(model.meta.head_plan)


def empty_head(cls: type[SpeechModel], task: str, config: Any, settings: Any = None) -> Head | None:
    """The head of ``task`` on the meta device, or None if the task needs none.

    ``settings``: the head's settings, by default those of the task's default head. Raises UserError if the head is for
    another task.
    """
    if task not in DEFAULT:
        return None
    kind = head_class(DEFAULT[task] if settings is None else settings.kind)
    if task != kind.TASK:
        raise UserError(f"head: {kind.KIND!r} is a head for {kind.TASK!r}, but the task is {task!r}; use another kind")
    settings = kind.settings_of(config) if settings is None else settings
    with torch.device("meta"):
        head = kind(settings, cls.width_of(config), kind.outputs_of(config))
        if getattr(settings, "layers", "last") == "weighted":
            head.mix = LayerSum(cls.depth_of(config) + 1)
    return head


def drawn(head: Head, config: Any) -> Head:
    """``head`` on the CPU, newly initialised with torch's global generator."""
    head.to_empty(device="cpu")
    head.initialise(getattr(config, "initializer_range", 0.02))
    if head.mix is not None:
        head.mix.reset_parameters()
    return head


def stored(model: SpeechModel) -> list[str]:
    """Names of the model's parameters and buffers as a folder stores them; tied ones have only one name."""
    aliases = {f"hf.{name}" for name in model.tied()}
    return [name for name in model.state_dict() if name not in aliases]


def assign(
    model: SpeechModel, state: Mapping[str, Tensor], source: str, shown: Mapping[str, str] | None = None
) -> None:
    """Load ``state`` (name -> tensor, shared) into a model on the meta device, and tie its tied weights again.

    Raises UserError if a weight is missing, unexpected or of another shape; the message has ``source``, and names as in
    ``shown``.
    """
    names = shown or {}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    own = stored(model)
    wrong = [f"{names.get(name, name)} is missing" for name in own if name not in state]
    wrong += [f"{names.get(name, name)} does not belong to the model" for name in state.keys() - set(own)]
    for name in state.keys() & set(own):
        if tuple(state[name].shape) != shapes[name]:
            found = tuple(state[name].shape)
            wrong.append(f"{names.get(name, name)} has the shape {found}, but the model has {shapes[name]}")
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"{source} does not fit its config.json: {sorted(wrong)[0]}{more}; make the folder again")
    tied = model.tied()
    model.load_state_dict({**state, **{f"hf.{a}": state[f"hf.{b}"] for a, b in tied.items()}}, strict=True, assign=True)
    if tied:
        model.hf.tie_weights()
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise UserError(f"{source}: {left[0]} has no value in the file and cannot be rebuilt")
    constants = set(map(id, model.constants()))
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in constants)


def config_with(cls: type, overrides: Mapping[str, Any], **fixed: Any) -> Any:
    """Transformers' config ``cls`` with the keys of ``bases.*.model``; UserError if a key is unknown or fixed."""
    known = set(cls().to_dict()) | set(fixed)
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise UserError(f"bases.*.model: {unknown[0]!r} is not a key of transformers' {cls.__name__}; remove it")
    clash = sorted(set(overrides) & set(fixed))
    if clash:
        raise UserError(f"bases.*.model: {clash[0]!r} follows from the tokens and cannot be set; remove it")
    try:
        return quiet_config(cls(**{**overrides, **fixed}))
    except Exception as error:  # transformers' errors for strict dataclasses have no common base class
        raise UserError(f"bases.*.model: {' '.join(str(error).split())}") from error
