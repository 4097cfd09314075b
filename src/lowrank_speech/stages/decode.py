"""Stage decode: a system and test features -> hypotheses, or language scores.

inputs   --model     the system's model folder (stage train)
         --cuts      test cuts with features (stage features)
         --lang      recognition: token set (stage lang)
outputs  --out       folder with
           hyp.txt, ref.txt, languages.tsv    recognition: Kaldi text, both normalised; the language of each utterance
           scores.tsv, labels.tsv             language recognition: log-likelihoods per language; the true language
           speakers.tsv                       the speaker of each utterance
           set_aside.tsv                      utterances that cannot be scored, with the reason
         --manifest  utterances, seconds of speech, seconds of decoding, real-time factors

The time is that of the forward pass and the search on loaded features, one warm-up batch before; reading is left out,
and the front end that the stage features ran stands beside it (``frontend_rtf``).

python -m lowrank_speech.stages.decode --cfg '{"task":{"type":"asr"},"decode":{}}' --model system/model
    --cuts test.jsonl.gz --lang lang --out decoded --manifest decoded/decode.json
"""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.artefact import Manifest, write_table, write_text
from lowrank_speech.errors import UserError
from lowrank_speech.stages import common

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segment:
    """Utterances are cut to at most ``seconds`` (their middle)."""

    seconds: float | None = None


@dataclass(frozen=True)
class Task:
    """``asr`` or ``lid``; see the stage train."""

    type: Literal["asr", "lid"]
    languages: tuple[str, ...] = ()
    segment: Segment | None = None


@dataclass(frozen=True)
class Decode:
    """``language``: what Whisper is told: each utterance's own (``given``), or nothing (``detect``).

    ``priors``: divide the classifier's posteriors by the training shares of the languages.
    """

    batch_seconds: float = 60.0
    language: Literal["given", "detect"] = "given"
    max_new_tokens: int | None = None
    priors: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class Config:
    """The stage's slice."""

    task: Task
    decode: Decode = field(default_factory=Decode)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help="model folder of the system")
    parser.add_argument("--cuts", required=True, type=Path, help="test cuts with features, .jsonl.gz")
    parser.add_argument("--lang", type=Path, help="recognition: folder of the stage lang")
    parser.add_argument("--out", required=True, type=Path, help="output: folder of hypotheses or scores")


def body(arguments: argparse.Namespace) -> None:
    cfg = common.read_cfg(arguments.cfg)
    config = common.from_json(Config, cfg)
    common.existing(arguments.model, "--model")
    common.existing(arguments.cuts, "--cuts")
    work = _Work(arguments, config)
    manifest = Manifest("decode", cfg, device=str(work.device))
    outputs, numbers = (work.recognise if config.task.type == "asr" else work.identify)(arguments.out)
    outputs.append(arguments.out / "set_aside.tsv")
    write_table(outputs[-1], ("id", "reason", "detail"), work.set_aside.rows)
    if work.set_aside.rows:
        log.warning("set aside: %s; see %s", work.set_aside.summary(), outputs[-1])
    numbers |= {
        "seconds": round(work.seconds, 4),
        "speech_seconds": round(work.speech, 3),
        "rtf": round(work.seconds / work.speech, 6),
        "frontend_rtf": _frontend_rtf(arguments.cuts),
        "set_aside": work.set_aside.counts(),
    }
    log.info("%d utterances, %.1f s of speech in %.2f s", numbers["utterances"], work.speech, work.seconds)
    manifest.write(arguments.manifest, outputs, numbers, peak_bytes=work.peak())


def _frontend_rtf(cuts: Path) -> float | None:
    """The front end's time per second of speech, from the manifest of the stage features beside the cuts."""
    manifest = cuts.with_name(cuts.name.removesuffix(".jsonl.gz") + ".json")
    if not manifest.is_file():
        return None
    return json.loads(manifest.read_text(encoding="utf-8"))["numbers"].get("frontend_rtf")


class _Work:
    """Runs the system over the test cuts and keeps the time."""

    def __init__(self, arguments: argparse.Namespace, config: Config):
        import torch

        from lowrank_speech.features.batches import Loader, segment
        from lowrank_speech.features.inputs import inputs_of
        from lowrank_speech.features.store import fitting, load_cuts
        from lowrank_speech.lang.select import SetAside, fits_window, one_supervision
        from lowrank_speech.models.device import pick_device
        from lowrank_speech.models.folder import load_model

        self.torch, self.arguments, self.config = torch, arguments, config
        self.device = pick_device(config.decode.device)
        self.model = load_model(arguments.model).to(self.device)
        inputs = inputs_of(arguments.model)
        self.loader, self.set_aside = Loader(inputs), SetAside()
        seconds = config.task.segment.seconds if config.task.segment else None
        cuts = fitting(segment(load_cuts(arguments.cuts), seconds), self.model.feature_size, arguments.cuts)
        cuts = one_supervision(cuts, self.set_aside)
        self.cuts = list(fits_window(cuts, self.model.window_seconds, self.set_aside))
        self.seconds = self.speech = 0.0

    def peak(self) -> int | None:
        return self.torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def _over(self, cuts: list, decode: Any) -> list[tuple[Any, Any]]:
        """(cut, result) of every cut; ``decode(features, lengths, cuts)`` gives one result a row."""
        results, cuts = [], sorted(cuts, key=lambda cut: cut.id)
        with self.torch.inference_mode():
            for n, batch in enumerate(self.loader.all(cuts, self.config.decode.batch_seconds)):
                rows = batch["features"].to(self.device), batch["lengths"].to(self.device), batch["cuts"]
                if n == 0:
                    decode(*rows)  # the first call pays for caches and lazy imports
                self._synchronise()
                start = time.perf_counter()
                found = decode(*rows)
                self._synchronise()
                self.seconds += time.perf_counter() - start
                self.speech += sum(cut.duration for cut in batch["cuts"])
                results += zip(batch["cuts"], found, strict=True)
        return sorted(results, key=lambda pair: pair[0].id)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)

    def recognise(self, out: Path) -> tuple[list[Path], dict[str, Any]]:
        from lowrank_speech.decoding.ctc import greedy
        from lowrank_speech.decoding.whisper import generate
        from lowrank_speech.lang.load import Lang
        from lowrank_speech.lang.select import require, usable_text
        from lowrank_speech.models.text import decoder_tokens

        if self.arguments.lang is None:
            raise UserError("decode: a recognition task needs --lang")
        lang = Lang.load(common.existing(self.arguments.lang, "--lang"))
        cuts = list(usable_text(self.cuts, lang, self.set_aside))
        require(cuts, f"decode: {self.arguments.cuts}", self.set_aside)
        if self.model.task == "ctc":
            tokens = lang.tokens
            if tokens is None or self.model.meta.lang_sha256 != lang.sha256:
                raise UserError(
                    f"decode: {self.arguments.model} was trained on other tokens than those in {self.arguments.lang}"
                )

            def decode(features, lengths, _):
                return greedy(self.model, features, lengths)
        elif self.model.task == "seq2seq":
            tokens = decoder_tokens(self.model, self.arguments.model, lang)
            told = self.config.decode.language == "given"

            def decode(features, lengths, batch):
                languages = [cut.supervisions[0].language for cut in batch] if told else None
                return generate(self.model, features, lengths, tokens, languages, self.config.decode.max_new_tokens)
        else:
            raise UserError(f"decode: {self.arguments.model} is a model for {self.model.task}, not for recognition")
        hyp, ref, unseen = [], [], {}
        for cut, ids in self._over(cuts, decode):
            supervision = cut.supervisions[0]
            reference = lang.normalise(supervision.text, supervision.language)
            for character in lang.tokens.unseen(reference) if lang.tokens is not None else ():
                unseen[character] = unseen.get(character, 0) + 1
            hyp.append(f"{cut.id} {lang.normalise(tokens.decode(ids), supervision.language)}".rstrip() + "\n")
            ref.append(f"{cut.id} {reference}\n")
        if unseen:
            shown = ", ".join(f"{c!r} in {n}" for c, n in sorted(unseen.items()))
            log.warning("characters of the references that training never saw (each counts as an error): %s", shown)
        write_text(out / "hyp.txt", "".join(hyp))
        write_text(out / "ref.txt", "".join(ref))
        outputs = [out / "hyp.txt", out / "ref.txt", _map(out, cuts, "language"), _map(out, cuts, "speaker")]
        return outputs, {"utterances": len(hyp), "unseen_characters": dict(sorted(unseen.items()))}

    def identify(self, out: Path) -> tuple[list[Path], dict[str, Any]]:
        from lowrank_speech.decoding.language import scores
        from lowrank_speech.lang.select import known_language, require

        if self.model.task != "classify":
            raise UserError(f"decode: {self.arguments.model} is a model for {self.model.task}, not for classification")
        labels = self.model.meta.labels
        cuts = list(known_language(self.cuts, labels, self.set_aside))
        require(cuts, f"decode: {self.arguments.cuts}", self.set_aside)
        priors = self.model.meta.priors if self.config.decode.priors else None
        found = self._over(cuts, lambda features, lengths, _: scores(self.model, features, lengths, priors))
        table = [(cut.id, *(f"{value:.6f}" for value in row.tolist())) for cut, row in found]
        write_table(out / "scores.tsv", ("id", *labels), table)
        truth = [(cut.id, cut.supervisions[0].language) for cut, _ in found]
        write_table(out / "labels.tsv", ("id", "language"), truth)
        return [out / "scores.tsv", out / "labels.tsv", _map(out, cuts, "speaker")], {"utterances": len(found)}


def _map(out: Path, cuts: list, what: str) -> Path:
    """languages.tsv or speakers.tsv; only a header where one utterance lacks it: half a breakdown would mislead."""
    rows = sorted((cut.id, getattr(cut.supervisions[0], what) or "") for cut in cuts)
    if not all(value for _, value in rows):
        rows = []
    write_table(out / f"{what}s.tsv", ("id", what), rows)
    return out / f"{what}s.tsv"


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("decode", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
