"""Times of tokens and words, from Whisper's cross-attention.

The decoder reads its own transcript. Some heads of its cross-attention follow the speech (``alignment_heads`` in the
generation settings). If a model names none, all heads of the upper half of the decoder's layers count, as in
openai/whisper. Their attention, normalised over the tokens and smoothed over time, is the reward of dynamic time
warping, which assigns each token a stretch of frames.

Source: openai/whisper, timing.py (find_alignment); transformers, generation_whisper.py (_extract_token_timestamps).

N tokens, T encoder frames of 20 ms, H heads, L tokens that the decoder reads.
"""

import contextlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowrank_speech.decoding.base import Word
from lowrank_speech.decoding.whisper.codes import STEP
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.models.text import UNSPACED


@dataclass(frozen=True)
class Timed:
    """When a token was said, in seconds, and its log probability."""

    start: float
    end: float
    log_prob: float


def spaced(language: str | None) -> bool:
    """Whether ``language`` separates words by blanks."""
    return (language or "").replace("_", "-").partition("-")[0] not in UNSPACED


def align(
    model: SpeechModel, states: Tensor, frames: int, start: Sequence[int], tokens: Sequence[int], offset: float = 0.0
) -> list[Timed]:
    """Times of ``tokens``, text without time stamps, in ``states`` (1, T, D), of which ``frames`` contain speech.

    ``start``: the prompt, which ends with <|notimestamps|>; ``offset``: when the window starts.
    """
    if not tokens:
        return []
    frames = min(max(frames, 1), states.shape[1])
    given = torch.tensor([[*start, *tokens]], device=states.device)
    with _eager(model):
        decoded = model.body.decoder(
            input_ids=given, encoder_hidden_states=states, use_cache=False, output_attentions=True
        )
    heads = torch.stack([decoded.cross_attentions[layer][0, head] for layer, head in _heads(model)]).float()
    rows = slice(len(start) - 1, None)  # the row of a token predicts the next one
    log_probs = model.hf.proj_out(decoded.last_hidden_state[0, rows]).float().log_softmax(-1)
    chosen = log_probs[:-1].gather(-1, given[0, len(start) :, None])[:, 0].tolist()
    times = _jumps(_reward(heads[..., :frames], model.config.median_filter_width)[rows].cpu().numpy(), frames)
    times = [offset + STEP * time for time in times]
    return [Timed(*row) for row in zip(times[:-1], times[1:], chosen, strict=True)]


def _heads(model: SpeechModel) -> list[tuple[int, int]]:
    """(layer, head) of the heads to use."""
    layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
    given = getattr(model.hf.generation_config, "alignment_heads", None) or []
    known = [(layer, head) for layer, head in given if layer < layers and head < heads]
    return known or [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]


@contextlib.contextmanager
def _eager(model: SpeechModel) -> Iterator[None]:
    """Attention that returns its weights."""
    before = model.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.hf.set_attn_implementation(before)


def _reward(heads: Tensor, width: int) -> Tensor:
    """Attention (H, L, T) -> (L, T)."""
    heads = heads / heads.sum(-1, keepdim=True)
    spread = heads.std(-2, keepdim=True, unbiased=False).clamp(min=1e-10)
    heads = (heads - heads.mean(-2, keepdim=True)) / spread
    reach = width // 2
    if heads.shape[-1] > reach:
        padded = torch.nn.functional.pad(heads, (reach, reach), mode="reflect")
        heads = padded.unfold(-1, width, 1).median(-1).values
    return heads.mean(0)


def _jumps(reward: np.ndarray, frames: int) -> list[int]:
    """The first frame of each of the N + 1 rows of ``reward`` (N + 1, T): N tokens, and the end of text."""
    rows, columns = warp(-reward.astype(np.float64))
    first = np.concatenate([[True], np.diff(rows) > 0])
    return columns[first].tolist()


def warp(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dynamic time warping: rows and columns of the cheapest path through ``cost`` (N, T).

    Equal to that of transformers and openai/whisper, but computed by diagonals, in which cells do not depend on each
    other.
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf, dtype=np.float32)
    step = np.full((rows + 1, columns + 1), 2, dtype=np.int8)  # 0: row and column, 1: row, 2: column
    step[1:, 0] = 1
    total[0, 0] = 0
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        both, row, column = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        kind = np.where((both < row) & (both < column), 0, np.where((row < both) & (row < column), 1, 2))
        step[i, j] = kind
        total[i, j] = cost[i - 1, j - 1] + np.choose(kind, [both, row, column])
    path, i, j = [], rows, columns
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        kind = step[i, j]
        i, j = i - (kind != 2), j - (kind != 1)
    found = np.array(path[::-1])
    return found[:, 0], found[:, 1]


def words(
    tokens: Sequence[int], times: Sequence[Timed], text: Callable[[list[int]], str], language: str | None
) -> list[Word]:
    """The words of ``tokens``: what blanks separate, or, in languages without blanks, what tokens stand for."""
    found: list[Word] = []
    joined = False
    for said, first, last in _pieces(tokens, text):
        for number, part in enumerate(re.findall(r"\s*\S+|\s+$", said)):
            word = part.strip()
            new = not joined or number > 0 or part[0].isspace()
            if not spaced(language):
                new = not (found and all(unicodedata.category(c)[0] == "P" for c in word))
            joined = not part[-1].isspace()
            if not word:
                continue
            begin, end = times[first].start, times[last].end
            score = sum(time.log_prob for time in times[first : last + 1])
            if new or not found:
                found.append(Word(word, begin, end, score))
            else:
                before = found.pop()
                found.append(Word(before.text + word, before.start, end, before.score + score))
    return found


def _pieces(tokens: Sequence[int], text: Callable[[list[int]], str]) -> Iterator[tuple[str, int, int]]:
    """(text, first token, last token) of the shortest runs of tokens that are whole characters."""
    done, first = "", 0
    for last in range(len(tokens)):
        whole = text(list(tokens[: last + 1]))
        # A part of a character is decoded as U+FFFD.
        if whole.startswith(done) and (not whole.endswith("\ufffd") or last == len(tokens) - 1):
            if whole[len(done) :]:
                yield whole[len(done) :], first, last
            done, first = whole, last + 1
