"""Prefix beam search for CTC: sums over the alignments of each label sequence, and adds scores of the sequence.

A state of the search is a prefix (label sequence) and whether its last frame was blank. ``beam`` counts states, as in
flashlight, so that beam 1 is the best path (greedy). Scores are natural-log values. Equal prefixes always merge,
whatever their language model states; a 64-bit hash of the labels finds a prefix that was dropped and came back.

All utterances of a batch advance together, frame by frame, in NumPy arrays (B, K): the Python overhead of a frame is
shared by the batch. A frame is exact, but cheap where it is sharp: an extension is only scored if its upper bound beats
the K-th of the states that stay. No operation mixes utterances, so results do not depend on the batch. Ties go to
states that stay, then to lower token ids.

B batch, F frames, V vocabulary, K beam, N candidates.

Source: Hannun et al. 2014, First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional RNNs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

BLANK = 0
NEVER = -np.inf
ROUNDING = 1e-9


class Scorer(Protocol):
    """Scores a label sequence step by step. Its state is a row of ``columns`` integers; N states are (N, columns).

    ``ends`` (V,): tokens that end a word, for which the upper bound may differ from that of the others.
    """

    columns: int
    ends: np.ndarray

    def start(self) -> Sequence[int]:
        """The state of the empty sequence."""
        ...

    def bound(self, states: np.ndarray) -> np.ndarray:
        """Upper bounds (N, 2) of what extending the states adds: by other tokens, and by those that end a word."""
        ...

    def extend(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What extending each state by its token adds (N,), and the next states."""
        ...

    def finish(self, states: np.ndarray) -> np.ndarray:
        """What the end of the sequence adds (N,)."""
        ...


class NoScore:
    """Adds nothing."""

    columns = 0

    def __init__(self, symbols: int):
        self.ends = np.zeros(symbols, bool)

    def start(self) -> Sequence[int]:
        return ()

    def bound(self, states: np.ndarray) -> np.ndarray:
        return np.zeros((len(states), 2))

    def extend(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(states)), states

    def finish(self, states: np.ndarray) -> np.ndarray:
        return np.zeros(len(states))


@dataclass(frozen=True)
class Limits:
    """What is kept after each frame.

    beam       states per utterance
    threshold  states that are this much (nats) worse than the best one are dropped
    tokens     only this many symbols of a frame (the most probable ones, without blank) extend a prefix; None: all
    """

    beam: int = 100
    threshold: float = 25.0
    tokens: int | None = None


@dataclass
class _Beam:
    """The prefixes of a batch: rows of (B, K) arrays. A row is free where both log probabilities are -inf.

    blank, label  log probability (with the scorer's part) of the prefix, ending in blank or in its last label
    part          the scorer's part
    bound         (B, K, 2) bounds of what the scorer adds next
    last          last label; -1: empty
    parent        row of the prefix without its last label; -1: not in the beam
    key, above    hash of the prefix, and of its parent
    node          number in the history
    """

    blank: np.ndarray
    label: np.ndarray
    part: np.ndarray
    bound: np.ndarray
    last: np.ndarray
    parent: np.ndarray
    key: np.ndarray
    above: np.ndarray
    node: np.ndarray
    states: np.ndarray

    @classmethod
    def start(cls, size: int, beam: int, scorer: Scorer) -> "_Beam":
        def full(value: float, kind: type = np.float64) -> np.ndarray:
            return np.full((size, beam), value, kind)

        states = np.zeros((size, beam, scorer.columns), np.int64)
        states[:, 0] = scorer.start()
        made = cls(full(NEVER), full(NEVER), full(0), np.zeros((size, beam, 2)), full(-1, np.int64), full(-1, np.int64),
                   full(0, np.uint64), full(0, np.uint64), full(0, np.int64), states)  # fmt: skip
        made.blank[:, 0] = 0.0
        made.bound[:, 0] = scorer.bound(states[:, 0])
        made.key[:, 0] = _mix(np.arange(1, size + 1, dtype=np.uint64))
        made.node[:, 0] = np.arange(size)
        return made

    def first(self, size: int) -> "_Beam":
        """Views of the first ``size`` utterances."""
        return _Beam(**{name: getattr(self, name)[:size] for name in self.__dataclass_fields__})


@dataclass
class _History:
    """Every prefix that was ever in the beam: its parent and its last label."""

    size: int
    parents: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)

    def add(self, parents: np.ndarray, labels: np.ndarray) -> np.ndarray:
        numbers = np.arange(self.size, self.size + len(parents))
        self.size += len(parents)
        self.parents.append(parents)
        self.labels.append(labels)
        return numbers


def search(
    log_probs: np.ndarray, frames: np.ndarray, limits: Limits, scorer: Scorer | None = None, most: int | None = None
) -> list[list[tuple[tuple[int, ...], float]]]:
    """The sequences left in the beam of each utterance, with their scores, the best first; empty: nothing survived.

    ``most``: return only so many of each utterance.
    ``log_probs`` (B, F, V): natural-log probabilities, blank is 0; NaN counts as -inf. ``frames`` (B,) valid frames.
    """
    scorer = scorer or NoScore(log_probs.shape[2])
    order = np.argsort(-frames, kind="stable")
    log_probs, lengths = log_probs[order], frames[order]
    beam = _Beam.start(len(order), limits.beam, scorer)
    roots = len(order)
    history = _History(roots, [np.full(roots, -1)], [np.full(roots, -1)])
    with np.errstate(invalid="ignore"):
        for frame in range(int(lengths.max(initial=0))):
            active = int(np.searchsorted(-lengths, -frame, side="left"))
            row = log_probs[:active, frame].astype(np.float64)
            _step(beam.first(active), np.where(np.isnan(row), NEVER, row), limits, scorer, history)
    found = _results(beam, history, scorer, most)
    return [found[i] for i in np.argsort(order, kind="stable")]


def _step(beam: _Beam, row: np.ndarray, limits: Limits, scorer: Scorer, history: _History) -> None:
    """Advance the beam by a frame with log probabilities ``row`` (B, V)."""
    size = limits.beam
    total = np.logaddexp(beam.blank, beam.label)
    # The label of each prefix in this frame; that of the empty prefix has no probability.
    again = np.where(beam.last >= 0, np.take_along_axis(row, np.maximum(beam.last, 0), axis=1), NEVER)
    stay = np.concatenate([total + row[:, BLANK, None], beam.label + again], axis=1)
    # A prefix whose parent is in the beam is also reached from there.
    child, at = family = np.nonzero(beam.parent >= 0)
    above = beam.parent[family]
    source = np.where(beam.last[family] == beam.last[child, above], beam.blank[child, above], total[child, above])
    arriving = source + again[family] + beam.part[family] - beam.part[child, above]
    stay[child, size + at] = np.logaddexp(stay[child, size + at], arriving)

    best = stay.max(axis=1)
    floor = np.maximum(np.partition(stay, size, axis=1)[:, size], best - limits.threshold)
    new = _extensions(beam, row, total, floor, limits, scorer)
    np.maximum.at(best, new.utterance, new.score)
    floor = np.maximum(floor, best - limits.threshold)
    keep, chosen = (stay >= floor[:, None]) & (stay > NEVER), new.score >= floor[new.utterance]
    if (keep.sum(axis=1) + np.bincount(new.utterance[chosen], minlength=len(keep)) > size).any():
        keep, chosen = _largest(stay, keep, new, chosen, size)
    stay[~keep] = NEVER
    beam.blank[:], beam.label[:] = stay[:, :size], stay[:, size:]
    alive = keep[:, :size] | keep[:, size:]
    # A parent that was dropped is not in the beam any more.
    beam.parent[~(alive & np.take_along_axis(alive, np.maximum(beam.parent, 0), axis=1))] = -1
    if chosen.any():
        _add(beam, alive, new.only(chosen), scorer, history)


@dataclass
class _New:
    """N new prefixes, sorted by utterance: row of the parent, new label, score, the scorer's part and next state."""

    utterance: np.ndarray
    parent: np.ndarray
    label: np.ndarray
    score: np.ndarray
    part: np.ndarray
    states: np.ndarray

    def only(self, mask: np.ndarray) -> "_New":
        return _New(**{name: getattr(self, name)[mask] for name in self.__dataclass_fields__})

    @property
    def place(self) -> np.ndarray:
        """Number within the utterance."""
        return np.arange(len(self.utterance)) - np.searchsorted(self.utterance, self.utterance)


def _extensions(
    beam: _Beam, row: np.ndarray, total: np.ndarray, floor: np.ndarray, limits: Limits, scorer: Scorer
) -> _New:
    """The prefixes that are not yet in the beam and score above ``floor`` (B,), sorted by utterance, label, parent."""
    ends = scorer.ends.astype(np.int64)
    # What an extension may reach, apart from the label's own probability; rounding must not make this too low.
    reach = np.stack([total + beam.bound[:, :, 0], total + beam.bound[:, :, 1]]) + ROUNDING
    wanted = row > (floor - reach.max(axis=2))[ends].T
    wanted[:, BLANK] = False
    least = row.shape[1] - (limits.tokens or row.shape[1])
    if least > 1:
        crowded = np.flatnonzero(wanted.sum(axis=1) > limits.tokens)
        some = row[crowded]
        some[:, BLANK] = NEVER
        wanted[crowded] &= some >= np.partition(some, least, axis=1)[:, least, None]
    of, label = np.nonzero(wanted)
    able = reach[ends[label], of] > (floor[of] - row[of, label])[:, None]
    # The children in the beam are not new.
    child, at = np.nonzero(beam.parent >= 0)
    pair = np.full(row.shape, -1)
    pair[of, label] = np.arange(len(of))
    pair = pair[child, beam.last[child, at]]
    able[pair[pair >= 0], beam.parent[child, at][pair >= 0]] = False
    which, parent = np.nonzero(able)
    utterance, label = of[which], label[which]
    # A label that repeats the last one needs a blank between them.
    repeated = beam.last[utterance, parent] == label
    score = np.where(repeated, beam.blank[utterance, parent], total[utterance, parent]) + row[utterance, label]
    added, states = scorer.extend(beam.states[utterance, parent], label)
    new = _New(utterance, parent, label, score + added, beam.part[utterance, parent] + added, states)
    return new.only(new.score > floor[utterance])


def _largest(
    stay: np.ndarray, keep: np.ndarray, new: _New, chosen: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """``keep`` (B, 2 K) and ``chosen`` (N,), restricted to the ``size`` best states of each utterance."""
    place, width = new.place, stay.shape[1]
    every = np.full((len(stay), width + int(place.max(initial=-1)) + 1), NEVER)
    every[:, :width] = np.where(keep, stay, NEVER)
    every[new.utterance, width + place] = np.where(chosen, new.score, NEVER)
    cut = np.partition(every, every.shape[1] - size, axis=1)[:, every.shape[1] - size]
    best = (every >= cut[:, None]) & (every > NEVER)
    for tied in np.flatnonzero(best.sum(axis=1) > size):
        equal = np.flatnonzero(every[tied] == cut[tied])
        best[tied, equal[size - int((every[tied] > cut[tied]).sum()) :]] = False
    return best[:, :width], best[new.utterance, width + place]


def _add(beam: _Beam, alive: np.ndarray, new: _New, scorer: Scorer, history: _History) -> None:
    """Put new prefixes into free rows; ``alive`` (B, K): the rows that are not free."""
    of, free = np.nonzero(~alive)
    rows = new.utterance, free[np.searchsorted(of, new.utterance) + new.place]
    parents = new.utterance, new.parent
    # What is read of the parents comes first, because their rows may be free, and used again here.
    above = beam.key[parents]
    number = history.add(beam.node[parents], new.label)
    beam.blank[rows], beam.label[rows], beam.part[rows] = NEVER, new.score, new.part
    beam.last[rows], beam.node[rows], beam.states[rows] = new.label, number, new.states
    beam.above[rows], beam.key[rows] = above, _mix(above ^ _mix((new.label + 1).astype(np.uint64)))
    beam.parent[rows] = np.where(alive[parents], new.parent, -1)
    beam.bound[rows] = scorer.bound(new.states)
    # Children of a prefix that comes back get their parent again.
    alone = np.nonzero(alive & (beam.parent < 0) & (beam.last >= 0))
    order = np.argsort(beam.key[rows], kind="stable")
    keys, wanted = beam.key[rows][order], beam.above[alone]
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    same = keys[found] == wanted
    beam.parent[alone[0][same], alone[1][same]] = rows[1][order[found[same]]]


def _mix(value: np.ndarray) -> np.ndarray:
    """A 64-bit hash (splitmix64)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _results(
    beam: _Beam, history: _History, scorer: Scorer, most: int | None
) -> list[list[tuple[tuple[int, ...], float]]]:
    parents, labels = np.concatenate(history.parents).tolist(), np.concatenate(history.labels).tolist()
    scores = np.logaddexp(beam.blank, beam.label)
    of, row = np.nonzero(scores > NEVER)
    scores[of, row] += scorer.finish(beam.states[of, row])
    found = []
    for utterance in range(len(scores)):
        order = np.argsort(-scores[utterance], kind="stable")
        order = order[scores[utterance, order] > NEVER][:most]
        rows = []
        for node, score in zip(beam.node[utterance, order].tolist(), scores[utterance, order].tolist(), strict=True):
            sequence = []
            while parents[node] >= 0:
                sequence.append(labels[node])
                node = parents[node]
            rows.append((tuple(reversed(sequence)), score))
        found.append(rows)
    return found
