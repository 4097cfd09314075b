"""Build a realistic tree of manifests for the report tests: 2 bases x 2 tasks x 5 methods, scored by the real scorers.

To look at the page, run  python tests/report_tree.py /tmp/tree  and open /tmp/tree/report/report.html. With any second
argument, speech recognition has two test sets and two decoders.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_speech.artefact import write_json, write_table
from lowrank_speech.scoring import asr, lid, utterances
from lowrank_speech.scoring.options import ScoreOptions

BASES = {"wav2vec2": 6_153_000, "whisper": 4_870_000}
LAYERS = {"wav2vec2": 6, "whisper": 4}  # factorised
TASKS = {"asr": "asr", "lid": "lid"}
# adapt, share of the dense parameters, share trained, word error, noise on the language scores
METHODS = {
    "base": ("none", 1.0, 0.0, 0.75, 6.0),
    "full": ("full", 1.0, 0.95, 0.16, 0.8),
    "lowrank": ("full", 0.76, 0.94, 0.18, 0.9),
    "lora": ("lora", 1.0, 0.021, 0.24, 1.2),
    "lowrank_lora": ("lora", 0.76, 0.024, 0.26, 1.5),
}
WORDS = ["the", "a", "of", "light", "seven", "house", "water", "before", "evening", "street", "colour", "number"]
FOLDER = "reduction0.24-1f0c9a3e"
LANGUAGES = ["de", "en", "es", "fr", "nl"]
OPTIONS = ScoreOptions(bootstrap=100)
TESTED = {"asr": {"tests": ["test"], "decoders": ["greedy"]}, "lid": {"tests": ["test"], "decoders": ["scores"]}}
MORE = TESTED | {"asr": {"tests": ["in_domain", "out_of_domain"], "decoders": ["greedy", "beam4"]}}
# What a test set or a decoder does to the word error.
HARDER = {"out_of_domain": 1.6, "beam4": 0.9}


def systems() -> list[dict[str, str]]:
    """The grid as the stage's config lists it; the unadapted base is last, the report has to bring it to the top."""
    methods = [*list(METHODS)[1:], "base"]
    return [
        {"base": base, "task": task, "method": method, "type": TASKS[task]}
        | ({"factorisation": FOLDER} if METHODS[method][1] < 1 else {})
        for base in BASES
        for task in TASKS
        for method in methods
    ]


def manifest(path: Path, stage: str, metrics: dict[str, Any], cfg: dict[str, Any], **cost: Any) -> None:
    """Write a manifest and what the run cost as the stage would, without outputs."""
    record = {"stage": stage, "outputs": {}, "metrics": metrics, "cfg": cfg, "seed": 1, "device": "cpu", "code": "c0de"}
    spent = {"stage": stage, "seconds": 12.5, "peak_bytes": 10**9, "host": "node1", "versions": {"torch": "2.8.0"}}
    write_json(path, record)
    write_json(path.with_name(f"{path.stem}.cost.json"), spent | cost)


def score_asr(rng: random.Random, error: float, test: str, folder: Path) -> dict[str, Any]:
    """Metrics of 60 utterances in which each word is wrong with probability ``error``; writes their table."""
    pairs, said = {}, random.Random(test)
    for i in range(60):
        ref = said.choices(WORDS, k=said.randint(3, 9))
        hyp = [rng.choice([word[::-1], word[:-1] + "s", ""]) if rng.random() < error else word for word in ref]
        pairs[f"utt{i:03}"] = (ref, [word for word in hyp if word])
    names = {name: LANGUAGES[i % 3] for i, name in enumerate(pairs)}
    table = asr.per_utterance(pairs).drop(columns=["ref", "hyp"])
    write_table(folder / utterances.NAME, *utterances.rows(table, {"language": names}))
    return {"type": "asr", **asr.score(pairs, OPTIONS, 1, languages=names)}


def score_lid(rng: random.Random, noise: float, folder: Path) -> dict[str, Any]:
    """Metrics of 110 segments (the last language has more) whose true language leads by 2 under Gaussian noise, and
    their table."""
    truth = [i % 5 for i in range(100)] + [4] * 10
    draw = np.random.default_rng(rng.randrange(10**6))
    scores = 2.0 * np.eye(5)[truth] + noise * draw.normal(size=(110, 5))
    ids = [f"seg{i:03}" for i in range(110)]
    labels = {name: LANGUAGES[i] for name, i in zip(ids, truth, strict=True)}
    table = utterances.of_languages(ids, LANGUAGES, scores, labels, OPTIONS)
    write_table(folder / utterances.NAME, *utterances.rows(table, {"language": labels}))
    return {"type": "lid", **lid.score(ids, LANGUAGES, scores, labels, OPTIONS, 1)}


def make_tree(root: Path, seed: int = 1, tested: dict[str, Any] = TESTED) -> dict[str, Any]:
    """Write the tree under ``root``; returns the stage's config."""
    rng = random.Random(seed)
    corpus(root)
    for base, dense in BASES.items():
        manifest(root / f"base/{base}/base.json", "base", {"source": "scratch", "parameters": dense}, {"family": base})
        factorise(root / f"factorise/{base}/{FOLDER}/factorise.json", LAYERS[base], rng)
        for method in METHODS:
            for task in TASKS:
                system(root, rng, base, task, method, tested)
    return {"experiment": "A small experiment", "systems": systems(), "tasks": tested}


def system(root: Path, rng: random.Random, base: str, task: str, method: str, tested: dict[str, Any] = TESTED) -> None:
    """Train, decode and score of one system."""
    adapt, share, trained, error, noise = METHODS[method]
    total, name = round(BASES[base] * share), f"{base}/{task}/{method}"
    # The classifier of a task that the base has no head for is trained even where nothing else is.
    new_head = 4_000 if adapt == "none" and task == "lid" else 0
    metrics = {
        "adapt": adapt,
        "parameters_total": total,
        "parameters_dense": BASES[base],
        "parameters_trained": round(total * trained) + new_head,
        "set_aside": {"no text": 1, "too long for CTC": 2},
    }
    cost = {
        "peak_bytes": int(0.8e9 + 1.2e8 * (4 * share * trained + 1)),
        "seconds_train": 0.0
        if adapt == "none" and not new_head
        else rng.uniform(80, 200) * (0.6 + 0.4 * (trained > 0.1)),
        "speech_seconds_per_second": rng.uniform(20, 40),
    }
    cfg = {"seed": 1, "adapt": adapt, "training": {"epochs": 8, "lr": 3e-4}}
    if adapt == "lora":
        cfg["lora"] = {"rank": 8, "alpha": 16.0}
    folder = root / "train" / name
    manifest(folder / "train.json", "train", metrics, cfg, **cost)
    write_table(
        folder / "set_aside.tsv",
        ("id", "reason", "detail"),
        [
            ("utt7", "no text", ""),
            ("utt8", "too long for CTC", "52 labels, 40 frames"),
            ("utt9", "too long for CTC", ""),
        ],
    )
    rows = []
    if trained:
        for epoch in range(1, 9):
            level = (error if task == "asr" else noise / 8) + 0.8 * 2.0**-epoch
            row = {"step": 20 * epoch, "epoch": epoch, "loss": 3 * level * rng.uniform(0.95, 1.05), "lr": 3e-4}
            if epoch % 2 == 0:
                row |= {"dev_loss": 3.3 * level, "dev_metric": min(1.0, level * rng.uniform(0.95, 1.1))}
            rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for decoder in tested[task]["decoders"]:
        for test in tested[task]["tests"]:
            place = f"{name}/{decoder}/{test}"
            looping = 3 if (base, adapt, share) == ("whisper", "none", 1.0) and task == "asr" else 0
            decoded = {"utterances": 60, "speech_seconds": 240.5, "set_aside": {}}
            decoded |= {"stopped": {"loop": looping} if looping else {}}
            front = 0.004 if base == "wav2vec2" else 0.0
            cost = {"seconds_decode": 2.4 * share, "rtf": 0.01 * share, "frontend_rtf": front, "network_rtf": 0.0}
            cfg = {"task": {"type": TASKS[task]}, "decoder": {"kind": decoder}}
            manifest(root / "decode" / place / "decode.json", "decode", decoded, cfg, **cost)
            wrong = min(0.95, error * HARDER.get(test, 1.0) * HARDER.get(decoder, 1.0))
            scores = root / "score" / place
            scored = score_asr(rng, wrong, test, scores) if TASKS[task] == "asr" else score_lid(rng, noise, scores)
            manifest(scores / "score.json", "score", scored, {"seed": 1, "type": TASKS[task]})


def corpus(root: Path) -> None:
    """Manifests and lists of a corpus of three splits, and what they share."""
    folder = root / "corpus/voices"
    for split, n in (("train", 1200), ("dev", 120), ("test", 120)):
        languages = dict.fromkeys(LANGUAGES, n // 5)
        metrics = {"utterances": n, "seconds": 4.1 * n, "speakers": n // 40, "languages": languages, "set_aside": {}}
        manifest(folder / f"{split}.json", "corpus", metrics, {"seed": 1})
        write_json(folder / f"{split}.audio.json", {})
        rows = [("utt1", "unreadable audio", "audio/utt1.ogg: no frames")] if split == "train" else []
        write_table(folder / f"{split}.set_aside.tsv", ("id", "reason", "detail"), rows)
    shared = {"role": "train", "split": "voices/train", "other_role": "dev", "other_split": "voices/dev"}
    found = {"splits": [], "shared_speakers": [shared | {"speakers": 2, "examples": ["spk1", "spk7"]}]}
    manifest(root / "overlap/asr/overlap.json", "overlap", found, {})
    manifest(root / "overlap/lid/overlap.json", "overlap", {"splits": [], "shared_speakers": []}, {})


def factorise(path: Path, count: int, rng: random.Random) -> None:
    """Report of the factorisation of ``count`` layers."""
    layers = [
        {
            "name": f"encoder.layers.{i // 2}.feed_forward.{('intermediate_dense', 'output_dense')[i % 2]}",
            "d_out": (768, 192)[i % 2],
            "d_in": (192, 768)[i % 2],
            "rank": 96,
            "before": 148_224,
            "after": 92_928,
            "energy": rng.uniform(0.93, 0.99),
            "weight_error": rng.uniform(0.1, 0.3),
            "output_error": None,
            "spectrum": [1.0, 0.5, 0.25],
        }
        for i in range(count)
    ]
    manifest(path, "factorise", {"layers": layers}, {"reduction": 0.24})


def run(root: Path, cfg: dict[str, Any]) -> int:
    """The stage on the tree; its exit code."""
    from lowrank_speech.stages import report

    write_json(root / "cfg.json", cfg)
    out = root / "report"
    return report.main(
        [f"--cfg=@{root / 'cfg.json'}", "--root", str(root), "--out", str(out), "--manifest", str(out / "report.json")]
    )


if __name__ == "__main__":
    raise SystemExit(run(Path(sys.argv[1]), make_tree(Path(sys.argv[1]), tested=MORE if sys.argv[2:] else TESTED)))
