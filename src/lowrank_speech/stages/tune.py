"""Stage tune: a system, one decoder with a grid of scales, and dev cuts -> the scales with the lowest word error rate.

inputs   those of the stage decode, for the dev split: --model or --emissions, --cuts, --lang, and --lm
outputs  --manifest   ``tune.json``; metrics: the WER of every point (points), the best point (best, wer), counts

cfg      task         type (asr), segment
         decoder      kind and keys of the decoder
         tune         key of the decoder -> values
         normaliser   how the stage score compares words; ``numbers``: likewise

Decoders of stored emissions read those, which are computed once; Whisper's run the network for every point. WER is that
of the stage score. If several points have the lowest WER, the one with the smallest values is taken: keys in
alphabetical order, the first one counts most.

python -m lowrank_speech.stages.tune --cfg '{"task":{"type":"asr"},"decoder":{"kind":"beam","lm":"words3"},
    "tune":{"lm_weight":[0,0.5,1]}}' --emissions emissions/dev --cuts dev.jsonl.gz --lang lang --lm lm/words3
    --manifest tune/tune.json
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from typing import Any

from lowrank_speech.decoding import registry, tuning
from lowrank_speech.decoding.base import Hypothesis, Runtime
from lowrank_speech.errors import UserError
from lowrank_speech.scoring.options import Normaliser, Numbers
from lowrank_speech.settings import REQUIRED, key, resolved, settings
from lowrank_speech.stages import common, decoding
from lowrank_speech.stages.task import Task

log = logging.getLogger(__name__)


@settings
class Config:
    """The stage's slice."""

    task: Task = key(REQUIRED, "the task of the system")
    decoder: dict[str, Any] = key(REQUIRED, "kind of the decoder, and its keys")
    tune: dict[str, tuple[float, ...]] = key(REQUIRED, "key of the decoder -> values to try")
    normaliser: Normaliser = key("none", "normalises references and hypotheses before their words are compared")
    numbers: Numbers = key("as-written", "words: spell out digits first")

    def __post_init__(self) -> None:
        registry.check(self.task.type, self.decoder)
        if self.task.type != "asr":
            raise ValueError("task.type: only decoders of recognition can be tuned, by their word error rate")
        if not self.tune:
            raise ValueError("tune is empty; name at least one key of the decoder, with the values to try")


def add(parser: argparse.ArgumentParser) -> None:
    decoding.add_inputs(parser, "dev cuts")


def body(run: common.Run) -> None:
    from lowrank_speech.scoring import asr

    arguments, config = run.arguments, run.config
    work = decoding.Work("tune", arguments, config.task, config.decoder, run.runtime)
    run.cfg["decoder"], run.device = resolved(work.settings), str(work.source.device)
    grid = list(tuning.grid(work.module.Settings, run.cfg["decoder"], config.tune, "decoder"))
    lang, cuts = work.transcribed()
    points, compared = [], _comparison(config, lang)
    for point, tried in grid:
        counts = [asr.count(*compared(*pair)) for pair in work.decoded(cuts, lang, tried)]
        words, errors = sum(n for n, *_ in counts), sum(sum(wrong) for _, *wrong in counts)
        if not words:
            raise UserError(
                f"tune: the normaliser {config.normaliser} leaves nothing of any reference in {arguments.cuts}; set "
                f"another score.normaliser"
            )
        points.append({**point, "wer": errors / words, "errors": errors})
        log.info("%s: WER %.2f %%", shown(point), 100 * errors / words)
    best = min(range(len(points)), key=lambda number: points[number]["errors"])  # the first one with the fewest
    log.info("best of %d points: %s, WER %.2f %% on dev", len(points), shown(grid[best][0]), 100 * points[best]["wer"])
    metrics = {
        "best": grid[best][0],
        "wer": points[best]["wer"],
        "words": words,
        "utterances": len(counts),
        "points": points,
        "set_aside": work.set_aside.counts(),
    }
    cost = {"seconds_tune": round(work.clock.seconds, 4)}
    run.finish([], metrics, cost, peak_bytes=work.source.peak())


def _comparison(config: Config, lang: Any) -> Callable[[Any, Hypothesis], tuple[list[str], list[str]]]:
    """(cut, hypothesis) -> the words of both sides that the stage score would compare."""
    normalise: Callable[[str, str | None], str] = lang.normalise
    if config.normaliser != "none":
        from lowrank_speech.lang.comparison import Comparison

        comparison = Comparison(config.normaliser, config.numbers)
        # As in the stage score, which normalises the text as it is written.
        normalise = lambda text, language: comparison(lang.written(text, language), language)  # noqa: E731

    def compared(cut: Any, hypothesis: Hypothesis) -> tuple[list[str], list[str]]:
        supervision = cut.supervisions[0]
        ref, hyp = (normalise(text, supervision.language) for text in (supervision.text, hypothesis.text))
        return ref.split(), hyp.split()

    return compared


def shown(point: dict[str, Any]) -> str:
    """``lm_weight 0.5, insertion 0``."""
    return ", ".join(f"{name} {value:g}" for name, value in point.items())


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("tune", __doc__, Config, add, body, argv, Runtime)


if __name__ == "__main__":
    raise SystemExit(main())
