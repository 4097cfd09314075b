r"""Read, write and check back-off models in the ARPA format, as text or gzip.

    \data\
    ngram 1=4
    ngram 2=3

    \1-grams:
    -0.60206	<unk>
    0	<s>	-0.30103
    ...
    \2-grams:
    -0.1	<s>	a
    ...
    \end\

Each line has the log10 probability, the words, and the log10 back-off weight (0 if it is missing). Reading refuses what
would give wrong scores later, with file and line: a truncated file, wrong counts or orders, numbers that are not
probabilities, words without a unigram, n-grams without their context. KenLM refuses these, too.

Source: the manual page ngram-format(5) of SRILM; lm/read_arpa.cc of KenLM.
"""

import gzip
import math
import re
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from lowrank_speech.artefact import atomic
from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm.ngrams import BOS, EOS, UNK, NGrams, find

CHUNK = 100_000
"""N-grams that are written at once."""
HIGHEST = 12
"""The highest order that is plausible in a header."""
TAIL = 1000
"""Bytes at the end of a file in which \\end\\ must be."""
TRUNCATED = "the file ends before \\end\\, so it is truncated; copy or make it again"


def write(model: NGrams, path: str | Path) -> None:
    """Write ``model`` as text, atomically; seven significant digits, which is the precision of KenLM's numbers."""
    names = np.array(model.words, dtype=object)
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\\data\\\n" + "".join(f"ngram {n}={count}\n" for n, count in enumerate(model.counts, start=1)))
        for n in range(1, model.order + 1):
            file.write(f"\n\\{n}-grams:\n")
            for start in range(model.starts[n], model.starts[n + 1], CHUNK):
                nodes = np.arange(start, min(start + CHUNK, model.starts[n + 1]))
                first, *others = model.columns(nodes, n)
                texts = names[first]
                for column in others:
                    texts = texts + " " + names[column]
                probs, backoffs = model.prob[nodes].tolist(), model.backoff[nodes].tolist()
                rows = zip(probs, texts, backoffs, strict=True)
                if n < model.order:
                    file.writelines(f"{p:.7g}\t{text}\t{b:.7g}\n" for p, text, b in rows)
                else:
                    file.writelines(f"{p:.7g}\t{text}\n" for p, text, _ in rows)
        file.write("\n\\end\\\n")


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed, by its first bytes."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def read(path: str | Path) -> NGrams:
    """Read and check a model. UserError: the file is not a valid ARPA file; the message has the line."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give an ARPA file")
    with gzip.open(path, "rb") if is_gzip(path) else path.open("rb") as file:
        return _Reader(path, file).read()


def counts(path: Path) -> list[int]:
    """The number of n-grams of each order, by the header. UserError: it is no ARPA file, or plainly truncated."""
    packed = is_gzip(path)
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        found, _ = _Reader(path, file).header()
        if not packed:  # the end of a compressed file is found only by reading all of it
            file.seek(max(0, path.stat().st_size - TAIL))
            if b"\\end\\" not in file.read():
                raise UserError(f"{path}: {TRUNCATED}")
    return found


class _Reader:
    """Reads one file; ``number`` is the current line, for messages."""

    def __init__(self, path: Path, file: IO[bytes]):
        self._path, self._file, self._number = path, file, 0
        self._lines = self._read_lines()

    def _read_lines(self) -> Iterator[str]:
        try:
            for line in self._file:
                self._number += 1
                yield line.decode("utf-8").strip(" \t\r\n")
        except UnicodeDecodeError as error:
            raise self._wrong(f"byte {error.start + 1} of the line is not UTF-8; convert the file") from error
        except (EOFError, zlib.error) as error:
            raise self._wrong("the compressed file is truncated or damaged; copy or make it again") from error
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {error}") from error

    def _wrong(self, said: str) -> UserError:
        return UserError(f"{self._path}, line {self._number}: {said}")

    def _next(self) -> str:
        """The next line that is not empty."""
        for line in self._lines:
            if line:
                return line
        raise self._wrong(TRUNCATED)

    def read(self) -> NGrams:
        counts, heading = self.header()
        order = len(counts)
        words: dict[str, int] = {}
        keys, probs, backoffs = [np.array([-1], dtype=np.int64)], [np.zeros(1)], [np.zeros(1)]
        starts = [0, 1]
        for n, count in enumerate(counts, start=1):
            if heading != f"\\{n}-grams:":
                raise self._wrong(f"expected \\{n}-grams:, found {_shown(heading)}")
            first = self._number + 1
            columns, prob, backoff = self._section(n, count, order, words)
            context = np.zeros(count, dtype=np.int64)
            for m, column in enumerate(columns[:-1], start=1):
                # The keys of one order, with the node that the first of them has.
                found = find(keys[m], context * len(words) + column)
                self._all(
                    found >= 0,
                    first,
                    n,
                    lambda m=m: (
                        f"has the context of its first {m} words, which is not in "
                        f"the file as a {m}-gram; make the model again with all contexts"
                    ),
                )
                context = found + starts[m]
            key = context * len(words) + columns[-1]
            rank = np.argsort(key, kind="stable")
            key = key[rank]
            again = np.ones(count, dtype=bool)
            again[rank[1:]] = np.diff(key) != 0
            self._all(again, first, n, lambda: "occurs twice; remove one")
            keys.append(key)
            probs.append(prob[rank])
            backoffs.append(backoff[rank])
            starts.append(starts[-1] + count)
            heading = self._next()
        if heading != "\\end\\":
            raise self._wrong(f"expected \\end\\, found {_shown(heading)}")
        for word in (BOS, EOS):
            if word not in words:
                raise UserError(f"{self._path}: \\1-grams: lacks {word}; make the model with the ends of sentences")
        if "<UNK>" in words and UNK not in words:
            words = {UNK if word == "<UNK>" else word: i for word, i in words.items()}
        arrays = [np.concatenate(part) for part in (keys, probs, backoffs)]
        return NGrams(tuple(words), order, tuple(starts), *arrays)

    def header(self) -> tuple[list[int], str]:
        """The announced counts, and the heading of the first section."""
        line = ""
        for line in self._lines:
            if line and not line.startswith("#"):
                break
        if line != "\\data\\":
            raise self._wrong(f"expected \\data\\, found {_shown(line)}; this is not an ARPA file")
        counts: list[int] = []
        while not (line := self._next()).startswith("\\"):
            found = re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line)
            if found is None:
                raise self._wrong(f"expected `ngram N=count`, found {_shown(line)}")
            if int(found[1]) != len(counts) + 1:
                raise self._wrong(f"expected the count of {len(counts) + 1}-grams, found {_shown(line)}")
            counts.append(int(found[2]))
        if not counts or len(counts) > HIGHEST:
            raise self._wrong(f"the header has {len(counts)} orders; expected 1 to {HIGHEST}")
        return counts, line

    def _section(
        self, n: int, count: int, order: int, words: dict[str, int]
    ) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Word ids (an array for each position), probabilities and weights of the n-grams of order ``n``."""
        columns, probs, backoffs = [array("q") for _ in range(n)], array("d"), array("d")
        for done in range(count):
            line = next(self._lines, None)
            if line is None:
                raise self._wrong(TRUNCATED)
            fields = line.replace("\t", " ").split(" ")
            if "" in fields:
                fields = [field for field in fields if field]
            if not fields or line.startswith("\\"):
                raise self._wrong(f"\\{n}-grams: ends after {done} lines, but the header says {count}")
            if not n < len(fields) <= n + 1 + (n < order):
                said = f"expected a log probability, {n} words{' and a weight' * (n < order)}, found {line!r}"
                error = self._wrong(said)
                raise error if any(self._lines) else self._wrong(TRUNCATED)
            probs.append(self._probability(fields[0]))
            backoffs.append(self._number_of(fields[n + 1], "back-off weight") if len(fields) > n + 1 else 0.0)
            if n == 1:
                if fields[1] in words:
                    raise self._wrong(f"the word {fields[1]!r} occurs twice; remove one")
                words[fields[1]] = len(words)
            try:
                for column, word in zip(columns, fields[1:], strict=False):
                    column.append(words[word])
            except KeyError:
                raise self._wrong(f"the word {word!r} has no unigram; add it to \\1-grams:") from None
        line = next(self._lines, None)
        if line is None:
            raise self._wrong(TRUNCATED)
        if line.strip() and not line.startswith("\\"):
            raise self._wrong(f"\\{n}-grams: has more lines than the {count} that the header says")
        if line:  # a heading that follows without an empty line
            self._lines = _chained(line, self._lines)
        return [np.frombuffer(c, dtype=np.int64) for c in columns], np.frombuffer(probs), np.frombuffer(backoffs)

    def _probability(self, text: str) -> float:
        value = self._number_of(text, "log probability")
        if value > 0:
            raise self._wrong(f"the log probability is {text}; it must be at most 0")
        return value

    def _number_of(self, text: str, what: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise self._wrong(f"expected a {what}, found {text!r}") from None
        if math.isnan(value) or value == math.inf:
            raise self._wrong(f"the {what} is {text}; it must be a number")
        return max(value, -1e9)  # -inf, which some programs write for log 0

    def _all(self, good: np.ndarray, first: int, n: int, said) -> None:
        """UserError for the first n-gram that is not good."""
        if not good.all():
            raise UserError(f"{self._path}, line {first + int(np.argmin(good))}: this {n}-gram {said()}")


def _chained(line: str, rest: Iterator[str]) -> Iterator[str]:
    yield line
    yield from rest


def _shown(line: str) -> str:
    return f"{line[:40]!r}"
