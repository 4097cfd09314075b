"""``SpeechModel``: a pretrained transformers model and a task head, with one interface for all families.

    model.hf     transformers' model without a task head: a bare encoder (``Wav2Vec2Model`` ...), Whisper's encoder
                 (``families.whisper.WhisperEncoderModel``), or ``WhisperForConditionalGeneration``, whose ``generate``
                 decodes
    model.body   the part of ``hf`` that layer names are relative to: ``hf`` itself, or the ``WhisperModel`` in it
    model.head   a module of ``models.heads``, or None for a bare encoder or a Whisper that recognises speech

Parameters of a model are called ``hf.*`` and ``head.*`` (``is_head``). Layer names in plans, patterns, reports and
config.json are relative to the body: ``encoder.layers.0.fc1``. ``disk_name`` returns the names in a model folder, which
are those of transformers' class for the task.

Each family is a subclass in ``models.families``, which holds all knowledge about that family.

Shapes: B batch, T samples, F frames, C features, D hidden size, V vocabulary, L target length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.structure import apply_plan, densify
from lowrank_speech.models.heads.base import Head
from lowrank_speech.models.mixing import layer_states
from lowrank_speech.models.registry import FAMILIES


@dataclass
class Meta:
    """What a model folder adds to transformers' own config (key ``lowrank_speech`` of config.json)."""

    family: str
    task: str  # ctc, classify, seq2seq, or body: no task yet
    plan: dict[str, int] | None = None  # name of a factorised layer (relative to the body) -> rank
    labels: list[str] = field(default_factory=list)  # classify: languages in the order of the outputs
    lang_sha256: str | None = None  # of the token table that the head's outputs stand for
    priors: list[float] = field(default_factory=list)  # classify: share of each label in training
    exact: int = 0  # rows of a factorised embedding that are not factors
    target: dict[str, int] | None = None  # like plan: the ranks that a training has to reach (progressive truncation)
    head_plan: dict[str, int] | None = None  # name of a factorised layer (relative to the head) -> rank


class SpeechModel(nn.Module):
    """A model of one family with one task. Its folder stores ``meta``."""

    FAMILY: ClassVar[str]
    TASKS: ClassVar[Sequence[str]]
    """The tasks that models of the family support."""
    LAYERS: ClassVar[Mapping[str, Sequence[str]]]
    """Layer group -> name patterns (``fnmatch``, relative to the body); ``group:part`` restricts it to one part."""
    LORA: ClassVar[Sequence[str]]
    """Patterns of LoRA's default targets: query, value and feed-forward."""
    KEPT_OUT: ClassVar[Sequence[str]] = ()
    """Patterns of linear layers that always stay dense, because only pretraining uses them."""
    EMBEDDING: ClassVar[str | None] = None
    """Name (relative to the body) of the token embedding that is tied to the output projection; None without one."""

    def __init__(self, hf: nn.Module, head: Head | None, meta: Meta):
        super().__init__()
        self.hf = hf
        self.head = head
        self.meta = meta
        # Only in training: lengths for which layers are compiled (families.encoders), and the SpecAugment function.
        self.buckets: tuple[int, ...] = ()
        self.mask: Callable[..., Tensor] | None = None

    def train(self, mode: bool = True) -> "SpeechModel":
        """As in ``nn.Module``, but the body's batch norms keep the statistics from pretraining (mHuBERT)."""
        super().train(mode)
        for module in self.hf.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    # -- parts -----------------------------------------------------------------------------------------------------

    @property
    def family(self) -> str:
        return self.meta.family

    @property
    def task(self) -> str:
        return self.meta.task

    @property
    def plan(self) -> dict[str, int] | None:
        return self.meta.plan

    @plan.setter
    def plan(self, value: Mapping[str, int] | None) -> None:
        self.meta.plan = dict(value) if value else None

    @property
    def config(self) -> Any:
        """The model's transformers config."""
        return self.hf.config

    @property
    def recognises_by(self) -> str:
        """The task in which the family recognises speech: ``ctc`` or ``seq2seq``."""
        return FAMILIES[self.family].recognises

    @property
    def body(self) -> nn.Module:
        """The pretrained part that layer names are relative to."""
        return self.hf

    @property
    def width(self) -> int:
        """The size D of the encoder states."""
        return self.width_of(self.config)

    @property
    def decodes(self) -> bool:
        """Whether the model has a decoder, which predicts what its task asks for."""
        return False

    def is_head(self, name: str) -> bool:
        """Whether a parameter of the model (by its name in ``named_parameters``) belongs to the task's head."""
        return name.startswith("head.")

    def front_end(self) -> list[nn.Parameter]:
        """Parameters of the convolutional front end, which fine-tuning always keeps frozen; empty without one."""
        return []

    def constants(self) -> list[nn.Parameter]:
        """Parameters that are never trained."""
        return []

    def tied(self) -> dict[str, str]:
        """Tied weights in ``hf``: alias -> the name under which the weight is stored."""
        return {}

    def dense_parameters(self) -> int:
        """Number of parameters of the same model without factorisation."""
        if not self.plan:
            return self.parameters_total() - self.parameters_head() + self.dense_head_parameters()
        with torch.device("meta"):
            dense = self.bare(self.config, self.task, self.decodes)
        dense.tie_weights()
        return sum(p.numel() for p in dense.parameters()) + self.dense_head_parameters()

    def parameters_head(self) -> int:
        """Number of parameters of the head; 0 without one."""
        return 0 if self.head is None else sum(p.numel() for p in self.head.parameters())

    def dense_head_parameters(self) -> int:
        """The same without the head's factors."""
        if not self.meta.head_plan:
            return self.parameters_head()
        with torch.device("meta"):
            dense = type(self.head)(self.head.settings, self.width, self.head.outputs_of(self.config))
        mix = 0 if self.head.mix is None else self.head.mix.weights.numel()
        return sum(p.numel() for p in dense.parameters()) + mix

    def parameters_total(self) -> int:
        """Number of parameters; tied ones count once."""
        return sum(p.numel() for p in self.parameters())

    # -- layers ----------------------------------------------------------------------------------------------------

    def factorised(self, plan: Mapping[str, int] | None, exact: int = 0) -> "SpeechModel":
        """Replace the layers of ``plan`` by uninitialised factors, and note the plan. Returns itself.

        ``exact``: number of exact rows of the embedding. Raises ValueError if the plan does not fit the model.
        """
        if plan:
            apply_plan(self.body, plan, exact)
            self.plan, self.meta.exact = plan, exact if self.EMBEDDING in plan else 0
            self.tie()
        return self

    def factorised_head(self, plan: Mapping[str, int] | None) -> "SpeechModel":
        """Replace the layers of ``plan`` (names relative to the head) by uninitialised factors, and note the plan."""
        if plan:
            self.head.factorised(plan)
            self.meta.head_plan = dict(plan)
        return self

    def densified(self) -> "SpeechModel":
        """Multiply all factors of the body out, in place. Returns itself."""
        densify(self.body)
        self.plan, self.meta.exact = None, 0
        self.tie()
        return self

    def tie(self) -> None:
        """Give the output projection the weights of the embedding, after the embedding was replaced."""

    def projection(self) -> nn.Linear | None:
        """The output projection that is tied to the dense embedding; None without one."""
        return None

    def special_tokens(self) -> list[int]:
        """Ids of the decoder's special tokens, sorted; empty without a decoder."""
        return []

    @classmethod
    def layer_patterns(cls, layers: str | Sequence[str]) -> tuple[str, ...]:
        """Name patterns for ``layers``: a group (``ffn``, ``attention``, ``ffn:encoder`` ...), a pattern, or a list.

        Raises UserError if a word is not a group of the family and does not look like a pattern or a qualified name.
        """
        result: list[str] = []
        for item in [layers] if isinstance(layers, str) else layers:
            if item in cls.LAYERS:
                result += cls.LAYERS[item]
            elif any(c in item for c in "*?[."):
                result.append(item)
            else:
                raise UserError(
                    f"layers: {item!r} is not a layer group of the family {cls.FAMILY!r}; expected one of: "
                    f"{', '.join(cls.LAYERS)}, or a name pattern such as *.layers.0.*"
                )
        if not result:
            raise UserError(f"layers: the list is empty; give one of: {', '.join(cls.LAYERS)}, or a name pattern")
        return tuple(dict.fromkeys(result))

    # -- transformers' classes and names -----------------------------------------------------------------------------

    @classmethod
    def bare(cls, config: Any, task: str, decoder: bool = False) -> nn.Module:
        """Transformers' model without a head for a config and a task, with random weights from torch's current seed.

        ``decoder``: also for a classifier with the decoder, if the family has one.
        """
        raise NotImplementedError

    @classmethod
    def from_transformers(cls, hf: nn.Module, meta: Meta) -> "SpeechModel":
        """Wrap a model of transformers' own class for the task; weights are shared."""
        raise NotImplementedError

    @classmethod
    def published(cls, config: Any, task: str) -> str:
        """Name of the transformers class, with its head, that loads a published checkpoint of the task."""
        raise NotImplementedError

    @classmethod
    def task_of(cls, architecture: str) -> str:
        """The task of the class in a published config; for a pretraining class, the task of the part to be adapted."""
        raise NotImplementedError

    @classmethod
    def width_of(cls, config: Any) -> int:
        """The size D of the encoder states for a ``config``."""
        return config.hidden_size

    @classmethod
    def depth_of(cls, config: Any) -> int:
        """The number of encoder layers for a ``config``."""
        return config.num_hidden_layers

    @classmethod
    def check(cls, task: str, config: Any) -> None:
        """Raise UserError if a model with ``config`` does not support ``task``."""
        if task not in cls.TASKS:
            raise UserError(
                f"a {cls.FAMILY} model does not support the task {task!r}; expected one of: {', '.join(cls.TASKS)}"
            )

    @classmethod
    def prefix(cls, config: Any, task: str, known: bool) -> str:
        """The prefix of the names of ``hf`` in a folder. ``known``: whether transformers has a class with this head."""
        return ""

    @property
    def known_head(self) -> bool:
        """Whether transformers has a class for the body with this head; True without a head."""
        return True

    @property
    def architecture(self) -> str:
        """Name of the transformers class that loads the model's folder; it leaves out a head that it does not have."""
        return type(self.hf).__name__

    def disk_name(self, name: str) -> str:
        """The name of a parameter or buffer in a model folder."""
        if not self.is_head(name):
            return self.prefix(self.config, self.task, self.known_head) + name.removeprefix("hf.")
        if not self.known_head:
            return name
        _, child, rest = name.split(".", 2)
        return f"{self.head.NAMES[child]}.{rest}"

    @property
    def body_prefix(self) -> str:
        """The prefix of the body's layer names in a model folder and in transformers' class for the task."""
        inner = next(name for name, module in self.hf.named_modules() if module is self.body)
        return self.disk_name(f"hf.{inner}." if inner else "hf.")

    # -- lengths and inputs ----------------------------------------------------------------------------------------

    @classmethod
    def inputs(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Arguments of ``features.inputs.Inputs`` for the model's input.

        ``config``: the content of config.json; ``preprocessor``: the settings of its feature extractor, from ``where``.
        Raises UserError if the two do not match.
        """
        raise NotImplementedError

    def frames_of(self, cut: Any) -> int:
        """Number of encoder frames of a Lhotse cut, from the model's own length functions."""
        raise NotImplementedError

    @property
    def feature_size(self) -> int:
        """The size C of a frame of the features that ``states`` takes."""
        raise NotImplementedError

    @property
    def feature_shift(self) -> float:
        """Seconds from one frame of the stored features to the next."""
        raise NotImplementedError

    def stored_features(self, inputs: Tensor) -> Tensor:
        """The features to store for an utterance's inputs. Raises ValueError if they are too short for a frame."""
        return inputs

    @property
    def window_seconds(self) -> float | None:
        """The longest utterance that the model takes, in seconds; None without a limit."""
        return None

    @property
    def frame_rate(self) -> float | None:
        """Frames per second at the encoder's input; None if its length is fixed."""
        return None

    @property
    def decoder_positions(self) -> int | None:
        """The maximum number of tokens that the decoder reads; None without a decoder."""
        return None

    def masked(self, features: Tensor, lengths: Tensor, stacked: int = 1) -> Tensor:
        """Apply ``mask``, in training, to the encoder's input features (B, F, C) with ``lengths`` (B,) valid frames.

        ``stacked``: each row holds this many frames of C / stacked bands.
        """
        return features if self.mask is None or not self.training else self.mask(features, lengths, stacked)

    # -- forward ---------------------------------------------------------------------------------------------------

    def states(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder states and their valid lengths.

        ``features``: waveforms (B, T) or front-end output (B, F, C) for wav2vec 2.0 and its relatives, stacked
        filterbanks (B, F, C) for w2v-BERT, log-mel (B, F, C) for Whisper; ``lengths``: (B,) valid samples or frames.
        Returns (B, F', D) and (B,) int64. The states are those of the last layer, or the weighted sum of all layers if
        the head has one.
        """
        raise NotImplementedError

    def mixed(self, encode: Callable[[], Tensor]) -> Tensor:
        """What the head reads: the states (B, F, D) that ``encode()`` returns, or the sum of those of all layers."""
        mix = None if self.head is None else self.head.mix
        if mix is None:
            return encode()
        with layer_states(list(self.body.get_submodule("encoder.layers"))) as found:
            last = encode()
        return mix([*found[:-1], last])  # a norm may follow the last layer

    def output_lengths(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The valid lengths (B,) int64 that ``states`` returns for the same inputs, without computing states."""
        raise NotImplementedError

    def layer_lengths(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The valid lengths (B,) int64 of the states after each encoder layer, for the inputs of ``states``."""
        return self.output_lengths(features, lengths)

    def head_logits(self, states: Tensor, frames: Tensor) -> Tensor:
        """The task head's logits for encoder states (B, F, D) with (B,) valid frames.

        CTC: (B, F, V); symbol 0 is blank. Classification: (B, N).
        """
        return self.head(states, frames)

    def ctc_logits(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, F, V) and frame lengths (B,) for CTC; symbol 0 is blank."""
        states, frames = self.states(features, lengths)
        return self.head_logits(states, frames), frames

    def class_logits(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, N) of the classes."""
        return self.head_logits(*self.states(features, lengths))

    # -- from scratch, import, calibration -------------------------------------------------------------------------

    @classmethod
    def scratch(cls, overrides: Mapping[str, Any], tokens: Any, seed: int) -> "SpeechModel":
        """A small model for recognition with weights from ``seed``.

        ``overrides``: keys of transformers' config; ``tokens``: the token set. UserError on a key that does not exist
        or that follows from the tokens.
        """
        raise UserError(
            f"base: source: scratch does not support {cls.FAMILY} models; give a hub name or a folder as source"
        )

    @classmethod
    def check_import(cls, config: Any, folder: Path, task: str) -> None:
        """Raise UserError if a published checkpoint in ``folder`` lacks files or is not supported."""

    def imported(self, folder: Path) -> None:
        """Complete (in place) what a checkpoint, loaded from ``folder``, lacks apart from weights."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the decoder accepts in its prompt; empty without a decoder."""
        return ()

    def greedy(self, features: Tensor, lengths: Tensor, cut: Any, language: str | None) -> Tensor | None:
        """Tokens (1, L) int64 that the decoder reads for one utterance: its prompt and its own greedy output.

        ``language``: the spoken language, one of ``languages``; None: the model detects it. Returns None without a
        decoder.
        """
        return None

    def outputs(self, features: Tensor, lengths: Tensor, tokens: Tensor | None = None) -> Tensor:
        """What the model computes for one utterance: logits (N, V), or encoder states (N, D) of a model without a head.

        N: valid frames (CTC), 1 (classification), or the ``tokens`` (1, L) that the decoder reads, from the last one of
        the prompt on. ``features`` and ``lengths``: see ``states``.
        """
        return self.outputs_of(*self.states(features, lengths), tokens)

    def outputs_of(self, states: Tensor, frames: Tensor, tokens: Tensor | None = None) -> Tensor:
        """``outputs`` from the encoder states (1, F, D) of an utterance and their number (1,)."""
        if self.head is None:
            return states[0, : int(frames)]
        logits = self.head_logits(states, frames)
        return logits[0, : int(frames)] if self.task == "ctc" else logits

    def after_encoder(self, name: str) -> bool:
        """Whether a layer (by its name relative to the body) does not change the encoder states."""
        return False

    @property
    def has_logits(self) -> bool:
        """Whether ``outputs`` are logits."""
        return self.head is not None

    def masks(self, cut: Any) -> dict[str, Tensor]:
        """Masks (1, F) of valid frames for one utterance, by patterns of layer names (see ``lowrank.moments``).

        Layers without a mask see only valid frames.
        """
        return {}
