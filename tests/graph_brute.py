"""Brute force for graphs: every path of a few frames, every reading of its tokens as words, every way of backing off.

Only Python's standard library, because tests/with_k2 also runs under Python 3.9.
"""

import functools
import itertools
import math

INFINITE = float("inf")
BOUNDARY = 2
TOKENS = ["<blk>", "<unk>", "|", "a", "b"]
PRONUNCIATIONS = {"a": [((3,), 0.0)], "ab": [((3, 4), 0.0)], "b": [((4,), 0.0)], "bee": [((4,), 0.5), ((4, 3), 0.25)]}
"""Homophones, beginnings of others, and a word with two pronunciations: tokens and cost."""
WORDS = sorted(PRONUNCIATIONS)

# Backing off from <s> to `bee` costs less than the bigram `<s> bee`.
SMALL = {
    ("<s>",): (-99, -0.5),
    ("</s>",): (-0.8, 0),
    ("a",): (-0.6, -0.3),
    ("ab",): (-0.9, -0.2),
    ("b",): (-1.1, -0.1),
    ("bee",): (-1.2, 0),
    ("<s>", "a"): (-0.2, 0),
    ("<s>", "bee"): (-2.5, 0),
    ("a", "b"): (-0.4, 0),
    ("b", "</s>"): (-0.3, 0),
    ("ab", "ab"): (-0.3, 0),
}
LARGE = {
    **SMALL,
    ("a", "b"): (-0.1, -0.2),
    ("<s>", "a"): (-0.9, -0.4),
    ("ab", "b"): (-0.5, -0.1),
    ("<s>", "a", "b"): (-1.5, 0),
    ("ab", "b", "a"): (-0.2, 0),
}
"""n-gram -> log10 of probability and back-off weight."""


def arpa(model):
    """The text of an ARPA file."""
    order = max(map(len, model))
    rows = {n: [(words, *values) for words, values in model.items() if len(words) == n] for n in range(1, order + 1)}
    text = "\\data\\\n" + "".join(f"ngram {n}={len(rows[n])}\n" for n in rows)
    for n, found in rows.items():
        lines = [f"{p}\t{' '.join(words)}" + (f"\t{b}" if n < order else "") for words, p, b in found]
        text += f"\n\\{n}-grams:\n" + "".join(f"{line}\n" for line in lines)
    return text + "\n\\end\\\n"


def collapsed(path):
    """The tokens of a path: repeats merged, blanks dropped."""
    return tuple(token for token, _ in itertools.groupby(path) if token)


@functools.cache
def readings(tokens):
    """All word sequences that tokens spell, each with its cost; words are separated by one boundary or more."""
    parts, inside = [], []
    for token in (*tokens, BOUNDARY):
        if token != BOUNDARY:
            inside.append(token)
        elif inside:
            parts.append(tuple(inside))
            inside = []
    options = [
        [(word, cost) for word, ways in PRONUNCIATIONS.items() for spelled, cost in ways if spelled == part]
        for part in parts
    ]
    chosen = itertools.product(*options)
    return [(tuple(word for word, _ in one), sum(cost for _, cost in one)) for one in chosen]


def exact(model, words):
    """Natural log of a model's probability of a sentence: the longest n-gram counts, as the ARPA format says."""
    order, history, total = max(map(len, model)), ("<s>",), 0.0
    for word in (*words, "</s>"):
        context, weight = history[-(order - 1) :] if order > 1 else (), 0.0
        while (*context, word) not in model:
            weight += model.get(context, (0, 0))[1]
            context = context[1:]
        total += weight + model[(*context, word)][0]
        history = (*history, word)
    return math.log(10) * total


def in_graph(model, words):
    """The same, but for the best way through a graph with back-off arcs, which are open where an n-gram exists, too."""
    order, sentence = max(map(len, model)), (*words, "</s>")

    @functools.cache
    def best(position, context):
        if position == len(sentence):
            return 0.0
        found, word = -INFINITE, sentence[position]
        if (*context, word) in model:
            after = (*context, word)
            while after and (len(after) == order or after not in model):
                after = after[1:]  # what can be a context
            found = model[(*context, word)][0] + best(position + 1, after)
        if context:
            found = max(found, model[context][1] + best(position, context[1:]))
        return found

    return math.log(10) * best(0, ("<s>",))


def hypotheses(log_probs, score):
    """Word sequence -> best score over all paths. ``score(words, cost)``: what words and pronunciations add."""
    found = {}
    added = functools.cache(score)
    for path in itertools.product(range(len(log_probs[0])), repeat=len(log_probs)):
        acoustic = sum(float(row[token]) for row, token in zip(log_probs, path))
        for words, cost in readings(collapsed(path)):
            total = acoustic + added(words, cost)
            if total > found.get(words, -INFINITE):
                found[words] = total
    return found


def ranked(found):
    """The hypotheses with their scores, the best first."""
    return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
