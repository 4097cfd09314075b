"""Cuts on disk, batches formed from durations, and the loader's workers."""

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from transformers.trainer_pt_utils import get_length_grouped_indices

from lowrank_speech.errors import UserError
from lowrank_speech.features import workers
from lowrank_speech.features.augment import Augmentation, excerpt
from lowrank_speech.features.batches import (
    Loader,
    batch_indices,
    longest_first,
    segment,
)
from lowrank_speech.features.inputs import Inputs
from lowrank_speech.features.kept import KeptCuts, ListedCuts, keep, kept_files, numbered
from lowrank_speech.features.store import load_cuts, write_split
from lowrank_speech.lang.select import SetAside
from lowrank_speech.training.config import Noise, Reverberation, TrainConfig
from lowrank_speech.training.data.splits import Split
from tiny_models import member


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    """Twelve utterances of noise, 0.2 to 1.3 s."""
    folder, made = tmp_path_factory.mktemp("wav"), []
    for i in range(12):
        rng = np.random.default_rng(i)
        soundfile.write(folder / f"u{i}.wav", (0.1 * rng.standard_normal(3200 + 1600 * i)).astype(np.float32), 16_000)
        recording = Recording.from_file(folder / f"u{i}.wav")
        supervision = SupervisionSegment(f"u{i}", f"u{i}", 0.0, recording.duration, text="Bä", language="de")
        made.append(MonoCut(f"u{i}", 0.0, recording.duration, 0, [supervision], recording=recording))
    return made


def lengths(number, seed=0):
    rng = np.random.default_rng(seed)
    return ListedCuts(SimpleNamespace(id=f"u{i}", duration=d) for i, d in enumerate(rng.uniform(0.5, 12, number)))


def of_seconds(seconds):
    return ListedCuts(SimpleNamespace(id="", duration=float(s)) for s in seconds)


def padding(batches, durations):
    """The share of padding in the seconds of ``batches``, which have all cuts."""
    return 1 - durations.sum() / sum(len(batch) * durations[batch].max() for batch in batches)


def same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert [cut.id for cut in a["cuts"]] == [cut.id for cut in b["cuts"]]
        assert torch.equal(a["features"], b["features"]) and torch.equal(a["lengths"], b["lengths"])


# --- cuts on disk


def test_kept_cuts_are_the_cuts(cuts, tmp_path):
    given = [cut.truncate(offset=1 / 3 * 0.3, preserve_id=True) for cut in cuts]
    kept = keep(iter(given), tmp_path / "train.jsonl")
    assert len(kept) == 12 and list(kept) == given and kept[7] == given[7]
    assert kept.durations.tolist() == [cut.duration for cut in given]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl", "train.npy"]
    for wrong in (-1, 12):
        with pytest.raises(IndexError, match="the file has 12"):
            kept[wrong]
    assert sorted(kept_files(tmp_path / "train.jsonl")) == sorted(tmp_path.iterdir())


def test_kept_cuts_travel_as_a_path_and_are_mapped(cuts, tmp_path):
    kept = keep(cuts * 50, tmp_path / "train.jsonl")
    assert isinstance(kept._table, np.memmap)
    copied = pickle.dumps(kept)
    assert len(copied) < 300 and list(pickle.loads(copied)) == list(kept)


def test_an_empty_corpus_is_kept_too(tmp_path):
    kept = keep([], tmp_path / "train.jsonl")
    assert len(kept) == 0 and list(kept) == [] and list(batch_indices(kept, 9.0, 1, 0)) == []


def test_a_pass_that_fails_leaves_nothing(cuts, tmp_path):
    def broken():
        yield cuts[0]
        raise UserError("no")

    with pytest.raises(UserError):
        keep(broken(), tmp_path / "train.jsonl")
    assert not list(tmp_path.iterdir())


# --- which cuts make a batch


@pytest.mark.parametrize("number", [1, 2, 3, 50, 1000])
@pytest.mark.parametrize("quadratic", [None, 15.0])
def test_every_cut_comes_once_and_batches_are_as_full_as_asked_for(number, quadratic):
    cuts = lengths(number)
    batches = list(batch_indices(cuts, 30.0, 1, 0, quadratic))
    assert sorted(i for batch in batches for i in batch) == list(range(number))
    for batch in batches:
        longest = cuts.durations[batch].max()
        size = longest + (longest**2 / quadratic if quadratic else 0)
        assert len(batch) * size <= 30.0 or len(batch) == 1
    if number == 1000:
        sizes = cuts.durations + (cuts.durations**2 / quadratic if quadratic else 0)
        assert padding(batches, sizes) < 0.05
        fewest = list(longest_first(SimpleNamespace(durations=sizes), 30.0))  # in order of length, without randomness
        assert len(batches) < 1.05 * len(fewest)


def test_padding_does_not_depend_on_the_order_of_the_corpus():
    seconds = [1.0 + i % 5 for i in range(12_000)] + [20.0 + i % 5 for i in range(3_000)]
    for order in (seconds, seconds[::-1]):
        cuts = of_seconds(order)
        assert padding(batch_indices(cuts, 100.0, 1, 0), cuts.durations) < 0.02


@pytest.mark.parametrize(("number", "batch_seconds"), [(2500, 16.0), (2500, 60.0), (2500, 200.0), (20_000, 60.0)])
def test_batches_have_less_padding_than_those_of_the_trainer(number, batch_seconds):
    cuts = of_seconds(np.random.default_rng(1).lognormal(np.log(3.6), 0.5, number).clip(0.5, 30))
    ours = list(batch_indices(cuts, batch_seconds, 1, 0))
    size = number // len(ours)  # at least as many batches, so that the trainer has no more seconds in one
    order = get_length_grouped_indices(cuts.durations, size, generator=torch.Generator().manual_seed(1))
    theirs = [order[i : i + size] for i in range(0, number, size)]
    assert len(theirs) >= len(ours)
    assert padding(ours, cuts.durations) < 0.6 * padding(theirs, cuts.durations)


@pytest.mark.parametrize(("seconds", "batch_seconds"), [(4.0, 16.0), (4.0, 60.0), (4.0, 200.0)])
def test_each_cut_meets_all_others_of_its_length_over_the_epochs(seconds, batch_seconds):
    """Forty cuts of equal length among others: no pair shares a batch more or less often than chance makes it."""
    others = np.random.default_rng(1).lognormal(np.log(3.6), 0.5, 1500).clip(0.5, 30)
    cuts, epochs, equal = of_seconds([*others, *[seconds] * 40]), 200, range(1500, 1540)
    together = np.zeros((40, 40), int)
    places = []  # of the first cut's batch in the epoch, from 0 to 1
    for epoch in range(epochs):
        numbers = np.empty(1540, int)
        for n, batch in enumerate(found := list(batch_indices(cuts, batch_seconds, 1, epoch))):
            numbers[batch] = n
        mine = numbers[list(equal)]
        together += mine[:, None] == mine
        places.append(mine[0] / len(found))
    pairs = together[np.triu_indices(40, 1)]
    share = pairs.mean() / epochs
    assert 0.02 < share < 0.45
    spread = 5.5 * np.sqrt(epochs * share * (1 - share))
    assert abs(pairs - pairs.mean()).max() < spread
    assert abs(np.mean(places) - 0.5) < 0.08 and np.std(places) == pytest.approx(12**-0.5, abs=0.05)


def test_few_batches_change_their_cuts_too():
    cuts = lengths(32)
    seconds = cuts.durations.sum() / 3
    epochs = [list(batch_indices(cuts, seconds, 1, epoch)) for epoch in range(10)]
    assert len({frozenset(map(frozenset, batches)) for batches in epochs}) >= 5
    assert np.mean([padding(batches, cuts.durations) for batches in epochs]) < 0.2


def test_only_one_batch_is_incomplete():
    cuts = of_seconds(np.random.default_rng(1).uniform(1, 3, 5000))
    for epoch in range(3):
        batches = list(batch_indices(cuts, 40.0, 1, epoch))
        assert sum(len(batch) * cuts.durations[batch].max() < 40 - 3 for batch in batches) <= 1


def test_a_million_cuts_take_seconds_and_little_memory():
    seconds = np.random.default_rng(1).lognormal(np.log(3.6), 0.5, 1_000_000)
    start = time.process_time()
    assert sum(map(len, batch_indices(SimpleNamespace(durations=seconds), 60.0, 1, 0))) == len(seconds)
    assert time.process_time() - start < 10  # about one on an idle machine
    tracemalloc.start()  # makes the loop slow
    try:
        assert next(batch_indices(SimpleNamespace(durations=seconds[:100_000]), 60.0, 1, 0))
        assert tracemalloc.get_traced_memory()[1] < 80 * 100_000
    finally:
        tracemalloc.stop()


def test_seeds_share_no_order():
    cuts = lengths(200)
    orders = {repr(list(batch_indices(cuts, 30.0, seed, epoch))) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_long_cuts_come_in_smaller_batches_under_the_penalty():
    cuts = ListedCuts(SimpleNamespace(id=str(i), duration=2.0 if i % 2 else 10.0) for i in range(400))

    def sizes(quadratic):
        batches = list(batch_indices(cuts, 60.0, 1, 0, quadratic))
        return [max(len(b) for b in batches if cuts.durations[b].max() == seconds) for seconds in (2.0, 10.0)]

    assert sizes(None) == [30, 6]
    assert sizes(20.0) == [27, 4]  # 2.2 and 15 s each


CODE = """
import sys; sys.path.insert(0, "tests")
import contextlib
import hashlib
from test_loader import digest
print(digest(int(sys.argv[1]), int(sys.argv[2])))
"""


def digest(seed, epoch, number=500):
    return hashlib.sha256(repr(list(batch_indices(lengths(number), 30.0, seed, epoch, 15.0))).encode()).hexdigest()


def test_another_process_draws_the_same_batches():
    found = subprocess.run([sys.executable, "-c", CODE, "7", "3"], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == digest(7, 3)
    assert len({digest(7, 3), digest(7, 4), digest(9, 3)}) == 3


def test_a_long_corpus_is_shuffled_as_a_whole():
    cuts = of_seconds(1.0 + i % 7 for i in range(40_000))
    batches = list(batch_indices(cuts, 100.0, 1, 0))
    numbers = [i for batch in batches for i in batch]
    assert sorted(numbers) == list(range(40_000))
    first = np.array(numbers[:20_000])  # half of them from the second half of the file
    assert abs((first >= 20_000).mean() - 0.5) < 0.02
    assert batches[:50] != list(batch_indices(cuts, 100.0, 1, 1))[:50]


def test_longest_first_takes_all_and_counts_the_padding():
    cuts = lengths(100)
    batches = list(longest_first(cuts, 30.0))
    durations = [cuts.durations[i] for batch in batches for i in batch]
    assert len(durations) == 100 and durations == sorted(durations, reverse=True)
    assert all(len(batch) * cuts.durations[batch].max() <= 30.0 for batch in batches)


# --- workers


AUGMENTATION = Augmentation((0.9, 1.0, 1.1), Noise(probability=1.0), Reverberation(probability=0.5))


@pytest.mark.parametrize("kind", ["waveform", "logmel", "fbank"])
def test_workers_change_nothing(cuts, tmp_path, kind):
    kept = keep(cuts, tmp_path / "train.jsonl")

    def made(workers, threads=1):
        loader = Loader(Inputs(kind, n_mels=20), workers=workers, augmentation=AUGMENTATION)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            state = torch.get_rng_state()
            batches = [list(loader.train(kept, 3.0, 1, epoch)) for epoch in (0, 1)] + [list(loader.all(kept, 3.0))]
            assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        return [batch for epoch in batches for batch in epoch]

    whole = made(0)
    for other in (made(1), made(2), made(0, threads=2)):
        same(whole, other)


def test_workers_read_stored_features_that_the_parent_has_open(cuts, tmp_path):
    arrays = [(cut, np.random.default_rng(i).random((20 + i, 6), dtype=np.float32)) for i, cut in enumerate(cuts)]
    write_split(arrays, tmp_path / "train.jsonl.gz", 0.02, "conv")
    kept = keep(load_cuts(tmp_path / "train.jsonl.gz", lazy=True), tmp_path / "scratch" / "train.jsonl")
    whole = list(Loader(Inputs("waveform")).train(kept, 1.0, 1, 0))
    same(whole, list(Loader(Inputs("waveform"), workers=2).train(kept, 1.0, 1, 0)))
    rows = {cut.id: array for cut, array in arrays}
    for batch in whole:
        for cut, row, length in zip(batch["cuts"], batch["features"], batch["lengths"], strict=True):
            assert np.array_equal(row[:length].numpy(), rows[cut.id])


def test_an_epoch_can_start_in_its_middle_without_reading_what_was(cuts, tmp_path):
    kept = keep(cuts, tmp_path / "train.jsonl")
    whole = list(Loader(Inputs("waveform"), augmentation=AUGMENTATION).train(kept, 2.0, 1, 1))
    read = []

    class Counting(Inputs):
        def __call__(self, cut, change=None):
            read.append(cut.id)
            return super().__call__(cut, change)

    rest = list(Loader(Counting("waveform"), augmentation=AUGMENTATION).train(kept, 2.0, 1, 1, skip=2))
    same(whole[2:], rest)
    assert read == [cut.id for batch in whole[2:] for cut in batch["cuts"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_out_the_batches_of_one(cuts, tmp_path, workers):
    kept = keep(cuts, tmp_path / "train.jsonl")
    loader = Loader(Inputs("waveform"), workers=workers, augmentation=AUGMENTATION)
    whole = list(loader.train(kept, 2.0, 1, 0))
    assert len(whole) > 4
    shares = [list(loader.train(kept, 2.0, 1, 0, skip=1, rank=rank, world=2)) for rank in (0, 1)]
    for i, batch in enumerate(whole[1:], start=1):
        mine, other = shares[i % 2][i - 1], shares[1 - i % 2][i - 1]
        same([batch], [mine])
        assert other.keys() == {"cuts"} and other["cuts"] == batch["cuts"]
    dev = list(loader.all(kept, 3.0))
    for rank in (0, 1):
        same(dev[rank::2], list(loader.all(kept, 3.0, rank=rank, world=2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_about_an_utterance_stays_one_line(cuts, tmp_path, workers):
    kept = keep([*cuts, cuts[0].truncate(duration=0.02).with_id("short")], tmp_path / "train.jsonl")
    with pytest.raises(UserError) as error:
        list(Loader(Inputs("fbank"), workers=workers).train(kept, 2.0, 1, 0))
    assert str(error.value).startswith("utterance short: 0.020 s is too short")
    assert "\n" not in str(error.value)


def test_workers_outlive_signals_to_the_job_and_end_with_the_epoch(cuts, tmp_path):
    kept = keep(cuts, tmp_path / "train.jsonl")
    whole = list(Loader(Inputs("waveform")).train(kept, 1.5, 1, 0))
    batches = Loader(Inputs("waveform"), workers=2).train(kept, 1.5, 1, 0)
    found = [next(batches)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker.pid, number)
    same(whole, [*found, *batches])
    assert not multiprocessing.active_children()


def test_workers_outlive_signals_that_come_while_they_start(cuts, tmp_path, monkeypatch):
    kept = keep(cuts, tmp_path / "train.jsonl")
    whole = list(Loader(Inputs("waveform")).train(kept, 1.5, 1, 0))
    start, told = workers.start_worker, []

    def slowly(number, training):
        time.sleep(1.0)
        start(number, training)

    def tell():
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        for worker in multiprocessing.active_children():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(worker.pid, number)
            told.append(worker)

    monkeypatch.setattr(workers, "start_worker", slowly)
    thread = threading.Thread(target=tell)
    thread.start()
    same(whole, list(Loader(Inputs("waveform"), workers=2).train(kept, 1.5, 1, 0)))
    thread.join()
    assert len(told) == 2


CRASH = """
import multiprocessing, os, pickle, signal, sys
from lowrank_speech.features.batches import Loader
from lowrank_speech.features.inputs import Inputs

batches = Loader(Inputs("waveform"), workers=2).train(pickle.load(open(sys.argv[1], "rb")), 1.5, 1, 0)
next(batches)
if sys.argv[2] == "was killed":
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    list(batches)
raise ValueError("the step failed")
"""


@pytest.mark.parametrize("error", ["was killed", "the step failed"])
def test_a_program_that_fails_beside_its_workers_ends(cuts, tmp_path, error):
    (tmp_path / "cuts").write_bytes(pickle.dumps(keep(cuts, tmp_path / "train.jsonl")))
    command = [sys.executable, "-c", CRASH, str(tmp_path / "cuts"), error]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and error in done.stderr.splitlines()[-1]


def test_workers_end_where_an_epoch_is_cut_short(cuts, tmp_path):
    batches = Loader(Inputs("waveform"), workers=2).train(keep(cuts, tmp_path / "train.jsonl"), 1.5, 1, 0)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


def test_nothing_warns_of_an_eager_set_of_cuts(cuts, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (cuts, CutSet.from_cuts(cuts), keep(cuts, tmp_path / "train.jsonl")):
            assert len(list(Loader(Inputs("waveform")).train(given, 3.0, 1, 0))) > 1


def test_computed_inputs_are_kept_in_memory_up_to_the_seconds_given(cuts, tmp_path):
    kept = keep(cuts, tmp_path / "train.jsonl")
    loader = Loader(Inputs("waveform"), memory=1.0)
    list(loader.all(kept, 3.0))
    assert sum(kept.durations[int(name[1:])] for _, name in loader._kept) <= 1.0 and loader._kept
    assert isinstance(kept, KeptCuts)


def test_segments_have_the_frames_that_were_asked_for(cuts, tmp_path):
    long = next(iter(cuts)).pad(duration=31.0)
    for tenths in range(1, 300):
        (found,) = segment(CutSet.from_cuts([long]), tenths / 10, 1)
        assert found.num_samples == 1600 * tenths


def test_dev_may_have_an_id_of_the_training_cuts(cuts):
    first, second = list(cuts)[:2]
    loader, other = Loader(Inputs("waveform"), memory=60.0), second.with_id(first.id)
    heard = loader.one(first, (1, 0))
    assert torch.equal(loader.one(other), Loader(Inputs("waveform")).one(second))
    assert torch.equal(loader.one(first, (1, 1)), heard)


def test_a_recording_that_cannot_be_read_is_named(cuts, tmp_path):
    batch = list(cuts)[:2]
    path = Path(batch[1].recording.sources[0].source)
    whole = path.read_bytes()
    try:
        for content, why in ((None, "does not exist"), (b"", "is empty"), (b"no sound", r"cannot be read \(.+\)")):
            path.unlink() if content is None else path.write_bytes(content)
            with pytest.raises(UserError, match=rf"^utterance {batch[1].id}: {path} {why}; restore the file"):
                Loader(Inputs("waveform")).collate(batch)
    finally:
        path.write_bytes(whole)


def test_a_recording_of_noise_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "n.wav").write_bytes(b"no sound")
    with pytest.raises(UserError, match=r"noise\.folder: unreadable audio: .*n\.wav: .*; replace or"):
        excerpt(tmp_path / "n.wav", 100, np.random.default_rng(1))


ORPHANS = """
import os, pickle, sys, time
import torch
from lowrank_speech.features import workers
from lowrank_speech.features.batches import Loader
from lowrank_speech.features.inputs import Inputs

if __name__ == "__main__":
    if sys.argv[2] == "forkserver":
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    batches = Loader(Inputs("waveform"), workers=1).train(pickle.load(open(sys.argv[1], "rb")), 1.5, 1, 0)
    next(batches)
    print("ready", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_workers_end_when_the_training_is_killed(start, cuts, tmp_path):
    (tmp_path / "cuts").write_bytes(pickle.dumps(numbered(cuts)))
    program = tmp_path / "program.py"
    program.write_text(ORPHANS)
    command = [sys.executable, str(program), str(tmp_path / "cuts"), start]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert running.stdout.readline() == "ready\n"
    running.kill()
    running.wait()
    deadline = time.monotonic() + 30
    while (left := of_session(running.pid)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def of_session(number):
    """The processes of a session, those that ended and wait to be noticed left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) == number and state != "Z":
                found.append(path.parent.name)
    return found


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_what_has_no_frame_is_set_aside(factor, cuts, tmp_path):
    model, set_aside = member("wav2vec2"), SetAside()  # frames of 80 samples at least
    short = [cuts[0].truncate(duration=n / 16_000, preserve_id=False).with_id(f"n{n}") for n in (40, 79, 100, 400)]
    CutSet.from_cuts([*short, cuts[1]]).to_file(tmp_path / "cuts.jsonl.gz")
    split = Split("train", tmp_path / "cuts.jsonl.gz", TrainConfig(speed=(factor,)))
    left = [cut.id for cut in split.cuts(model, set_aside)]
    assert left == (["n100", "n400", "u1"] if factor == 1.0 else ["n400", "u1"])
    assert set_aside.counts() == {"too short": 5 - len(left)}
    assert set_aside.rows[0] == ("n40", "too short", "0.003 s, less than one frame of the model")
