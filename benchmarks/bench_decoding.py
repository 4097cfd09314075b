"""Speed and accuracy of the decoders of CTC emissions, with the same n-gram and beam as other libraries.

python benchmarks/bench_decoding.py                          # flashlight-text is installed with the project
pip install pyctcdecode kenlm                                # optional, in an environment of its own
python benchmarks/bench_decoding.py --words 5000 --beam 100

The emissions are random, but behave like those of a trained CTC model: sentences of a random language, spelled in 29
characters, sharp frames, mostly blank, and confusions of letters. The n-gram is estimated on other sentences of that
language. Every decoder gets the same arrays, works in one thread and takes turns with the others, after one warm-up
round. Seconds of speech per second of CPU time are medians over the rounds; WER counts against the sentences.

beam: with the settings of the library beside it where it has them (``--beam``, ``--threshold``; pyctcdecode also drops
symbols below -5 and beams 10 below the best, by its defaults). flashlight's lexicon search allows only words of the
n-gram, so it is compared with ``vocabulary: closed``. pyctcdecode allows any word.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import timing
from lowrank_speech.decoding.ctc import beam
from lowrank_speech.decoding.ctc.paths import collapse
from lowrank_speech.lang.lm import arpa
from lowrank_speech.lang.lm.estimate import Corpus, estimate
from lowrank_speech.lang.lm.query import OwnScorer
from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
from lowrank_speech.lang.tokens import BLANK, BOUNDARY, UNK, CharTokens
from lowrank_speech.scoring import asr

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FRAME = 0.02
SETTINGS_OF_PYCTCDECODE = {"token_min_logp": -5.0, "beam_prune_logp": -10.0}


class Language:
    """A random language: ``words`` words in a first-order chain with few successors each."""

    def __init__(self, words: int, rng: np.random.Generator):
        made: dict[str, None] = {}
        while len(made) < words:
            made["".join(rng.choice(list(LETTERS), int(rng.integers(2, 9))))] = None
        self.words, self._rng = list(made), rng
        self._after = rng.integers(0, words, (words, 20))

    def sentence(self, length: int) -> list[str]:
        at, found = int(self._rng.integers(len(self.words))), []
        for _ in range(length):
            found.append(self.words[at])
            rare = self._rng.random() < 0.1
            at = int(self._rng.integers(len(self.words)) if rare else self._rng.choice(self._after[at]))
        return found


def emissions(ids: list[int], symbols: int, rng: np.random.Generator) -> np.ndarray:
    """Natural-log probabilities (F, V): each token is a spike of one or two frames among blanks, sometimes wrong."""
    rows = []
    for token in ids:
        for _ in range(int(rng.integers(1, 5))):
            rows.append((0, rng.uniform(5, 10)))
        heard = token if rng.random() > 0.12 else int(rng.integers(2, symbols))
        rows += [(heard, rng.uniform(2, 8))] * int(rng.integers(1, 3))
    rows.append((0, 8.0))
    logits = rng.normal(0, 1.0, (len(rows), symbols))
    for frame, (symbol, height) in enumerate(rows):
        logits[frame, symbol] += height
        logits[frame, 0] += 2.0
    # What is not heard is often the second guess.
    at = 0
    for frame, (symbol, _) in enumerate(rows):
        if symbol:
            at = min(at, len(ids) - 1)
            logits[frame, ids[at]] += 3.0
            if frame + 1 == len(rows) or not rows[frame + 1][0]:
                at += 1
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return logits.astype(np.float32)


class Model:
    """The n-gram, as ``lang.lm.load.LanguageModel``."""

    def __init__(self, ngrams: Any, path: Path, unit: str, vocabulary: list[str]):
        self._ngrams, self.path, self.unit, self.vocabulary = ngrams, path, unit, vocabulary

    def check_lang(self, lang: Any, where: str) -> None:
        """Any token set: the model is made with it."""

    def scorer(self) -> OwnScorer:
        return OwnScorer(self._ngrams)


def model_of(sentences: list[list[str]], order: int, path: Path, unit: str) -> Model:
    corpus = Corpus()
    for sentence in sentences:
        corpus.add(sentence)
    ngrams, _ = estimate(corpus, order)
    arpa.write(ngrams, path)
    return Model(ngrams, path, unit, sorted({word for sentence in sentences for word in sentence}))


class Data:
    """Utterances with their emissions, a token set, and n-grams of words and of tokens."""

    def __init__(self, arguments: Any, folder: Path):
        rng = np.random.default_rng(1)
        self.tokens = CharTokens([BLANK, UNK, BOUNDARY, *LETTERS])
        normalise = Normaliser(NormaliseConfig())
        self.lang = SimpleNamespace(kind="char", tokens=self.tokens, sha256="t", normalise=normalise)
        language = Language(arguments.words, rng)
        pairs = []
        for _ in range(arguments.utterances):
            sentence = language.sentence(int(rng.integers(6, 25)))
            pairs.append((sentence, emissions(self.tokens.encode(" ".join(sentence)), self.tokens.size, rng)))
        pairs.sort(key=lambda pair: -len(pair[1]))  # as the stage decode orders them
        self.truth, self.rows = [sentence for sentence, _ in pairs], [row for _, row in pairs]
        text = [language.sentence(int(rng.integers(6, 25))) for _ in range(20 * arguments.words)]
        self.word_model = model_of(text, arguments.order, folder / "words.arpa", "word")
        spelled = [[str(i) for i in self.tokens.encode(" ".join(sentence))] for sentence in text[:20_000]]
        self.token_model = model_of(spelled, 5, folder / "tokens.arpa", "token")
        self.seconds = FRAME * sum(map(len, self.rows))

    def errors(self, texts: list[str]) -> float:
        counts = [asr.count(ref, hyp.split()) for ref, hyp in zip(self.truth, texts, strict=True)]
        return sum(sum(wrong) for _, *wrong in counts) / sum(n for n, *_ in counts)


Decoder = Callable[[], list[str]]


def greedy(data: Data) -> Decoder:
    """The best path."""
    return lambda: [data.tokens.decode(collapse(torch.from_numpy(row).argmax(-1))) for row in data.rows]


def ours(data: Data, arguments: Any, model: Model | None = None, **keys: Any) -> Decoder:
    """The decoder beam in batches, with word times."""
    given = {"beam": arguments.beam, "beam_threshold": arguments.threshold, "lm_weight": arguments.lm_weight, **keys}
    settings = beam.Settings(**given | ({} if model is None else {"lm": model.unit}))
    source = SimpleNamespace(lang_sha256="t", folder="", resources={} if model is None else {"lm": model})
    decode = beam.open(source, data.lang, settings)
    batches, size = [], arguments.batch
    for start in range(0, len(data.rows), size):
        rows = [torch.from_numpy(row) for row in data.rows[start : start + size]]
        batches.append(
            {
                "log_probs": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
                "frames": torch.tensor([len(row) for row in rows]),
                "frame_seconds": [FRAME] * len(rows),
            }
        )
    return lambda: [hypothesis.text for batch in batches for hypothesis in decode(batch)]


def flashlight(data: Data, arguments: Any, model: Model | None = None) -> Decoder:
    """flashlight-text without a lexicon (no n-gram, or one of tokens), or with one (an n-gram of words)."""
    from flashlight.lib.text import decoder, dictionary

    symbols = data.tokens.symbols
    shared = {
        "beam_size": arguments.beam,
        "beam_size_token": len(symbols),
        "beam_threshold": arguments.threshold,
        "lm_weight": arguments.lm_weight * float(np.log(10)) if model else 0.0,  # KenLM has log10
        "sil_score": 0.0,
        "log_add": True,
        "criterion_type": decoder.CriterionType.CTC,
    }
    blank, boundary = 0, data.tokens.ids[BOUNDARY]
    if model is not None and model.unit == "word":
        from flashlight.lib.text.decoder.kenlm import KenLM

        words = dictionary.Dictionary()
        for word in [*model.vocabulary, "<unk>"]:
            words.add_entry(word)
        words.set_default_index(words.get_index("<unk>"))
        lm = KenLM(str(model.path), words)
        trie, start = decoder.Trie(len(symbols), boundary), lm.start(False)
        for word in model.vocabulary:
            number = words.get_index(word)
            _, score = lm.score(start, number)
            trie.insert([*data.tokens.encode(word), boundary], number, score)
        trie.smear(decoder.SmearingMode.MAX)
        options = decoder.LexiconDecoderOptions(**shared, word_score=0.0, unk_score=-np.inf)
        unknown = words.get_index("<unk>")
        search = decoder.LexiconDecoder(options, trie, lm, boundary, blank, unknown, [], False)

        def text(result: Any) -> str:
            return " ".join(words.get_entry(i) for i in result.words if i >= 0)
    else:
        lm = decoder.ZeroLM()
        if model is not None:
            from flashlight.lib.text.decoder.kenlm import KenLM

            numbers = dictionary.Dictionary()
            for number in range(len(symbols)):
                numbers.add_entry("<unk>" if number == 1 else str(number))
            numbers.set_default_index(1)
            lm = KenLM(str(model.path), numbers)
        search = decoder.LexiconFreeDecoder(decoder.LexiconFreeDecoderOptions(**shared), lm, -1, blank, [])

        def text(result: Any) -> str:
            labels = [symbol for symbol, _ in itertools.groupby(result.tokens) if symbol > 0]
            return data.tokens.decode(labels)

    def decode() -> list[str]:
        found, _ = [], lm  # keeps it alive: the C++ decoder holds no reference
        for row in data.rows:
            results = search.decode(row.ctypes.data, *row.shape)
            found.append(text(results[0]) if results else "")
        return found

    return decode


def pyctcdecode(data: Data, arguments: Any, model: Model | None = None) -> Decoder:
    """pyctcdecode, with its defaults for pruning."""
    import logging

    from pyctcdecode import build_ctcdecoder

    logging.getLogger("pyctcdecode").setLevel(logging.ERROR)
    labels = ["", "\u2047", " ", *LETTERS]
    words = {} if model is None else {"kenlm_model_path": str(model.path), "unigrams": model.vocabulary}
    search = build_ctcdecoder(labels, **words, alpha=arguments.lm_weight, beta=0.0)
    return lambda: [search.decode(row, beam_width=arguments.beam, **SETTINGS_OF_PYCTCDECODE) for row in data.rows]


def decoders(data: Data, arguments: Any) -> dict[str, Callable[[], Decoder]]:
    """Name -> what makes the decoder; one whose package is missing raises ImportError."""
    words, tokens = data.word_model, data.token_model
    return {
        "greedy": lambda: greedy(data),
        "beam 1": lambda: ours(data, arguments, beam=1),
        "beam": lambda: ours(data, arguments),
        "flashlight": lambda: flashlight(data, arguments),
        "pyctcdecode": lambda: pyctcdecode(data, arguments),
        "beam, tokens": lambda: ours(data, arguments, tokens),
        "flashlight, tokens": lambda: flashlight(data, arguments, tokens),
        "beam, words": lambda: ours(data, arguments, words),
        "pyctcdecode, words": lambda: pyctcdecode(data, arguments, words),
        "beam, closed words": lambda: ours(data, arguments, words, vocabulary="closed"),
        "flashlight, lexicon": lambda: flashlight(data, arguments, words),
        "beam, words and hot words": lambda: ours(data, arguments, words, hotwords=tuple(words.vocabulary[:50])),
    }


def main() -> None:
    parser = timing.options(__doc__, 3)
    for name, default, what in (
        ("utterances", 48, "number of utterances"),
        ("batch", 16, "utterances in a batch of our decoder"),
        ("words", 3000, "words of the language"),
        ("order", 3, "order of the n-gram of words"),
        ("beam", 100, "states that are kept after each frame"),
    ):
        parser.add_argument(f"--{name}", type=timing.positive(int), default=default, help=f"{what}; default: {default}")
    parser.add_argument("--threshold", type=timing.positive(float), default=25.0, help="beam threshold; default: 25")
    parser.add_argument("--lm-weight", type=timing.positive(float), default=0.5, help="default: 0.5")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = Data(arguments, Path(folder))
        works: dict[str, Decoder] = {}
        for name, make in decoders(data, arguments).items():
            try:
                works[name] = make()
            except ImportError as error:
                print(f"{name}: left out: {error}")
        times: dict[str, list[float]] = {name: [] for name in works}
        for _, (name, work) in itertools.product(range(arguments.rounds + 1), works.items()):
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
        rows = [
            {
                "decoder": name,
                "speech s / s": round(data.seconds / statistics.median(times[name][1:])),
                "WER %": round(100 * data.errors(work()), 2),
            }
            for name, work in works.items()
        ]
    what = (
        f"{len(data.rows)} utterances, {data.seconds:.0f} s, beam {arguments.beam}, threshold {arguments.threshold:g}"
    )
    timing.show(f"decoding: {what}", rows, arguments.json)


if __name__ == "__main__":
    timing.run(main)
