"""Names of the parts of each model family: what ``ffn``, ``attention``, ``all`` and LoRA's default targets mean.

Patterns (``fnmatch``) are free of prefixes: they match inside the bare model and inside every class with a head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowrank_speech.errors import UserError


@dataclass(frozen=True)
class Family:
    """Name patterns of one family.

    layers      group -> patterns; ``group:part`` narrows a group to one part of the model
    lora        default targets of LoRA: query, value and feed-forward
    front_end   name (relative to the body) of the convolutions that fine-tuning keeps frozen; None: there are none
    kept_out    linear layers that stay dense whatever a pattern says: heads, and what is tied to embeddings
    """

    layers: Mapping[str, tuple[str, ...]]
    lora: tuple[str, ...]
    front_end: str | None
    kept_out: tuple[str, ...]


def _groups(ffn: Mapping[str, str], attention: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Groups by name from ``{"": pattern, ":part": pattern}``."""
    groups = {f"ffn{part}": (pattern,) for part, pattern in ffn.items()}
    groups |= {f"attention{part}": (pattern,) for part, pattern in attention.items()}
    return groups | {f"all{part}": (ffn[part], attention[part]) for part in ffn}


_HEADS = ("lm_head", "projector", "classifier", "project_hid", "project_q", "quantizer.*")

FAMILIES = {
    "wav2vec2": Family(
        layers=_groups(
            {"": "*encoder.layers.*.feed_forward.*_dense"},
            {"": "*encoder.layers.*.attention.*_proj"},
        ),
        lora=(
            "*encoder.layers.*.attention.q_proj",
            "*encoder.layers.*.attention.v_proj",
            "*encoder.layers.*.feed_forward.*_dense",
        ),
        front_end="feature_extractor",
        kept_out=_HEADS,
    ),
    "w2v-bert": Family(  # ffn1 and ffn2 of a conformer block; its pointwise convolutions are no linear layers
        layers=_groups(
            {"": "*encoder.layers.*.ffn[12].*_dense"},
            {"": "*encoder.layers.*.self_attn.linear_[qkvo]*"},
        ),
        lora=(
            "*encoder.layers.*.self_attn.linear_q",
            "*encoder.layers.*.self_attn.linear_v",
            "*encoder.layers.*.ffn[12].*_dense",
        ),
        front_end=None,
        kept_out=_HEADS,
    ),
    "whisper": Family(
        # "coder" is both encoder and decoder, so that a model with an encoder alone matches too. Attention in the
        # decoder includes the cross-attention ("encoder_attn").
        layers=_groups(
            {
                "": "*coder.layers.*.fc[12]",
                ":encoder": "*encoder.layers.*.fc[12]",
                ":decoder": "*decoder.layers.*.fc[12]",
            },
            {
                "": "*coder.layers.*_attn.*_proj",
                ":encoder": "*encoder.layers.*_attn.*_proj",
                ":decoder": "*decoder.layers.*_attn.*_proj",
            },
        ),
        lora=("*coder.layers.*_attn.q_proj", "*coder.layers.*_attn.v_proj", "*coder.layers.*.fc[12]"),
        front_end=None,
        kept_out=("proj_out", "projector", "classifier"),
    ),
}


def family_named(family: str) -> Family:
    """The patterns of a family; UserError that lists the known ones."""
    if family not in FAMILIES:
        raise UserError(f"no layer names are known for the family {family!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[family]


def layer_patterns(family: str, layers: str | Sequence[str]) -> tuple[str, ...]:
    """Patterns of ``layers``: a group (``ffn``, ``attention``, ``all``, ``ffn:encoder``, ...), a pattern, or a list of
    these.

    UserError when a word is neither a group of the family nor looks like a pattern or a qualified name.
    """
    groups = family_named(family).layers
    result: list[str] = []
    for item in [layers] if isinstance(layers, str) else layers:
        if item in groups:
            result += groups[item]
        elif any(c in item for c in "*?[."):
            result.append(item)
        else:
            raise UserError(
                f"layers: {item!r} is no group of the family {family!r} ({', '.join(groups)}) and no name pattern"
            )
    if not result:
        raise UserError("layers: the list is empty")
    return tuple(dict.fromkeys(result))


def lora_targets(family: str) -> tuple[str, ...]:
    """LoRA's default targets in a family."""
    return family_named(family).lora


def kept_out(family: str) -> tuple[str, ...]:
    """Patterns of linear layers that no plan may name."""
    return family_named(family).kept_out
