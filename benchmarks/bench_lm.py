"""N-gram language models: time and memory of the stage lm on many words, and speed of queries.

OMP_NUM_THREADS=1 python benchmarks/bench_lm.py                           # 10 million words, order 3
OMP_NUM_THREADS=1 python benchmarks/bench_lm.py --order 3 --prune 0 0 1 --query

The text is made here: words by Zipf's law (rank r with a probability of about 1 / r), and often one of those that the
word before prefers, so that bigrams and trigrams repeat as in real text. `seconds` is the time of the whole stage, from
reading the text to the ARPA file; `cpu seconds` are those of the processor, for busy machines; `peak GB` is the
resident memory of the process, which also made the text. With --query, queries a second on that text, by our own search
and by kenlm if it is installed; our own search remembers what it looked up.
"""

import gzip
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_speech.artefact import read_cost, read_manifest
from lowrank_speech.lang.lm.config import HIGHEST_ORDER
from lowrank_speech.lang.lm.load import LanguageModel
from lowrank_speech.lang.lm.query import has_kenlm
from lowrank_speech.stages import lang, lm
from timing import at_least, options, positive, run, show

VOCABULARY = 200_000
SENTENCE = 12
"""Average number of words of a sentence."""
HABIT = 0.6
"""How often a word is drawn from those that the word before prefers."""
PREFERRED = 20


def main() -> None:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--words", type=positive(int), default=10_000_000, help="default: 10 million")
    parser.add_argument("--order", type=int, choices=range(1, HIGHEST_ORDER + 1), default=3, help="default: 3")
    parser.add_argument("--prune", type=at_least(0, int), nargs="*", default=[], help="thresholds; default: none")
    parser.add_argument("--query", action="store_true", help="also measure queries")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        write_text(made / "text.txt", arguments.words)
        write_lang(made)
        rows = [measured(made, arguments.order, arguments.prune) for _ in range(arguments.rounds)]
        if arguments.query:
            rows[-1:] = [rows[-1] | queries(made)]
    show("lm", rows, arguments.json)


def write_lang(folder: Path) -> None:
    """A token set, whose normaliser the text goes through."""
    cut = {"id": "a", "supervisions": [{"text": "abcdefghijklmnopqrstuvwxyz", "language": "en"}]}
    with gzip.open(folder / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(cut) + "\n")
    paths = ["--out", str(folder / "lang"), "--manifest", str(folder / "lang/lang.json")]
    paths += ["--cuts", str(folder / "train.jsonl.gz"), "--log-level", "WARNING"]
    if code := lang.main(["--cfg", '{"seed": 1, "lang": {"kind": "char"}}', *paths]):
        sys.exit(code)


def measured(folder: Path, order: int, prune: list[int]) -> dict[str, Any]:
    """One run of the stage."""
    cfg = {"lm": {"order": order, "prune": prune, "text": [str(folder / "text.txt")]}}
    manifest = folder / "lm/lm.json"
    paths = ["--lang", str(folder / "lang"), "--out", str(folder / "lm"), "--manifest", str(manifest)]
    start = time.process_time()
    if code := lm.main(["--cfg", json.dumps(cfg), *paths, "--log-level", "WARNING"]):
        sys.exit(code)
    cpu = time.process_time() - start
    cost, metrics = read_cost(manifest), read_manifest(manifest)["metrics"]
    return {
        "words": metrics["words"],
        "order": metrics["order"],
        "prune": " ".join(map(str, prune)) or "-",
        "n-grams": " + ".join(map(str, metrics["ngrams"])),
        "seconds": round(cost["seconds"], 3),
        "cpu seconds": round(cpu, 3),
        "peak GB": round(cost["peak_bytes"] / 1e9, 2),
        "ARPA MB": round((folder / "lm/lm.arpa").stat().st_size / 1e6),
    }


def write_text(path: Path, words: int) -> None:
    """Write ``words`` words, one sentence per line."""
    rng = np.random.default_rng(1)
    names = [spelt(rank) for rank in range(VOCABULARY)]
    cumulative = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    cumulative /= cumulative[-1]

    def drawn(count: int) -> np.ndarray:
        return np.searchsorted(cumulative, rng.random(count)).clip(max=VOCABULARY - 1)

    followers = drawn(VOCABULARY * PREFERRED).reshape(VOCABULARY, PREFERRED)
    with path.open("w", encoding="utf-8") as file:
        done = 0
        while done < words:
            count = min(500_000, words - done)
            fresh, habit = drawn(count), rng.random(count) < HABIT
            choice = (PREFERRED * rng.random(count) ** 2).astype(int)
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


def queries(folder: Path, count: int = 200_000) -> dict[str, Any]:
    """CPU seconds to load the model, and queries a (CPU) second."""
    model, sentences, words = LanguageModel.load(folder / "lm"), [], 0
    with (folder / "text.txt").open(encoding="utf-8") as file:
        for line in file:
            sentences.append(line.split())
            words += len(sentences[-1])
            if words >= count:
                break
    found: dict[str, Any] = {}
    for name, kenlm in (("own", False), ("kenlm", True)):
        if kenlm and not has_kenlm():
            continue
        start = time.process_time()
        scorer = model.scorer(kenlm)
        loaded = time.process_time()
        for sentence in sentences:
            state = scorer.start()
            for word in sentence:
                _, state = scorer.score(state, word)
        spent = time.process_time() - loaded
        found |= {f"{name}: load s": round(loaded - start, 1), f"{name}: queries/s": round(words / spent)}
    return found


if __name__ == "__main__":
    run(main)
