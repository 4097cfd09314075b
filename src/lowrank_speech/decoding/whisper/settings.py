"""Keys that all decoders of Whisper share.

The guards are those of openai/whisper (``transcribe.py``; Radford et al. 2022, section 4.5), with its definitions: the
compression ratio is that of the text, and an average log probability counts the end of text. Its values are
``compression_ratio_threshold: 2.4``, ``logprob_threshold: -1.0``, ``no_speech_threshold: 0.6`` and
``temperatures: [0, 0.2, 0.4, 0.6, 0.8, 1.0]``. Here they are off unless the config sets them.

This module imports nothing heavy, because the config check reads it.
"""

from typing import Literal

from lowrank_speech.decoding.base import Decoding
from lowrank_speech.settings import Count, NotNegative, Positive, Seed, Share, key, settings


@settings
class WhisperDecoding(Decoding):
    """Keys of every decoder of Whisper."""

    language: Literal["given", "detect"] = key(
        "given", "given: tell Whisper the language of the utterance; detect: let it detect the language"
    )
    languages: tuple[str, ...] | None = key(
        None, "detect only these languages; null: all that the model knows", min_length=1
    )
    task: Literal["transcribe", "translate"] = key(
        "transcribe", "transcribe: write what is said; translate: translate it into English"
    )
    prompt: str | None = key(None, "text that Whisper takes for what was said before: names, spelling, style")
    timestamps: bool = key(False, "let Whisper predict time stamps; gives segments with times")
    word_times: bool = key(False, "find the times of the words through the cross-attention")
    max_new_tokens: Count | None = key(
        None, "maximum number of tokens per utterance; null: the decoder's number of positions"
    )
    max_tokens_per_second: Positive | None = key(
        50.0, "maximum number of tokens per second of an utterance, in addition to 20; null: no limit by duration"
    )
    stop_loops: bool = key(True, "stop an utterance whose output only repeats itself")
    temperatures: tuple[NotNegative, ...] = key(
        (0.0,), "temperatures to try, one after the other, until the result passes the thresholds", min_length=1
    )
    compression_ratio_threshold: Positive | None = key(
        None, "try the next temperature if zlib compresses the text by more than this (OpenAI: 2.4); null: off"
    )
    logprob_threshold: float | None = key(
        None, "try the next temperature if the mean log probability of a token is lower (OpenAI: -1.0); null: off"
    )
    no_speech_threshold: Share | None = key(
        None,
        "drop an utterance if its no-speech probability is higher (OpenAI: 0.6) and its mean log probability is below "
        "logprob_threshold, if that is set; null: off",
    )
    no_speech: bool = key(False, "write the no-speech probability, also without a threshold")
    lm: str | None = key(None, "language model of words (bases from scratch: or tokens), a name under lms; null: none")
    lm_weight: NotNegative = key(0.5, "scale of the language model's log probabilities")
    insertion: float = key(0.0, "with an lm: added to the score for each word (token)", ge=-100, le=100)
    seed: Seed = key(1, "seed of the draws at temperatures above 0")
    long: Literal["sequential", "chunks"] | None = key(
        None,
        "cuts longer than the model's window. sequential: window after window, by the predicted time stamps; chunks: "
        "overlapping windows, stitched by what they have in common; null: set them aside",
    )
    condition: bool = key(False, "long: sequential: Whisper reads what it wrote in the windows before")
    overlap: Positive | None = key(
        None, "long: chunks: seconds that a chunk shares with each of its neighbours; null: a third of the window"
    )

    @property
    def any_length(self) -> bool:
        """Whether cuts may be longer than the model's window."""
        return self.long is not None

    def __post_init__(self) -> None:
        falling = [
            later for first, later in zip(self.temperatures, self.temperatures[1:], strict=False) if later <= first
        ]
        if falling:
            raise ValueError(f"temperatures is {list(self.temperatures)}; each must be above the one before it")
        if len(self.temperatures) > 1 and self.compression_ratio_threshold is None and self.logprob_threshold is None:
            raise ValueError(
                "temperatures has several values, but only the first one would ever be used; set "
                "compression_ratio_threshold or logprob_threshold too"
            )
        if self.condition and self.long != "sequential":
            raise ValueError("condition has an effect only with long: sequential; set that, or remove condition")
        if self.overlap is not None and self.long != "chunks":
            raise ValueError("overlap has an effect only with long: chunks; set that, or remove overlap")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt is empty; write some text, or remove the key")
