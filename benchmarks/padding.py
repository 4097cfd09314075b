"""Padding of batches by duration at equal seconds per batch: ours, Lhotse's buckets, and the Trainer's grouping.

python benchmarks/padding.py                          # speechocean762/train in $SPEECH_DATA, 200,000 drawn durations
python benchmarks/padding.py --utterances 1000000     # how long a large corpus takes

    ours          features/batches.py, at most --batch-seconds per batch including padding
    lhotse 10     DynamicBucketingSampler with 10 buckets of equal speech and a buffer of 20,000, as in our former
                  loader; lhotse 100: with 100 buckets. A batch may exceed the limit by one utterance
    trainer       get_length_grouped_indices of transformers (group_by_length), with the largest fixed number of
                  utterances that makes at least as many batches as ours

The drawn durations are log-normal (median 3.6 s, sigma 0.5, from 0.5 to 30 s).

    padding %     share of padding in the seconds of all batches
    batches       of an epoch
    s per batch   seconds including padding: the mean, and the largest batch
    incomplete    batches below half of --batch-seconds although two of the longest utterances would fit
    CPU s         for the batches of one epoch, without reading
    together %    how often two utterances of neighbouring length share a batch, over ten epochs (small corpora only)
"""

import os
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import timing
from lowrank_speech.features.batches import batch_indices

EPOCHS, FEW = 10, 10_000


def speechocean():
    """Durations in seconds of speechocean762/train, or None if $SPEECH_DATA does not have it."""
    import soundfile

    root = Path(os.environ.get("SPEECH_DATA", "")) / "speechocean762"
    table = root / "train" / "wav.scp"
    if not (os.environ.get("SPEECH_DATA") and table.is_file()):
        return None
    paths = [line.split(maxsplit=1)[1] for line in table.read_text(encoding="utf-8").splitlines()]
    return np.array([soundfile.info(root / path).duration for path in paths])


def ours(durations, seconds, epoch):
    return list(batch_indices(SimpleNamespace(durations=durations), seconds, 1, epoch))


def lhotse(buckets):
    def batches(durations, seconds, epoch):
        from lhotse.dataset import DynamicBucketingSampler

        from lowrank_speech.training.memory.layers import bucket_bounds

        order = np.random.default_rng([1, epoch]).permutation(len(durations))
        cuts = [SimpleNamespace(number=int(i), duration=float(durations[i])) for i in order]
        sampler = DynamicBucketingSampler(
            cuts,
            max_duration=seconds,
            duration_bins=bucket_bounds(durations, buckets),
            buffer_size=20_000,
            shuffle=True,
            seed=1000,
            rank=0,
            world_size=1,
        )
        sampler.set_epoch(epoch)
        return [[cut.number for cut in batch] for batch in sampler]

    return batches


def trainer(size):
    def batches(durations, seconds, epoch):
        from transformers.trainer_pt_utils import get_length_grouped_indices

        generator = torch.Generator().manual_seed(epoch)
        order = get_length_grouped_indices(durations.tolist(), size, generator=generator)
        return [order[i : i + size] for i in range(0, len(order), size)]

    return batches


def row(corpus, name, way, durations, seconds):
    start = time.process_time()
    batches = way(durations, seconds, 0)
    cpu = time.process_time() - start
    sizes = np.array([durations[batch].max() * len(batch) for batch in batches])
    few = [size < seconds / 2 and 2 * durations[b].max() <= seconds / 2 for size, b in zip(sizes, batches, strict=True)]
    found = {"corpus": corpus, "batch s": seconds, "batches by": name}
    found |= {"padding %": 100 * (1 - durations.sum() / sizes.sum()), "batches": len(batches)}
    found |= {"s per batch": sizes.mean(), "largest": sizes.max(), "incomplete": sum(few), "CPU s": cpu}
    return found | {"together %": 100 * together(way, durations, seconds) if len(durations) <= FEW else None}


def together(way, durations, seconds):
    """How often neighbours in the order of lengths share a batch."""
    order, found = np.argsort(durations, kind="stable"), []
    for epoch in range(EPOCHS):
        number = np.empty(len(durations), int)
        for i, batch in enumerate(way(durations, seconds, epoch)):
            number[batch] = i
        found.append((number[order[1:]] == number[order[:-1]]).mean())
    return float(np.mean(found))


def main():
    parser = timing.options(__doc__, rounds=1)
    parser.add_argument("--utterances", type=timing.positive(int), default=200_000, help="drawn; default: 200000")
    seconds = {"type": timing.positive(float), "default": [16.0, 60.0, 200.0], "help": "default: 16 60 200"}
    parser.add_argument("--batch-seconds", nargs="+", **seconds)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="We have exceeded the max_duration constraint")
    drawn = np.random.default_rng(1).lognormal(np.log(3.6), 0.5, arguments.utterances).clip(0.5, 30)
    corpora = {"speechocean762/train": speechocean(), f"{arguments.utterances:,} drawn": drawn}
    rows = []
    for corpus, durations in corpora.items():
        if durations is None:
            print(f"left out: {corpus} (set SPEECH_DATA to the folder with speechocean762)")
            continue
        for limit in arguments.batch_seconds:
            size = max(1, len(durations) // len(ours(durations, limit, 0)))
            ways = {"ours": ours, "lhotse 10": lhotse(10), "lhotse 100": lhotse(100), f"trainer, {size}": trainer(size)}
            rows += [row(corpus, name, way, durations, limit) for name, way in ways.items()]
    timing.show("padding", rows, arguments.json)


if __name__ == "__main__":
    timing.run(main)
