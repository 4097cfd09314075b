"""The estimator against lmplz's own models, brute force, and the definition of a probability.

LMPLZ is what lmplz of KenLM (commit 4cb443e, order 3, --discount_fallback) made of TEXT: a model without pruning, and
one with --prune 0 0 1.
"""

import math
import random
from collections import Counter

import numpy as np
import pytest

from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm import arpa
from lowrank_speech.lang.lm.config import thresholds
from lowrank_speech.lang.lm.estimate import FALLBACK, Corpus, _levels, estimate
from lowrank_speech.lang.lm.query import OwnScorer

TEXT = """
the cat sat on the mat
the dog sat on the log
a cat and a dog
the cat saw the dog
the dog saw the cat and the mat

a dog sat
the mat
on the log the cat sat
the cat sat on the mat and the dog sat on the log
""".strip()

LMPLZ = {
    (): r"""
\data\
ngram 1=13
ngram 2=26
ngram 3=37

\1-grams:
-1.4527619	<unk>	0
0	<s>	-0.2666021
-0.7698787	</s>	0
-0.7698787	the	-0.028028725
-1.1324267	cat	-0.21959269
-1.1324267	sat	-0.08026834
-1.1324267	on	-0.08026834
-1.2637056	mat	-0.42596874
-1.1324267	dog	-0.13076828
-1.2637056	log	-0.42596874
-1.1324267	a	-0.16802368
-1.1324267	and	-0.16802368
-1.1324267	saw	-0.08026834

\2-grams:
-0.81123143	<s> </s>	0
-0.64669764	sat </s>	0
-0.424579	mat </s>	0
-0.71398133	dog </s>	0
-0.424579	log </s>	0
-0.40677696	<s> the	-0.21805577
-0.5087001	on the	-0.2295356
-0.424579	log the	-0.16481024
-0.6423105	and the	-0.16481024
-0.5087001	saw the	-0.16481024
-1.1604555	the cat	-0.13262556
-0.58770734	a cat	-0.16481024
-0.6974285	cat sat	-0.35793483
-0.91345763	dog sat	-0.35793483
-0.98970073	<s> on	-0.16481024
-0.8366804	sat on	-0.23736092
-1.2917343	the mat	-0.12493875
-1.1604555	the dog	-0.30103
-0.7889682	a dog	-0.16481024
-0.94469154	the log	-0.35793483
-1.1328282	<s> a	-0.16481024
-0.58770734	and a	-0.16481024
-0.8899623	cat and	-0.16481024
-0.4683369	mat and	-0.16481024
-0.6974285	cat saw	-0.16481024
-0.74581146	dog saw	-0.16481024

\3-grams:
-0.6899397	cat sat </s>
-0.6899397	dog sat </s>
-0.3437062	the mat </s>
-0.7555994	the dog </s>
-0.5374707	a dog </s>
-0.20680967	the log </s>
-0.2774775	<s> on the
-0.2214864	sat on the
-0.5682118	the log the
-0.50333786	cat and the
-0.32633284	mat and the
-0.2774775	cat saw the
-0.2774775	dog saw the
-0.8072509	<s> the cat
-0.4400029	log the cat
-0.68786305	saw the cat
-0.47535104	<s> a cat
-0.5455599	the cat sat
-0.3945539	the dog sat
-0.6172564	a dog sat
-0.2839772	cat sat on
-0.2839772	dog sat on
-1.0780563	<s> the mat
-0.5174186	on the mat
-0.71479076	and the mat
-0.56879675	<s> the dog
-0.68786305	and the dog
-0.68786305	saw the dog
-0.57004654	<s> a dog
-0.36955243	and a dog
-0.6908053	on the log
-0.47535104	cat and a
-0.8010962	the cat and
-0.3936826	a cat and
-0.47618133	the mat and
-0.675614	the cat saw
-0.77282566	the dog saw

\end\
""",
    (0, 0, 1): r"""
\data\
ngram 1=13
ngram 2=26
ngram 3=11

\1-grams:
-1.4527619	<unk>	0
0	<s>	-0.2666021
-0.7698787	</s>	0
-0.7698787	the	-0.028028725
-1.1324267	cat	-0.21959269
-1.1324267	sat	-0.08026834
-1.1324267	on	-0.08026834
-1.2637056	mat	-0.42596874
-1.1324267	dog	-0.13076828
-1.2637056	log	-0.42596874
-1.1324267	a	-0.16802368
-1.1324267	and	-0.16802368
-1.1324267	saw	-0.08026834

\2-grams:
-0.81123143	<s> </s>	0
-0.64669764	sat </s>	0
-0.424579	mat </s>	0
-0.71398133	dog </s>	0
-0.424579	log </s>	0
-0.40677696	<s> the	-0.1818436
-0.5087001	on the	-0.2295356
-0.424579	log the	0
-0.6423105	and the	0
-0.5087001	saw the	0
-1.1604555	the cat	-0.06390976
-0.58770734	a cat	0
-0.6974285	cat sat	-0.26451316
-0.91345763	dog sat	-0.26451316
-0.98970073	<s> on	0
-0.8366804	sat on	-0.23736092
-1.2917343	the mat	-0.081473045
-1.1604555	the dog	-0.1818436
-0.7889682	a dog	0
-0.94469154	the log	-0.26451316
-1.1328282	<s> a	0
-0.58770734	and a	0
-0.8899623	cat and	0
-0.4683369	mat and	0
-0.6974285	cat saw	0
-0.74581146	dog saw	0

\3-grams:
-0.31613898	the mat </s>
-0.17996846	the log </s>
-0.2214864	sat on the
-0.7972323	<s> the cat
-0.5085157	the cat sat
-0.37427387	the dog sat
-0.27135798	cat sat on
-0.27135798	dog sat on
-0.5174186	on the mat
-0.5629829	<s> the dog
-0.6908053	on the log

\end\
""",
}


def corpus_of(sentences):
    corpus = Corpus()
    for sentence in sentences:
        corpus.add(sentence)
    return corpus


def ngrams(model):
    """N-gram as a tuple of words -> log10 probability and back-off weight."""
    found = {}
    for n in range(1, model.order + 1):
        nodes = np.arange(model.starts[n], model.starts[n + 1])
        rows = zip(*(column.tolist() for column in model.columns(nodes, n)), strict=True)
        for node, row in zip(nodes.tolist(), rows, strict=True):
            found[tuple(model.words[i] for i in row)] = model.prob[node], model.backoff[node]
    return found


def random_text(seed, words=8, sentences=60):
    rng = random.Random(seed)
    names = [f"w{i}" for i in range(words)]
    weights = [1 / (i + 1) for i in range(words)]
    return [rng.choices(names, weights, k=rng.randint(0, 8)) for _ in range(sentences)]


# -- KenLM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prune", LMPLZ)
def test_equals_lmplz(prune, tmp_path):
    path = tmp_path / "lmplz.arpa"
    path.write_text(LMPLZ[prune].lstrip(), encoding="utf-8")
    expected = ngrams(arpa.read(path))
    model, facts = estimate(corpus_of(line.split() for line in TEXT.split("\n")), 3, prune)
    assert ngrams(model) == {gram: pytest.approx(values, abs=2e-6) for gram, values in expected.items()}
    # What lmplz printed: `Statistics`.
    assert facts["counted"] == [11, 26, 37] and facts["fallback"] == [1]
    assert facts["discounts"][1] == pytest.approx([0.375, 1.6625, 3])
    assert facts["discounts"][2] == pytest.approx([0.684211, 0.631579, 2.31579], abs=1e-5)


def test_counts_of_the_example_in_kenlm():
    """lm/builder/corpus_count_test.cc; there, the counts of n-grams after one <s> stand under <s> <s>."""
    text = ["looking on a little more loin", "on a little more loin", "on foo little more loin", "bar", ""]
    expected = {
        "<s> looking": 1, "<s> looking on": 1, "looking on a": 1, "on a little": 2, "a little more": 2,
        "little more loin": 3, "more loin </s>": 3, "<s> on": 2, "<s> on a": 1, "<s> on foo": 1, "on foo little": 1,
        "foo little more": 1, "<s> bar": 1, "<s> bar </s>": 1, "<s> </s>": 1,
    }  # fmt: skip
    words, ids = corpus_of(line.split() for line in text).arrays()
    _, two, three = _levels(ids, len(words), 3)
    pairs = [(words[context], words[word]) for context, word in zip(two.context, two.word, strict=True)]
    found = {" ".join(pair): n for pair, n in zip(pairs, two.raw, strict=True) if pair[0] == "<s>"}
    triples = zip(three.context, three.word, three.raw, strict=True)
    found |= {" ".join((*pairs[context], words[word])): n for context, word, n in triples}
    assert found == expected


# -- brute force -------------------------------------------------------------------------------------------------------


def brute_force(sentences, order, prune):
    """n-gram -> (probability, back-off weight), from the equations in dictionaries."""
    padded = [["<s>", *sentence, "</s>"] for sentence in sentences]
    raw = [Counter(tuple(s[i : i + n]) for s in padded for i in range(len(s) - n + 1)) for n in range(1, order + 1)]
    raw[0] = Counter({word: n for word, n in raw[0].items() if word != ("<s>",)})
    counts = []
    for n in range(order):
        counts.append(raw[n] if n == order - 1 else Counter(gram[1:] for gram in raw[n + 1]))
        if n < order - 1:
            counts[n] = Counter({gram: raw[n][gram] if gram[0] == "<s>" else c for gram, c in counts[n].items()})
            counts[n].update({gram: c for gram, c in raw[n].items() if gram[0] == "<s>" and gram not in counts[n]})
    kept = [{gram for gram, c in raw[n].items() if c > prune[n] or gram == ("</s>",)} for n in range(order)]
    vocabulary = [*(word for (word,) in sorted(kept[0])), "<unk>"]
    result = {("<unk>",): 0, ("<s>",): 1}
    lower, weights = {(): 1 / len(vocabulary)}, {}
    for n in range(order):
        number = Counter(min(c, 4) if c <= 4 else 0 for c in counts[n].values())
        discount = list(FALLBACK)
        if number[1] and number[2] and number[3]:
            y = number[1] / (number[1] + 2 * number[2])
            closed = [k - (k + 1) * y * number[k + 1] / number[k] for k in (1, 2, 3)]
            discount = closed if all(0 < d <= k for k, d in enumerate(closed, start=1)) else discount
        contexts = {}
        for gram, c in counts[n].items():
            contexts.setdefault(gram[:-1], []).append((gram, c))
        now = {}
        for context, grams in contexts.items():
            total = sum(c for _, c in grams)
            free = sum(discount[min(c, 3) - 1] if gram in kept[n] else c for gram, c in grams)
            weights[context] = free / total
            for gram, c in grams:
                if gram in kept[n]:
                    below = lower[gram[1:]] if n else lower[()]
                    now[gram] = (c - discount[min(c, 3) - 1]) / total + free / total * below
        if n == 0:
            now["<unk>",] = weights[()] / len(vocabulary)
        lower = now
        result |= now
    return {gram: (p, weights.get(gram, 1.0) if len(gram) < order else 1.0) for gram, p in result.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("order", "prune"),
    [(1, [0]), (2, [0, 0]), (3, [0, 0, 0]), (3, [0, 0, 1]), (3, [0, 1, 2]), (4, [1, 1, 2, 2]), (6, [0] * 6)],
)
def test_equals_brute_force(seed, order, prune):
    sentences = random_text(seed, words=6 + 10 * seed)
    model, _ = estimate(corpus_of(sentences), order, prune)
    expected = brute_force(sentences, order, prune)
    assert ngrams(model) == {g: pytest.approx((math.log10(p), math.log10(b))) for g, (p, b) in expected.items()}


# -- probabilities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prune", [(), (0, 0, 1), (0, 2), (1, 1, 2)])
@pytest.mark.parametrize("order", [3, 4, 6])
def test_sums_to_one_after_every_history(order, prune):
    """Over all words with </s> and <unk>; the histories are all states that a query can reach."""
    sentences = [*random_text(7, words=12), ["<unk>", "w1"], ["w1", "<unk>", "w2"]]
    scorer = OwnScorer(estimate(corpus_of(sentences), order, prune)[0])
    model, _ = estimate(corpus_of(sentences), order, prune)
    words = [word for word in model.words if word != "<s>"]
    states = {scorer.start(), scorer.empty()}
    waiting = list(states)
    while waiting:
        state = waiting.pop()
        scores, following = zip(*(scorer.score(state, word) for word in words), strict=True)
        assert sum(10**score for score in scores) == pytest.approx(1, abs=1e-9)
        waiting += set(following) - states
        states |= set(following)
    assert len(states) > 10


def test_an_unknown_word_in_the_text_counts_like_a_word():
    rare = corpus_of([["a", "b"]] * 3)
    often = corpus_of([["a", "b"], ["a", "<unk>"], ["<unk>", "b"]])
    unknown = [OwnScorer(estimate(corpus, 2)[0]).score(0, "zzz")[0] for corpus in (rare, often)]
    assert unknown[0] < unknown[1]


def test_equal_text_in_any_order_gives_the_same_model():
    sentences = random_text(3)
    models = [estimate(corpus_of(s), 3)[0] for s in (sentences, sentences[::-1])]
    for name in ("key", "prob", "backoff"):
        assert np.array_equal(*(getattr(model, name) for model in models))
    corpus = Corpus()
    for sentence, times in Counter(map(tuple, sentences)).items():
        corpus.add(sentence, times)
    assert np.array_equal(estimate(corpus, 3)[0].prob, models[0].prob)


# -- small texts and bad input -----------------------------------------------------------------------------------------


def test_discounts_that_cannot_be_computed_are_named():
    model, facts = estimate(corpus_of([["a"]]), 3)
    assert facts["fallback"] == [1, 2, 3] and set(map(tuple, facts["discounts"])) == {FALLBACK}
    assert model.order == 3


def test_orders_without_ngrams_are_left_out():
    model, facts = estimate(corpus_of([["a"], ["a"], ["b"]]), 6)
    assert model.order == 3 and facts["ngrams"] == [5, 4, 2, 0, 0, 0]
    model, _ = estimate(corpus_of([["a", "b"], ["a", "c"]]), 3, (0, 0, 5))
    assert model.order == 2
    assert sum(10 ** OwnScorer(model).score(0, word)[0] for word in ("a", "b", "c", "</s>", "<unk>")) == pytest.approx(
        1
    )


def test_refused():
    with pytest.raises(UserError, match="order is 7; it must be from 1 to 6"):
        estimate(corpus_of([["a"]]), 7)
    with pytest.raises(UserError, match="no sentence"):
        estimate(Corpus(), 2)
    with pytest.raises(UserError, match="contains the word <s>"):
        corpus_of([["a", "<s>"]])
    with pytest.raises(ValueError, match="has 3 thresholds, but order is 2"):
        thresholds(2, (0, 1, 1))
    with pytest.raises(ValueError, match="decreases from 2 to 1"):
        thresholds(3, (0, 2, 1))
    assert thresholds(4, (0, 1)) == [0, 1, 1, 1] and thresholds(2, ()) == [0, 0]
