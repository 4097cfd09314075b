"""Evaluate a model before and after compression: greedy decoding, error rates, a paired test on the same utterances.

test = TestSet.read(Path("test.tsv"), language=None, most=None)
before = Recogniser(model, folder, lang_folder, "cpu").texts(test)
result = compared(test, before, after, "whisper-english", seed=1)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lowrank_speech.decoding import registry
from lowrank_speech.decoding.sources import spoken_seconds
from lowrank_speech.errors import UserError
from lowrank_speech.factorising.speech import UNKNOWN, transcribed
from lowrank_speech.features.batches import Loader
from lowrank_speech.features.inputs import RATE
from lowrank_speech.features.store import fitting
from lowrank_speech.inference.naming import Found
from lowrank_speech.inference.network import open_network
from lowrank_speech.lang.comparison import Comparison
from lowrank_speech.lang.select import SetAside, fits_window, require
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.scoring import asr, paired
from lowrank_speech.scoring.bootstrap import units_of
from lowrank_speech.scoring.options import ScoreOptions

NORMALISERS = {"seq2seq": "whisper-english", "ctc": "house"}
"""Task of a model -> normaliser that its hypotheses are compared with by default (see ``normaliser_for``)."""
OVERLAP = "calibration has seen it"


@dataclass
class TestSet:
    """Cuts with transcripts; ``set_aside``: those that are not evaluated, with the reason."""

    __test__ = False  # not a test of pytest

    path: Path
    cuts: list[Any]
    set_aside: SetAside = field(default_factory=SetAside)

    @classmethod
    def read(cls, path: Path, language: str | None = None, most: int | None = None, seed: int = 1) -> "TestSet":
        """The utterances of ``path``, or ``most`` that ``seed`` draws; ``language`` is for those without one.

        UserError: there are no transcripts, or no recording can be opened.
        """
        cuts = [_at_rate(cut) for cut in transcribed(path, most, seed)]
        return cls(path, [in_language(cut, language) for cut in cuts])

    def without(self, seen: Sequence[Any]) -> None:
        """Set aside the utterances of the cuts ``seen``. UserError: none is left."""
        places = {_place(cut) for cut in seen}
        for cut in self.cuts:
            if _place(cut) in places:
                self.set_aside.add(cut.id, OVERLAP)
        self.cuts = [cut for cut in self.cuts if _place(cut) not in places]
        require(self.cuts, f"--evaluate {self.path}", self.set_aside)


class Recogniser:
    """Greedy decoding of a named model. UserError: it writes no text, or its folder has no tokenizer."""

    def __init__(self, found: Found, device: str = "auto"):
        self.network = open_network(found, device)
        task = self.network.task
        if task not in NORMALISERS:
            what = {"classify": "recognises languages", "body": "has no head"}.get(task, f"is for {task}")
            raise UserError(
                f"{found.name} {what}, so it writes no text to compare; leave out --evaluate: then the loss on "
                f"held-out calibration speech is measured"
            )
        module = registry.module("greedy", task)
        self.settings = module.Settings()
        self._decode = module.open(self.network, self.network.lang, self.settings)
        self._loader = Loader(self.network.inputs)

    @torch.inference_mode()
    def texts(self, test: TestSet) -> dict[str, str]:
        """Id -> hypothesis. Sets aside, in ``test``, the utterances that the model cannot take."""
        from tqdm import tqdm

        model = self.network.model
        cuts = fitting(test.cuts, model.feature_size, test.path)
        test.cuts = list(fits_window(cuts, model.window_seconds, test.set_aside))
        require(test.cuts, f"--evaluate {test.path}", test.set_aside)
        found: dict[str, str] = {}
        with tqdm(total=len(test.cuts), desc="decode", unit="utterance", disable=None) as bar:
            for batch in self._loader.all(test.cuts, self.settings.batch_seconds):
                batch |= {name: batch[name].to(self.network.device) for name in ("features", "lengths")}
                texts = [hypothesis.text for hypothesis in self._decode(batch)]
                found |= zip((cut.id for cut in batch["cuts"]), texts, strict=True)
                bar.update(len(texts))
        return found


def compared(
    test: TestSet, before: Mapping[str, str], after: Mapping[str, str], normaliser: str, bootstrap: int, seed: int
) -> dict[str, Any]:
    """Error rates before and after, with intervals, and the paired difference after - before.

    Returns ``utterances``, ``seconds``, ``normaliser``, ``set_aside`` (id, reason, detail), ``before`` and ``after``
    (rates, and their intervals as in ``scoring.asr.summary``), ``difference`` (metric ->
    ``scoring.paired.Difference``).
    """
    cuts = [cut for cut in test.cuts if cut.id in before and cut.id in after]
    options = ScoreOptions(bootstrap=bootstrap, normaliser=normaliser)
    comparison = Comparison(normaliser)
    spoken = {cut.id: cut.supervisions[0].language for cut in cuts if cut.supervisions[0].language != UNKNOWN}
    speakers = {cut.id: cut.supervisions[0].speaker for cut in cuts}
    known = speakers if all(speakers.values()) else None
    references = {cut.id: cut.supervisions[0].text.split() for cut in cuts}
    rates, resampled = {}, []
    for name, texts in (("after", after), ("before", before)):
        pairs = asr.pair(references, {cut.id: texts[cut.id].split() for cut in cuts})
        pairs, _ = asr.normalised(pairs, comparison, spoken)
        table = asr.per_utterance(pairs)
        units, _ = units_of(list(table.index), known, options.resample)
        found = asr.summary(table, units, options, seed)
        rates[name] = {key: found[key] for key in ("wer", "cer", "interval")}
        table = table.drop(columns=["ref", "hyp"])
        table["speaker"] = [(known or {}).get(cut.id, "") for cut in cuts]
        table["language"] = [spoken.get(cut.id, "") for cut in cuts]
        table["seconds"] = [spoken_seconds(cut) for cut in cuts]
        resampled.append(paired.resample(table, options, seed))
    difference = paired.differences(*resampled, names=("the compressed model", "the dense model"))
    return {
        "utterances": len(cuts),
        "seconds": round(sum(map(spoken_seconds, cuts)), 3),
        "normaliser": normaliser,
        "set_aside": [list(row) for row in test.set_aside.rows],
        "before": rates["before"],
        "after": rates["after"],
        "difference": {name: one.as_dict() for name, one in difference.items()},
    }


def normaliser_for(model: SpeechModel, cuts: Sequence[Any]) -> str:
    """The default normaliser. Whisper's for English takes utterances without a language for English, so it is only for
    models that know no other language, and for cuts whose languages are known."""
    unknown = any(cut.supervisions[0].language in (None, UNKNOWN) for cut in cuts)
    return "whisper-basic" if model.task == "seq2seq" and model.languages and unknown else NORMALISERS[model.task]


def in_language(cut: Any, language: str | None) -> Any:
    """The cut, in ``language`` if its supervision has none."""
    if language is not None:
        for supervision in cut.supervisions:
            if supervision.language in (None, UNKNOWN):
                supervision.language = language
    return cut


def _at_rate(cut: Any) -> Any:
    return cut if getattr(cut, "has_features", False) or cut.sampling_rate == RATE else cut.resample(RATE)


def _place(cut: Any) -> tuple[Any, ...]:
    """The recording of a cut and where it begins there; its id, if the recording is no file."""
    recording = getattr(cut, "recording", None)
    sources = (
        [] if recording is None else [str(Path(s.source).resolve()) for s in recording.sources if s.type == "file"]
    )
    return (*sources, round(cut.start, 2)) if sources else (cut.id,)
