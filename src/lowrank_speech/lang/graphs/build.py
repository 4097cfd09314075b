"""Build the graphs of CTC decoding with kaldifst and kaldilm: H, HL, HG, HLG.

    H   from paths of the network's outputs to token sequences: merge repeats, drop blanks
    L   from token sequences to words
    G   an n-gram over words or tokens, as an acceptor with back-off arcs

Labels of inputs are token ids plus one, because 0 is epsilon in OpenFst (``kaldi_decoder.DecodableCtc`` expects this);
#0 ... #k follow them while L and G are composed. Labels of outputs are word numbers from 1 on, or token ids plus one.
Costs are minus the natural log of probabilities.

Sources: Mohri, Pereira, Riley 2008 (Speech recognition with weighted finite-state transducers); Kaldi's
utils/mkgraph.sh and add_lex_disambig.pl; icefall's compile_hlg.py; k2.ctc_topo for H.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowrank_speech.artefact import write_text
from lowrank_speech.errors import UserError
from lowrank_speech.lang.graphs import fst
from lowrank_speech.lang.graphs.convert import from_kaldifst, to_kaldifst
from lowrank_speech.lang.graphs.fst import ARC, Arcs
from lowrank_speech.lang.graphs.load import BACKOFF, BOS, EOS, table
from lowrank_speech.lang.lexicon import Lexicon, disambiguated

DELTA = 2.0**-14
"""Costs are rounded to it, and equal if they differ by less. Kaldi's 2^-10 shows in the sum of a path."""


def topology(size: int) -> Arcs:
    """H for ``size`` tokens, of which 0 is the blank: state i means that the last frame had token i.

    Its best path is the greedy one. Source: k2.ctc_topo(modified=False).
    """
    source, target = (a.ravel() for a in np.meshgrid(np.arange(size), np.arange(size), indexing="ij"))
    arcs = np.zeros(size * size, ARC)
    arcs["ilabel"], arcs["dst"] = target + 1, target
    arcs["olabel"] = np.where((target == 0) | (target == source), 0, target + 1)
    return fst.from_lists(source, arcs, np.zeros(size))


def grammar(arpa: Path, symbols: Sequence[str]) -> Arcs:
    """G: the ARPA as an acceptor over ``symbols`` (numbered from 1), with back-off arcs labelled #0 : epsilon.

    n-grams with other symbols are left out. A path that backs off where the ARPA has the n-gram exists too, and wins if
    it costs less. UserError: kaldilm cannot read the ARPA.
    """
    with tempfile.TemporaryDirectory() as folder:
        symbol_table, found = Path(folder, "symbols.txt"), Path(folder, "G.fst")
        write_text(symbol_table, table(symbols, BACKOFF, BOS, EOS))
        # In a process of its own, because kaldilm aborts the process when it finds an error.
        command = [sys.executable, "-c", _ARPA2FST, str(arpa), str(found), str(symbol_table)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not found.is_file():
            lines = done.stderr.splitlines()
            said = next((line for line in lines if line.startswith("[E]")), lines[-1] if lines else "no message")
            reason = f"{said.removeprefix('[E] ')}; exit code {done.returncode}"
            raise UserError(f"graph: {arpa} cannot be made a graph ({reason}); correct or make the ARPA again")
        import kaldifst

        return from_kaldifst(kaldifst.StdVectorFst.read(str(found)))


_ARPA2FST = """
import sys, kaldilm
kaldilm.arpa2fst(sys.argv[1], sys.argv[2], disambig_symbol="#0", read_symbol_table=sys.argv[3], bos_symbol="<s>",
                 eos_symbol="</s>", max_arpa_warnings=0)
"""


def lexicon_fst(lexicon: Lexicon, size: int, backoff: int | None = None) -> Arcs:
    """L: any sequence of words, each spelled by one of its pronunciations, with the disambiguation symbols of Kaldi.

    ``size``: number of tokens; ``backoff``: number of the word symbol #0, if L is composed with a G that has it.
    If the tokens have a word boundary, at least one separates two words, and any number may precede the first and
    follow the last word; otherwise words follow one another. Words are numbered in the order of ``lexicon.words``.
    """
    numbers, _ = disambiguated(lexicon)
    word_ids = {word: i for i, word in enumerate(lexicon.words, start=1)}
    rows: list[tuple[int, int, int, float, int]] = []  # source, input, output, cost, destination
    marks, begin = size + 1, 0  # the label of #0; where a word begins
    if lexicon.boundary is None:
        start, ends, finals, states = begin, (begin,), [begin], 1
    else:
        # Where a boundary may stand, before words; where one must follow a word; and the end after a word. #0 stands
        # only where a word begins and at the end, so that there is one path for each way of backing off.
        optional, required, end, states = 1, 2, 3, 4
        start, ends, finals = optional, (required, end), [begin, end]
        label = lexicon.boundary + 1
        rows += [(optional, label, 0, 0.0, optional), (required, label, 0, 0.0, optional), (optional, 0, 0, 0.0, begin)]
    if backoff is not None:
        rows += [(state, marks, backoff, 0.0, state) for state in finals]
    for entry, number in zip(lexicon.entries, numbers, strict=True):
        labels = [token + 1 for token in entry.tokens] + ([marks + number] if number else [])
        state, output, cost = begin, word_ids[entry.word], entry.cost
        for label in labels[:-1]:
            rows.append((state, label, output, cost, states))
            state, output, cost, states = states, 0, 0.0, states + 1
        rows += [(state, labels[-1], output, cost, end) for end in ends]
    final = np.full(states, np.inf, np.float32)
    final[finals] = 0.0
    sources = np.array([row[0] for row in rows])
    return fst.from_lists(sources, np.array([row[1:] for row in rows], ARC), final, start)


def compose_lexicon(lexicon: Lexicon, size: int, grammar: Arcs | None = None) -> Arcs:
    """L or LG without disambiguation symbols: determinized and minimized. ``grammar``: G over ``lexicon.words``."""
    import kaldifst

    if grammar is None:
        found = to_kaldifst(lexicon_fst(lexicon, size))
    else:
        left = to_kaldifst(lexicon_fst(lexicon, size, backoff=len(lexicon.words) + 1))
        right = to_kaldifst(grammar)
        kaldifst.arcsort(left, "olabel")
        kaldifst.arcsort(right, "ilabel")
        found = kaldifst.StdVectorFst(kaldifst.compose(left, right))
    kaldifst.determinize_star(found, delta=DELTA)
    kaldifst.minimize_encoded(found, delta=DELTA)
    return without_marks(from_kaldifst(found), size)


def compose_topology(size: int, right: Arcs) -> Arcs:
    """H composed with LG, L or a G over tokens."""
    import kaldifst

    left, other = to_kaldifst(topology(size)), to_kaldifst(right)
    kaldifst.arcsort(left, "olabel")
    kaldifst.arcsort(other, "ilabel")
    return from_kaldifst(kaldifst.compose(left, other))


def without_marks(arcs: Arcs, symbols: int) -> Arcs:
    """``arcs`` with epsilon for the input labels above ``symbols``: disambiguation symbols, #0."""
    found = arcs.arcs.copy()
    found["ilabel"][found["ilabel"] > symbols] = 0
    return Arcs(found, arcs.splits, arcs.finals, arcs.start)
