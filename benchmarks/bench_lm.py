"""N-gram language models: time and memory to estimate them from many words, and time of a query.

The text is made here: words by Zipf's law (rank r with a probability of about 1 / r), and each word again likely after
the words that it followed before, so that bigrams and trigrams repeat as in speech. Reports for each model
of the stage lm: n-grams, seconds and peak memory of the process; with --query also queries a second, of our own search
and of kenlm if it is installed.

    OMP_NUM_THREADS=1 python benchmarks/bench_lm.py [--words 10000000] [--order 3] [--prune 0 0 1] [--query]
"""

import argparse
import gzip
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lowrank_speech.artefact import read_cost, read_manifest
from lowrank_speech.lang.lm.query import Scorer
from lowrank_speech.stages import lang, lm

VOCABULARY = 200_000
SENTENCE = 12
"""Average number of words of a sentence."""
HABIT = 0.6
"""How often a word is drawn from the followers of the last one instead of from all words."""
FOLLOWERS = 20


def main() -> None:
    """Make the text, run the stage, print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=10_000_000)
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--prune", type=int, nargs="*", default=[])
    parser.add_argument("--query", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(Path(folder), arguments)
    print(json.dumps(result))


def measured(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """The stage's cost on a text of ``arguments.words`` words."""
    write_text(folder / "text.txt", arguments.words)
    cuts = folder / "train.jsonl.gz"
    cut = {"id": "a", "supervisions": [{"text": "abcdefghijklmnopqrstuvwxyz", "language": "en"}]}
    with gzip.open(cuts, "wt", encoding="utf-8") as file:
        file.write(json.dumps(cut) + "\n")
    made = ["--out", str(folder / "lang"), "--manifest", str(folder / "lang/lang.json"), "--cuts", str(cuts)]
    if lang.main(["--cfg", '{"seed": 1, "lang": {"kind": "char"}}', *made]):
        sys.exit("the stage lang failed")
    cfg = {"lm": {"order": arguments.order, "prune": arguments.prune, "text": [str(folder / "text.txt")]}}
    manifest = folder / "lm/lm.json"
    paths = ["--lang", str(folder / "lang"), "--out", str(folder / "lm"), "--manifest", str(manifest)]
    if lm.main(["--cfg", json.dumps(cfg), *paths]):
        sys.exit("the stage lm failed")
    cost, metrics = read_cost(manifest), read_manifest(manifest)["metrics"]
    result = {
        "words": metrics["words"],
        "vocabulary": metrics["vocabulary"],
        "order": metrics["order"],
        "prune": arguments.prune,
        "ngrams": metrics["ngrams"],
        "seconds": round(cost["seconds"], 1),
        "peak_gb": round(cost["peak_bytes"] / 1e9, 2),
        "arpa_mb": round((folder / "lm/lm.arpa").stat().st_size / 1e6),
        "machine": platform.processor() or platform.machine(),
    }
    return result | (queries(folder) if arguments.query else {})


def write_text(path: Path, words: int) -> None:
    """Write ``words`` words, one sentence per line."""
    rng = np.random.default_rng(1)
    names = [spelt(rank) for rank in range(VOCABULARY)]
    cumulative = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    cumulative /= cumulative[-1]

    def drawn(count: int) -> np.ndarray:
        return np.searchsorted(cumulative, rng.random(count)).clip(max=VOCABULARY - 1)

    followers = drawn(VOCABULARY * FOLLOWERS).reshape(VOCABULARY, FOLLOWERS)
    with path.open("w", encoding="utf-8") as file:
        done = 0
        while done < words:
            count = min(500_000, words - done)
            fresh, habit = drawn(count), rng.random(count) < HABIT
            choice = (FOLLOWERS * rng.random(count) ** 2).astype(int)
            ends = rng.random(count) < 1 / SENTENCE
            last, line = 0, []
            for i in range(count):
                last = followers[last, choice[i]] if habit[i] else fresh[i]
                line.append(names[last])
                if ends[i] or i == count - 1:
                    file.write(" ".join(line) + "\n")
                    line = []
            done += count


def spelt(rank: int) -> str:
    """A different word of small letters for each rank; frequent words are short."""
    letters = ""
    rank += 1
    while rank:
        rank, letter = divmod(rank - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return letters


def queries(folder: Path, count: int = 200_000) -> dict[str, float]:
    """Queries a second on the model's own text, with a search that forgets what it has looked up, and with kenlm."""
    from lowrank_speech.lang.lm.load import LanguageModel
    from lowrank_speech.lang.lm.query import has_kenlm

    model, sentences, words = LanguageModel.load(folder / "lm"), [], 0
    with (folder / "text.txt").open(encoding="utf-8") as file:
        for line in file:
            sentences.append(line.split())
            words += len(sentences[-1])
            if words >= count:
                break
    found = {}
    for name, kenlm in (("own", False), ("kenlm", True)):
        if kenlm and not has_kenlm():
            continue
        start = time.perf_counter()
        scorer: Scorer = model.scorer(kenlm)
        found[f"{name}_load_s"] = round(time.perf_counter() - start, 1)
        start = time.perf_counter()
        for sentence in sentences:
            state = scorer.start()
            for word in sentence:
                _, state = scorer.score(state, word)
        found[f"{name}_per_s"] = round(words / (time.perf_counter() - start))
    return found


if __name__ == "__main__":
    main()
