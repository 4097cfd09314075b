"""The family whisper: an encoder and a decoder on log-mel features, padded to a fixed window.

B batch, F frames, C mel bands, D hidden size, L target length, V vocabulary.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration, WhisperPreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.embedding import LowRankEmbedding, TiedProjection
from lowrank_speech.models.build import config_with
from lowrank_speech.models.families.layers import groups
from lowrank_speech.models.heads.registry import DEFAULT, head_class
from lowrank_speech.models.speech import Meta, SpeechModel
from lowrank_speech.models.whisper_vocabulary import checked, complete

RATE, FRAMES = 16_000, 100  # samples and log-mel frames per second
# Limits a decoder that does not find the end of an utterance; people speak 3 to 5 tokens per second.
TOKENS_PER_SECOND = 10
POSITIONS = "encoder.embed_positions.weight"
EMBEDDING_NAME = "decoder.embed_tokens"


class WhisperEncoderModel(WhisperPreTrainedModel):
    """Whisper's encoder, for classifiers; parameters are called ``encoder.*``."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.encoder = WhisperEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()


class Whisper(SpeechModel):
    FAMILY = "whisper"
    TASKS = ("seq2seq", "classify")
    # "coder" is both encoder and decoder. Attention in the decoder includes the cross-attention ("encoder_attn").
    LAYERS = {"embedding": (EMBEDDING_NAME,)} | groups(
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
    )
    EMBEDDING = EMBEDDING_NAME
    LORA = ("*coder.layers.*_attn.q_proj", "*coder.layers.*_attn.v_proj", "*coder.layers.*.fc[12]")

    # -- transformers' classes and names -----------------------------------------------------------------------------

    @classmethod
    def bare(cls, config: Any, task: str, decoder: bool = False) -> nn.Module:
        whole = decoder or task == "seq2seq"
        return WhisperForConditionalGeneration(config) if whole else WhisperEncoderModel(config)

    @classmethod
    def published(cls, config: Any, task: str) -> str:
        return "WhisperForConditionalGeneration" if task == "seq2seq" else "WhisperForAudioClassification"

    @classmethod
    def task_of(cls, architecture: str) -> str:
        return "classify" if architecture == "WhisperForAudioClassification" else "seq2seq"

    @classmethod
    def from_transformers(cls, hf: nn.Module, meta: Meta) -> SpeechModel:
        if meta.task == "seq2seq":
            return cls(hf, None, meta)
        kind = head_class(DEFAULT[meta.task])
        with torch.device("meta"):
            bare = WhisperEncoderModel(hf.config)
            head = kind(kind.settings_of(hf.config), cls.width_of(hf.config), kind.outputs_of(hf.config))
        bare.encoder = hf.encoder
        for own, theirs in kind.NAMES.items():
            setattr(head, own, getattr(hf, theirs))
        return cls(bare, head, meta)

    @property
    def known_head(self) -> bool:
        return self.head is None or (self.head.KIND == "pooled" and self.head.known)

    @property
    def decodes(self) -> bool:
        return isinstance(self.hf, WhisperForConditionalGeneration)

    @property
    def architecture(self) -> str:
        if self.decodes:
            return "WhisperForConditionalGeneration"
        return "WhisperForAudioClassification" if self.known_head else "WhisperModel"

    @property
    def body(self) -> nn.Module:
        return self.hf.model if self.decodes else self.hf

    def tied(self) -> dict[str, str]:
        if self.projection() is None:
            return {}
        return {"proj_out.weight": "model.decoder.embed_tokens.weight"}

    def tie(self) -> None:
        if not (self.decodes and self.config.tie_word_embeddings):
            return
        table = self.body.decoder.embed_tokens
        if isinstance(table, LowRankEmbedding):
            self.hf.proj_out = TiedProjection(table)
        else:
            self.hf.proj_out = nn.Linear(table.embedding_dim, table.num_embeddings, bias=False, device="meta")
            self.hf.proj_out.weight = table.weight

    def projection(self) -> nn.Linear | None:
        if not (self.decodes and self.config.tie_word_embeddings):
            return None
        return self.hf.proj_out if isinstance(self.hf.proj_out, nn.Linear) else None

    def special_tokens(self) -> list[int]:
        if not self.decodes:
            return []
        said, config = self.hf.generation_config, self.config
        named = [config.bos_token_id, config.eos_token_id, config.pad_token_id, config.decoder_start_token_id]
        for name in ("no_timestamps_token_id", "prev_sot_token_id"):
            named.append(getattr(said, name, None))
        for name in ("lang_to_id", "task_to_id"):
            named += (getattr(said, name, None) or {}).values()
        found = {i for i in named if i is not None and i < config.vocab_size}
        # The published vocabularies end with all special tokens and time stamps; not all of them have a name there.
        if min(found) > config.vocab_size // 2:
            found = set(range(min(found), config.vocab_size))
        return sorted(found)

    def constants(self) -> list[nn.Parameter]:
        """The encoder's position embeddings, which are sinusoids."""
        return [self.body.encoder.embed_positions.weight]

    # -- lengths and inputs ------------------------------------------------------------------------------------------

    @classmethod
    def inputs(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {"kind": "logmel", "n_mels": config.get("num_mel_bins", 80)}

    @property
    def feature_size(self) -> int:
        return self.config.num_mel_bins

    @property
    def feature_shift(self) -> float:
        return 1 / FRAMES

    @property
    def window(self) -> int:
        """The fixed number of input frames of 10 ms (3,000 for the published models)."""
        return self.config.max_source_positions * 2

    @property
    def window_seconds(self) -> float:
        # An utterance that fills the window has two more frames at its end; Whisper's extractor drops them.
        return (self.window + 2) / FRAMES

    def frames_of(self, cut: Any) -> int:
        """Number of encoder frames of a cut with log-mel or a recording."""
        mel = cut.num_frames if getattr(cut, "has_features", False) else -(-(cut.num_samples + 200) // 160)
        return (min(mel, self.window) + 1) // 2

    # -- forward -----------------------------------------------------------------------------------------------------

    def states(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel (B, F, C) and (B,) lengths -> encoder states (B, window / 2, D) and their valid lengths (B,)."""
        # Pad before masking: the padding's value comes from the utterance's maximum, which a mask may hide.
        padded = self.pad_mel(features, lengths).transpose(1, 2)
        seen = self.masked(padded, lengths.clamp(max=self.window)).transpose(1, 2)
        states = self.mixed(lambda: self.body.encoder(seen).last_hidden_state)
        return states, self.output_lengths(features, lengths)

    def output_lengths(self, features: Tensor, lengths: Tensor) -> Tensor:
        return torch.div(lengths.clamp(max=self.window) + 1, 2, rounding_mode="floor")

    def pad_mel(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Pad log-mel features (B, F, C) to the model's window with each utterance's floor -> (B, C, window).

        Whisper's features are log10 of at least 1e-10, clipped at 8 below the utterance's maximum, then (x + 4) / 4.
        So the zeros that WhisperFeatureExtractor appends become the maximum minus 2, but at least -1.5.
        """
        batch, frames, bands = features.shape
        size, longest = self.window, int(lengths.max())
        if longest > size + 2:
            raise UserError(
                f"an utterance of {longest / FRAMES:.2f} s is longer than the Whisper window of {size / FRAMES:.2f} "
                f"s; cut it, set it aside (max_seconds), or use a base with a longer window"
            )
        valid = torch.arange(frames, device=features.device)[None, :] < lengths[:, None]
        floor = features.masked_fill(~valid[..., None], float("-inf")).amax(dim=(1, 2)) - 2.0
        floor = floor.clamp(min=(math.log10(1e-10) + 4) / 4)
        padded = floor[:, None, None].expand(batch, size, bands).clone()
        keep = min(frames, size)
        padded[:, :keep] = torch.where(valid[:, :keep, None], features[:, :keep], padded[:, :keep])
        return padded.transpose(1, 2)

    def seq2seq_logits(self, features: Tensor, lengths: Tensor, decoder_input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decoder logits (B, L, V) for ``decoder_input`` (B, L); encoder states (B, F', D) and their lengths (B,)."""
        hidden, frames = self.states(features, lengths)
        return self.decoder_logits(hidden, decoder_input), hidden, frames

    @property
    def decoder_positions(self) -> int:
        return self.config.max_target_positions

    def decoder_logits(self, states: Tensor, decoder_input: Tensor) -> Tensor:
        """Decoder logits (B, L, V) for encoder states (B, F', D) and ``decoder_input`` (B, L)."""
        decoded = self.body.decoder(input_ids=decoder_input, encoder_hidden_states=states, use_cache=False)
        return self.hf.proj_out(decoded.last_hidden_state)

    def head_logits(self, states: Tensor, frames: Tensor) -> Tensor:
        """As in the base class. With the head language-tokens: the logits of the languages after the first token.

        The decoder attends to the whole window, as in recognition.
        """
        if not (self.head is not None and self.head.DECODER):
            return super().head_logits(states, frames)
        start = torch.full((len(states), 1), self.config.decoder_start_token_id, device=states.device)
        codes, known = self.head.settings.codes, self.hf.generation_config.lang_to_id
        ids = [known[f"<|{codes.get(label, label)}|>"] for label in self.meta.labels]
        return self.decoder_logits(states, start)[:, 0, ids]

    # -- from scratch and calibration --------------------------------------------------------------------------------

    @classmethod
    def scratch(cls, overrides: Mapping[str, Any], tokens: Any, seed: int) -> SpeechModel:
        """As in the base class. The special tokens come from ``tokens`` (``size``, ``sot``, ``eot``, ``transcribe``,
        ``no_timestamps``, and ``language_ids``: language -> id). ``generation_config`` is as complete as a published
        Whisper's."""
        from transformers import GenerationConfig, WhisperConfig

        special = {
            "pad_token_id": tokens.eot,
            "bos_token_id": tokens.eot,
            "eos_token_id": tokens.eot,
            "decoder_start_token_id": tokens.sot,
        }
        config = config_with(
            WhisperConfig,
            overrides,
            vocab_size=tokens.size,
            suppress_tokens=None,
            begin_suppress_tokens=None,
            **special,
        )
        torch.manual_seed(seed)
        hf = cls.bare(config, "seq2seq").eval()
        hf.generation_config = GenerationConfig(
            **special,
            is_multilingual=True,
            lang_to_id={f"<|{language}|>": i for language, i in tokens.language_ids.items()},
            task_to_id={"transcribe": tokens.transcribe},
            no_timestamps_token_id=tokens.no_timestamps,
            return_timestamps=False,
            suppress_tokens=[],
            begin_suppress_tokens=[],
            max_length=config.max_target_positions,
        )
        return cls(hf, None, Meta("whisper", "seq2seq"))

    @classmethod
    def check_import(cls, config: Any, folder: Path, task: str) -> None:
        if task == "seq2seq":
            checked(folder, config.vocab_size)

    def imported(self, folder: Path) -> None:
        if self.decodes:
            complete(self, folder)

    @property
    def languages(self) -> tuple[str, ...]:
        if not self.decodes:
            return ()
        known = getattr(self.hf.generation_config, "lang_to_id", None) or {}
        return tuple(token[2:-2] for token in known)

    def greedy(self, features: Tensor, lengths: Tensor, cut: Any, language: str | None) -> Tensor | None:
        if self.task != "seq2seq":
            return None
        mel, said = self.pad_mel(features, lengths), self.hf.generation_config
        prompt, options = [self.config.decoder_start_token_id], {}
        if self.languages:
            if language is None:
                tag = int(self.hf.detect_language(input_features=mel, generation_config=said)[0])
            else:
                tag = said.lang_to_id[f"<|{language}|>"]
            names = {i: name for name, i in said.lang_to_id.items()}
            options = {"task": "transcribe", "language": names[tag]}
            prompt += [tag, said.task_to_id["transcribe"]]
        prompt.append(said.no_timestamps_token_id)
        # Silence warnings about arguments, which would come with each utterance.
        for name in ("generation", "models.whisper"):
            logging.getLogger(f"transformers.{name}").setLevel(logging.ERROR)
        found = self.hf.generate(
            input_features=mel,
            num_beams=1,
            do_sample=False,
            return_timestamps=False,
            max_new_tokens=min(int(cut.duration * TOKENS_PER_SECOND) + 4, self.config.max_target_positions - 4),
            **options,
        )
        special = {*prompt, self.config.eos_token_id}
        written = [i for i in found[0].tolist() if i not in special]
        return torch.tensor([prompt + written], device=features.device)

    def outputs_of(self, states: Tensor, frames: Tensor, tokens: Tensor | None = None) -> Tensor:
        if tokens is None:
            return super().outputs_of(states, frames)
        # What follows the tokens of the prompt before the last one is never asked for.
        prompt = int((tokens[0] == self.hf.generation_config.no_timestamps_token_id).nonzero()[0])
        return self.decoder_logits(states, tokens)[0, prompt:]

    def after_encoder(self, name: str) -> bool:
        return name.startswith("decoder.")

    @property
    def has_logits(self) -> bool:
        return self.task == "seq2seq" or super().has_logits

    def masks(self, cut: Any) -> dict[str, Tensor]:
        """Frames of the window beyond the utterance do not count."""
        valid = torch.arange(self.config.max_source_positions)[None, :] < self.frames_of(cut)
        return {"*encoder_attn.[kv]_proj": valid, "*encoder.layers.*": valid}
