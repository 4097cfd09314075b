"""Speed of LF-MMI, forward and backward to the logits, relative to CTC, in torch and in k2 (if it is installed).

python benchmarks/bench_lfmmi.py --vocabulary 30            # in any environment with torch
.venv-k2/bin/python benchmarks/bench_lfmmi.py --vocabulary 30     # Python 3.9 with k2, as set up by `make test-k2`

The token bigram is random: --bigrams of the pairs have an explicit probability, the others that of the empty context.
Prints the median and the fastest of --repeats runs in ms, after one warm-up run, and the median relative to CTC: CTC,
which is also the numerator of LF-MMI; CTC with a delay penalty; the denominator with dense and with sparse transitions,
and in k2. The cases take turns. The last column is the largest difference of a log total from the dense one.
"""

import argparse
import pathlib
import statistics
import sys
import time

import torch

# The environment with k2 may not have this package installed. The modules imported below work in Python 3.9.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "src"))

import timing
from lowrank_speech.models.device import pick_device
from lowrank_speech.training.losses import ctc_losses as ctc
from lowrank_speech.training.losses import denominator as mmi
from lowrank_speech.training.losses import denominator_k2 as mmi_k2


def bigram(vocabulary, share, generator):
    """A graph whose contexts have explicit probabilities for a ``share`` of the tokens."""
    size = vocabulary  # the tokens, and the start
    pairs = torch.rand(size, size - 1, dtype=torch.float64, generator=generator)
    pairs *= torch.rand(size, size - 1, generator=generator) < share
    pairs *= (0.7 / pairs.sum(1).clamp(min=1e-9))[:, None]
    source, target = pairs.nonzero(as_tuple=True)
    end, everything = torch.full((size,), 0.05, dtype=torch.float64), torch.arange(size)
    return mmi.Graph(
        last=(everything + 1) % vocabulary,
        start=torch.tensor(size - 1),
        arcs=torch.stack([source, target]),
        weights=pairs[source, target],
        shorter=torch.stack([everything, everything]),
        share=torch.ones(size, dtype=torch.float64),
        empty=1 - end - pairs.sum(1),
        unigram=torch.full((size - 1,), 1 / (size - 1), dtype=torch.float64),
        final=end,
    )


def once(logits, function):
    """Time in ms of one run, forward and backward, and its result. On a CPU: the CPU's time, as others may use it."""
    given = logits.detach().requires_grad_()
    cuda = given.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    start = clock()
    found = function(given)
    found.sum().backward()
    if cuda:
        torch.cuda.synchronize()
    return 1e3 * (clock() - start), found.detach()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("utterances", 16), ("frames", 500), ("vocabulary", 30), ("labels", 40), ("repeats", 5)):
        kind = timing.at_least(2, int) if name == "vocabulary" else timing.positive(int)  # blank and a label
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"default: {default}")
    parser.add_argument("--bigrams", type=timing.positive(float), default=0.2, help="share of the pairs; default: 0.2")
    parser.add_argument("--scale", type=timing.at_least(0, float), default=1.0, help="of the logits; default: 1")
    parser.add_argument("--threads", type=timing.positive(int), default=1, help="of torch and k2; default: 1")
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="cpu", help="default: cpu")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(1)
    size = (arguments.utterances, arguments.frames, arguments.vocabulary)
    logits = (arguments.scale * torch.randn(size, generator=generator)).to(device)
    frames = torch.full((arguments.utterances,), arguments.frames)
    sizes = torch.full((arguments.utterances,), arguments.labels)
    labels = torch.randint(1, arguments.vocabulary, (int(sizes.sum()),), generator=generator)
    graph = bigram(arguments.vocabulary, arguments.bigrams, generator)
    print(
        f"{size[0]} x {size[1]} frames x {size[2]} tokens, {arguments.labels} labels, scale {arguments.scale:g}, "
        f"{graph.arcs.shape[1]} bigrams, {device.type}, {arguments.threads} thread(s), torch {torch.__version__}"
    )
    k2s = {}
    try:
        k2s[f"k2 {ctc.k2_version()}"] = ctc.import_k2(device.type)
    except Exception as error:  # not installed, or for another torch
        print(error)

    def total(kind):
        given = graph.to(device)
        given._moves = kind(given)
        return lambda x: mmi.log_totals(x.log_softmax(-1), frames, given)

    def losses(k2=None, **keys):
        return lambda x: ctc.ctc_losses(x, frames, labels, sizes, k2, **keys)[0]

    cases = {"CTC, torch": losses(), "CTC, torch, delay penalty": losses(delay_penalty=0.01)}
    cases |= {"denominator, torch, dense": total(mmi._Dense), "denominator, torch, sparse": total(mmi._Sparse)}
    for name, k2 in k2s.items():
        cases[f"CTC, {name}"] = losses(k2)
        if mmi_k2.arc_number(graph) <= mmi_k2.MOST_ARCS:
            given = graph.to(device)
            cases[f"denominator, {name}"] = lambda x, k2=k2, given=given: mmi_k2.log_totals_k2(
                k2, x.log_softmax(-1), frames, given
            )
    times, found = {name: [] for name in cases}, {}
    for turn in range(arguments.repeats + 1):  # the first turn warms up
        for name, function in cases.items():
            taken, found[name] = once(logits, function)
            if turn:
                times[name].append(taken)
    ctc_time, expected = statistics.median(times["CTC, torch"]), found["denominator, torch, dense"]
    for name, taken in times.items():
        median, shown = statistics.median(taken), ""
        if name.startswith("denominator"):
            shown = f", log totals differ by {(found[name] - expected).abs().max():.0e} of {expected.abs().max():.0f}"
        print(f"{name:28} {median:7.0f} ms (fastest {min(taken):.0f}), {median / ctc_time:5.1f} x CTC{shown}")


if __name__ == "__main__":
    timing.run(main)
