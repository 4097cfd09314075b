"""Stage decode: a system, one decoder and test cuts -> hypotheses, or language scores.

inputs   --model      the system's model folder (stage train)
         --emissions  instead of the model, for decoders that read emissions: folder of the stage emissions
         --cuts       test cuts with features (stage features)
         --lang       recognition: token set (stage lang)
         --lm         for decoders with a language model: folder of the stage lm
         --graph      for decoders that search a graph: folder of the stage graph
         --rescore-lm for decoders that rescore: folder of the stage lm
         --tune       manifest of the stage tune: its best values replace those of the decoder
outputs  --out        folder with
           hyp.txt, ref.txt      recognition: Kaldi text, both normalised
           hyp_raw.txt, ref_raw.txt   recognition: the same before normalisation, with tags replaced
           hyp_tokens.txt, ref_tokens.txt   recognition: tokens as decoded, and those of ref.txt, as symbols
           hypotheses.jsonl      recognition: an object for each utterance with id, text (as in hyp.txt), score (log
                                 probability, or null), and optionally: nbest (text, raw text as in hyp_raw.txt, and
                                 score of each, the best first), words (text, start, end in seconds, score), segments
                                 (text, start, end), language (if the decoder detected it), no_speech (a probability),
                                 stopped (bound or loop, if the decoder stopped the utterance; nothing, empty or
                                 no_speech, if there is no text)
           languages.tsv         recognition: the language of each utterance
           seconds.tsv           the duration of each utterance
           scores.tsv            language recognition: log-likelihoods, a column for each language (one more with the
                                 decoder's ``out_of_set``)
           embeddings.safetensors   language recognition, kind: embeddings: (n, E) in the order of scores.tsv
           labels.tsv            language recognition: the true language of each utterance
           sources.tsv           language recognition: the source of each utterance, if supervisions have one
                                 (``custom: source``); else only the header
           speakers.tsv          the speaker of each utterance
           set_aside.tsv         utterances that cannot be scored, with the reason
         --manifest   number of utterances, hypotheses that the decoder stopped, real-time factors

cfg      task         type (asr, lid), segment
         decoder      kind (default: greedy, or scores for lid) and its keys; docs/stages.md lists the kinds
         cut          language recognition: the piece of each utterance to decode (seconds, place, shorter, seed)

The measured time includes the network and the search on loaded features, after one warm-up batch, but not reading
files. Costs of earlier stages are copied: ``frontend_rtf`` (stage features) and ``network_rtf`` (stage emissions).

python -m lowrank_speech.stages.decode --cfg '{"task":{"type":"asr"},"decoder":{"kind":"greedy"}}' --model system/model
    --cuts test.jsonl.gz --lang lang --out decoded --manifest decoded/decode.json
"""

import argparse
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import atomic, read_manifest, write_table, write_text
from lowrank_speech.decoding import registry
from lowrank_speech.decoding.base import Hypothesis, Runtime
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, resolved, settings
from lowrank_speech.stages import common, decoding
from lowrank_speech.stages.task import Cut, Task

log = logging.getLogger(__name__)

STOPPED = {
    "bound": "reached their token limit",
    "loop": "only repeated themselves",
    "nothing": "are empty, because nothing survived the beam",
    "empty": "have no frame of speech, so they are empty",
    "no_speech": "have no speech, by its no-speech probability, so they are empty",
}


@settings
class Config:
    """The stage's slice."""

    task: Task = key(REQUIRED, "the task of the system")
    decoder: dict[str, Any] = key(None, "kind of the decoder, and its keys", default_factory=dict)
    cut: Cut | None = key(None, "lid: the piece of each utterance to decode; null: as task.segment says")

    def __post_init__(self) -> None:
        registry.check(self.task.type, self.decoder)
        if self.cut is not None and self.task.type != "lid":
            raise ValueError("cut cuts the audio, but not the transcript; only tasks of type lid take it: remove it")


def add(parser: argparse.ArgumentParser) -> None:
    decoding.add_inputs(parser, "test cuts")
    parser.add_argument(
        "--tune", type=Path, help="tune.json of the stage tune, whose best values replace the decoder's"
    )
    parser.add_argument("--out", required=True, type=Path, help="output: folder of hypotheses or scores")


def body(run: common.Run) -> None:
    arguments, config = run.arguments, run.config
    tuned = _tuned(arguments.tune, config.decoder)
    work = _Work("decode", arguments, config.task, config.decoder | tuned, run.runtime, config.cut)
    run.cfg["decoder"] = resolved(work.settings)
    outputs, metrics = (work.recognise if config.task.type == "asr" else work.identify)(arguments.out)
    run.device = str(work.source.device)  # a decoder that reads emissions chooses it
    outputs.append(run.write_set_aside(arguments.out / "set_aside.tsv", work.set_aside.rows))
    clock = work.clock
    metrics |= {"tuned": tuned} if tuned else {}
    metrics |= {"speech_seconds": round(clock.speech, 3), "set_aside": work.set_aside.counts()}
    cost = {"seconds_decode": round(clock.seconds, 4), "rtf": round(clock.seconds / clock.speech, 6)}
    cost |= work.earlier_costs()
    log.info("%d utterances, %.1f s of speech in %.2f s", metrics["utterances"], clock.speech, clock.seconds)
    run.finish(outputs, metrics, cost, peak_bytes=work.source.peak())


def _tuned(path: Path | None, decoder: Mapping[str, Any]) -> dict[str, Any]:
    """The best values of the stage tune. UserError: they are not of this decoder."""
    if path is None:
        return {}
    try:
        record = read_manifest(common.existing(path, "--tune"), "tune")
        best, kind = record["metrics"]["best"], record["cfg"]["decoder"]["kind"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"--tune: {path} is not a manifest of the stage tune ({error}); run the stage again") from error
    if kind != decoder.get("kind"):
        raise UserError(f"--tune: {path} is of a decoder of kind {kind}, not {decoder.get('kind')}; give its own")
    return best


class _Work(decoding.Work):
    """Decodes the test cuts and writes what came out."""

    def recognise(self, out: Path) -> tuple[list[Path], dict[str, Any]]:
        from lowrank_speech.decoding.sources import spoken_seconds
        from lowrank_speech.decoding.symbols import symbols_of

        lang, cuts = self.transcribed()
        found = self.decoded(cuts, lang, self.settings)
        stems = ("hyp", "ref", "hyp_raw", "ref_raw", "hyp_tokens", "ref_tokens")
        texts: dict[str, list[str]] = {stem: [] for stem in stems}
        symbols = symbols_of(self.source, lang)
        rows, unseen = [], Counter()
        for cut, hypothesis in found:
            supervision = cut.supervisions[0]
            reference = lang.normalise(supervision.text, supervision.language)
            unseen.update(lang.tokens.unseen(reference) if lang.tokens is not None else ())
            texts["hyp"].append(lang.normalise(hypothesis.text, supervision.language))
            texts["ref"].append(reference)
            texts["hyp_raw"].append(lang.written(hypothesis.text, supervision.language))
            texts["ref_raw"].append(lang.written(supervision.text, supervision.language))
            texts["hyp_tokens"].append(" ".join(symbols.of_ids(hypothesis.ids)))
            texts["ref_tokens"].append(" ".join(symbols.of_text(reference, supervision.language)))
            forms = (partial(form, language=supervision.language) for form in (lang.normalise, lang.written))
            rows.append(_row(cut.id, hypothesis, *forms))
        if unseen:
            shown = ", ".join(f"{c!r} in {n}" for c, n in sorted(unseen.items()))
            log.warning("the references have characters that the token set lacks; each is an error: %s", shown)
        names = [cut.id for cut, _ in found]
        for stem, lines in texts.items():
            write_text(
                out / f"{stem}.txt", "".join(f"{n} {t}".rstrip() + "\n" for n, t in zip(names, lines, strict=True))
            )
        write_text(out / "hypotheses.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        outputs = [*(out / f"{stem}.txt" for stem in texts), out / "hypotheses.jsonl"]
        cuts = [cut for cut, _ in found]
        outputs += [_map(out, cuts, "language"), _map(out, cuts, "speaker"), out / "seconds.tsv"]
        write_table(outputs[-1], ("id", "seconds"), [(cut.id, round(spoken_seconds(cut), 3)) for cut in cuts])
        metrics = {"utterances": len(names), "unseen_characters": dict(sorted(unseen.items()))}
        return outputs, metrics | _noticed([hypothesis for _, hypothesis in found], out / "hypotheses.jsonl")

    def identify(self, out: Path) -> tuple[list[Path], dict[str, Any]]:
        from lowrank_speech.decoding.language.posteriors import labels_of
        from lowrank_speech.decoding.sources import spoken_seconds
        from lowrank_speech.lang.select import known_language, labelled, require

        labels, other = labels_of(self.source, self.settings), self.settings.out_of_set
        accepted = (
            known_language(self.cuts, labels, self.set_aside) if other is None else labelled(self.cuts, self.set_aside)
        )
        cuts = list(accepted)
        require(cuts, f"decode: {self.arguments.cuts}", self.set_aside)
        found = self.decoded(cuts, None, self.settings)
        cuts = [cut for cut, _ in found]
        table = [(cut.id, *(f"{value:.6f}" for value in hypothesis.scores)) for cut, hypothesis in found]
        write_table(out / "scores.tsv", ("id", *labels), table)
        spoken = [(cut.id, cut.supervisions[0].language) for cut in cuts]
        write_table(
            out / "labels.tsv", ("id", "language"), [(name, one if one in labels else other) for name, one in spoken]
        )
        seconds = [(cut.id, f"{spoken_seconds(cut):.3f}") for cut in cuts]
        write_table(out / "seconds.tsv", ("id", "seconds"), seconds)
        names = ("scores.tsv", "labels.tsv", "seconds.tsv")
        outputs = [*(out / name for name in names), _map(out, cuts, "source"), _map(out, cuts, "speaker")]
        if found[0][1].embedding:
            outputs.append(_embeddings(out / "embeddings.safetensors", found))
        else:
            (out / "embeddings.safetensors").unlink(missing_ok=True)  # of another decoder of the same name
        return outputs, {"utterances": len(found)}


def _embeddings(path: Path, found: Sequence[tuple[Any, Hypothesis]]) -> Path:
    """Write the embeddings (n, E) float32, in the order of scores.tsv."""
    import numpy as np
    from safetensors.numpy import save_file

    with atomic(path) as temporary:
        save_file({"embeddings": np.array([one.embedding for _, one in found], dtype=np.float32)}, temporary)
    return path


def _row(
    name: str, hypothesis: Hypothesis, normalise: Callable[[str], str], written: Callable[[str], str]
) -> dict[str, Any]:
    """A line of hypotheses.jsonl. Scores have four decimals, times have three."""
    row: dict[str, Any] = {"id": name, "text": normalise(hypothesis.text), "score": _rounded(hypothesis.score, 4)}
    if hypothesis.nbest:
        row["nbest"] = [
            {"text": normalise(h.text), "raw": written(h.text), "score": _rounded(h.score, 4)} for h in hypothesis.nbest
        ]
    if hypothesis.words:
        row["words"] = [
            {"text": w.text, "start": round(w.start, 3), "end": round(w.end, 3), "score": _rounded(w.score, 4)}
            for w in hypothesis.words
        ]
    if hypothesis.segments:
        row["segments"] = [
            {"text": s.text, "start": round(s.start, 3), "end": round(s.end, 3)} for s in hypothesis.segments
        ]
    if hypothesis.no_speech is not None:
        row["no_speech"] = round(hypothesis.no_speech, 4)
    return row | {name: value for name in ("language", "stopped") if (value := getattr(hypothesis, name)) is not None}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _noticed(hypotheses: Iterable[Hypothesis], where: Path) -> dict[str, Any]:
    """How many hypotheses the decoder stopped (logged as warnings), and for how many it detected the language."""
    stopped = Counter(h.stopped for h in hypotheses if h.stopped is not None)
    detected = Counter(h.language for h in hypotheses if h.language is not None)
    for why, number in sorted(stopped.items()):
        log.warning("the decoder stopped %d hypotheses that %s; see `stopped` in %s", number, STOPPED[why], where)
    return {"stopped": dict(sorted(stopped.items())), "language_detected": dict(sorted(detected.items()))}


def _map(out: Path, cuts: list, what: str) -> Path:
    """Write languages.tsv, speakers.tsv or sources.tsv; only its header if any utterance lacks the value."""
    rows = sorted((cut.id, str(_value(cut.supervisions[0], what) or "")) for cut in cuts)
    if not all(value for _, value in rows):
        rows = []
    write_table(out / f"{what}s.tsv", ("id", what), rows)
    return out / f"{what}s.tsv"


def _value(supervision: Any, what: str) -> Any:
    """A field of a supervision, or a value of its ``custom``."""
    custom = supervision.custom or {}
    return custom.get(what) if what == "source" else getattr(supervision, what)


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("decode", __doc__, Config, add, body, argv, Runtime)


if __name__ == "__main__":
    raise SystemExit(main())
