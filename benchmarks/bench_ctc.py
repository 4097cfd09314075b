"""Speed and accuracy of CTC, forward and backward, in torch and in k2 (if it is installed).

python benchmarks/bench_ctc.py --threads 2                  # in any environment with torch
.venv-k2/bin/python benchmarks/bench_ctc.py --threads 2     # Python 3.9 with k2, as set up by `make test-k2`

For each back end, prints the median and the fastest of --repeats runs in ms, after one warm-up run, and the largest
error against torch's CTC in double precision: of an utterance's loss, and of the gradient of the summed losses with
respect to a logit. --scale is the standard deviation of the random logits: 0 gives flat posteriors, 10 sharp ones.
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
from lowrank_speech.errors import UserError
from lowrank_speech.models.device import pick_device
from lowrank_speech.training.losses import ctc_losses as ctc


def measure(batch, repeats, **keys):
    """Times in ms of ``repeats`` runs, forward and backward to the logits; losses and gradient of the last run."""
    device, times = batch[0].device.type, []
    for _ in range(repeats + 1):
        logits = batch[0].detach().requires_grad_()
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        losses, _ = ctc.ctc_losses(logits, *batch[1:], **keys)
        losses.sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return times[1:], losses.detach(), logits.grad


def exact(logits, frames, labels, sizes):
    """Losses and gradient in double precision."""
    logits = logits.double().requires_grad_()
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    losses = torch.nn.functional.ctc_loss(log_probs, labels.to(logits.device), frames, sizes, reduction="none")
    losses.sum().backward()
    return losses.detach(), logits.grad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("utterances", 16), ("frames", 500), ("vocabulary", 500), ("labels", 40), ("repeats", 10)):
        kind = timing.at_least(2, int) if name == "vocabulary" else timing.positive(int)  # blank and a label
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"default: {default}")
    parser.add_argument("--scale", type=timing.at_least(0, float), default=1.0, help="default: 1")
    parser.add_argument("--threads", type=timing.positive(int), default=1, help="of torch and k2; default: 1")
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="cpu", help="default: cpu")
    arguments = parser.parse_args()
    arguments.device = pick_device(arguments.device).type
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(1)
    size = (arguments.utterances, arguments.frames, arguments.vocabulary)
    batch = (
        (arguments.scale * torch.randn(size, generator=generator)).to(arguments.device),
        torch.full((arguments.utterances,), arguments.frames),
        torch.randint(1, arguments.vocabulary, (arguments.utterances * arguments.labels,), generator=generator),
        torch.full((arguments.utterances,), arguments.labels),
    )
    labels = batch[2].view(arguments.utterances, -1)
    needed = arguments.labels + int((labels[:, 1:] == labels[:, :-1]).sum(1).max())  # a blank between equal labels
    if arguments.frames < needed:
        raise UserError(f"--frames {arguments.frames}: the {arguments.labels} labels need at least {needed}")
    shape = f"{size[0]} x {size[1]} frames x {size[2]} tokens, {arguments.labels} labels, scale {arguments.scale:g}"
    print(f"{shape}, {arguments.device}, {arguments.threads} thread(s), torch {torch.__version__}")
    cases = {"torch": {}}
    try:
        k2 = ctc.import_k2(arguments.device)
        cases.update({f"k2 {ctc.k2_version()}, output_beam {b:g}": {"k2": k2, "output_beam": b} for b in (10, 20, 1e4)})
    except ImportError as error:
        print(error)
    losses, gradient = exact(*batch)
    for name, keys in cases.items():
        times, found, its = measure(batch, arguments.repeats, **keys)
        errors = f"loss off by {(found - losses).abs().max():.0e} of {losses.max():.0f}, gradient by"
        time_taken = f"{statistics.median(times):7.0f} ms (fastest {min(times):.0f})"
        print(f"{name:28} {time_taken}, {errors} {(its - gradient).abs().max():.0e}")


if __name__ == "__main__":
    timing.run(main)
