"""Stage report: all scores and costs of an experiment -> results table, plots, one HTML page.

inputs   --root  the experiment's folder. For every system, below {base}/{task}/{method}/ (each manifest with the file
                 .cost.json beside it):
                   train/.../train.json                      parameters, memory and time; metrics.jsonl, set_aside.tsv
                   decode/.../{decoder}/{test}/decode.json   time per second of speech; set_aside.tsv
                   score/.../{decoder}/{test}/score.json     error rates or costs of language recognition, intervals;
                                                             utterances.tsv, for paired tests; {decoder} may be a back
                                                             end, of which backend/.../{backend}/backend.json is read
                 if they exist: corpus/{corpus}/{split}.json, base/{base}/base.json, overlap/{task}/overlap.json,
                 factorise/{base}/{factorisation}/factorise.json
outputs  --out   folder with
                   results.csv             a row per system, decoder and test set; raw: fractions, bytes, seconds
                   results.txt             a table for the terminal
                   comparisons.csv         paired tests of each system against its reference, a row per metric
                   seeds.csv               means and deviations over methods that differ only in the seed
                   error.png, cost.png, curves.png
                   report.html             everything on one page that needs no other file and no network
         --manifest  hashes of the outputs, number of systems and results, the three sentences at the top of the page

cfg      experiment  the title
         systems     list of {base, task, method, type, factorisation, decoders}, in the order of the report.
                     factorisation is the folder of the low-rank model, default: the one named after the method, if it
                     exists; decoders: if only some of the task's decode this system; backends: back end -> decoder
         tasks       task -> {tests, decoders, pieces}: names of its test sets and decoders, the main ones first; which
                     test sets cut one split to several lengths
         corpora     corpus -> its splits to describe; default: all under corpus/
         report      {dpi, mistakes, against}: resolution of the plots, rows of each table of errors, the method that
                     the others are compared with

python -m lowrank_speech.stages.report --root exp/default --out exp/default/report
    --manifest exp/default/report/report.json
    --cfg '{"experiment":"default","systems":[{"base":"wav2vec2","task":"asr","method":"full","type":"asr"}],
            "tasks":{"asr":{"tests":["test"],"decoders":["greedy"]}}}'
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, CountOrZero, key, settings
from lowrank_speech.stages import common

log = logging.getLogger(__name__)

Names = Annotated[tuple[str, ...], Field(min_length=1)]


@settings
class SystemConfig:
    """One system of the grid."""

    base: str = key(REQUIRED, "name of the base")
    task: str = key(REQUIRED, "name of the task")
    method: str = key(REQUIRED, "name of the method")
    type: Literal["asr", "lid"] = key(REQUIRED, "type of the task")
    factorisation: str | None = key(
        None, "folder of its low-rank model below factorise/{base}/; null: the one named after the method, if it exists"
    )
    decoders: Names | None = key(None, "its decoders, the main one first; null: all decoders of its task")
    backends: dict[str, str] | None = key(None, "its back ends, each with the decoder that it reads; null: none")


@settings
class TaskConfig:
    """Test sets and decoders of a task's systems."""

    tests: Names = key(REQUIRED, "test sets, the main one first")
    decoders: Names = key(REQUIRED, "decoders, the main one first")
    pieces: dict[str, str] | None = key(
        None, "test set -> its split, of the test sets whose split is cut to several lengths"
    )


@settings
class ReportConfig:
    """How the report looks."""

    dpi: int = key(130, "resolution of the plots, in dots per inch", ge=50, le=600)
    mistakes: CountOrZero = key(15, "rows in each table of word errors")
    against: str | None = key(
        None,
        "the method that the others are compared with, by a paired test on each test set; null: the first that fully "
        "fine-tunes the dense model",
    )


@settings
class Config:
    """The stage's slice."""

    experiment: str = key(REQUIRED, "title of the report")
    systems: tuple[SystemConfig, ...] = key(REQUIRED, "the systems, in the order of the report")
    tasks: dict[str, TaskConfig] = key(REQUIRED, "task -> its test sets and decoders")
    corpora: dict[str, tuple[str, ...]] | None = key(None, "corpus -> splits to describe; null: all")
    report: ReportConfig = key(None, "how the report looks", default_factory=ReportConfig)

    def __post_init__(self) -> None:
        if not self.systems:
            raise ValueError("systems is empty; give at least one system")
        names = [f"{s.base}/{s.task}/{s.method}" for s in self.systems]
        twice = [name for i, name in enumerate(names) if name in names[:i]]
        if twice:
            raise ValueError(f"systems: {twice[0]} is listed twice; remove one")
        methods = list(dict.fromkeys(s.method for s in self.systems))
        if self.report.against is not None and self.report.against not in methods:
            raise ValueError(
                f"report.against: {self.report.against!r} is not a method of the systems; expected one of: "
                f"{', '.join(methods)}"
            )
        missing = [s.task for s in self.systems if s.task not in self.tasks]
        if missing:
            raise ValueError(f"tasks: {missing[0]!r} is missing; give its tests and decoders")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", required=True, type=Path, help="the experiment's folder (config `output`)")
    parser.add_argument("--out", required=True, type=Path, help="output: folder for tables, plots and page")


def body(run: common.Run) -> None:
    config, root, out = run.config, common.existing(run.arguments.root, "--root"), run.arguments.out

    from lowrank_speech.reporting import (
        blocks,
        comparisons,
        confounds,
        data,
        durations,
        flags,
        headline,
        page,
        plots,
        results,
        seeds,
    )
    from lowrank_speech.reporting.manifests import load_manifest
    from lowrank_speech.reporting.mistakes import mistakes
    from lowrank_speech.reporting.provenance import provenance
    from lowrank_speech.reporting.systems import SystemName, read_systems

    tasks = config.tasks
    names = {
        SystemName(s.base, s.task, s.method, s.type, s.factorisation): (
            tasks[s.task].tests,
            s.decoders or tasks[s.task].decoders,
        )
        for s in config.systems
    }
    backends = {name: s.backends or {} for name, s in zip(names, config.systems, strict=True)}
    systems = read_systems(root, names, backends)
    found = [result for system in systems for result in system.results]
    if all(result.error is None for result in found):
        score = root / "score" / str(found[0]) / "score.json"
        raise UserError(f"none of the {len(found)} results has an error rate ({score} ...); score them again")
    log.info("%d systems with %d results read from %s", len(systems), len(found), root)
    splits = data.splits_of(root, config.corpora)
    pieces = {name: task.pieces for name, task in tasks.items() if task.pieces}
    tables = [
        data.corpora_table(root, splits),
        data.overlap_table(root, tasks),
        data.origins_table(root, tasks),
        data.set_aside_table(root, splits, systems),
        data.emptied_table(systems),
        data.stopped_table(systems),
        data.cut_table(systems),
        durations.table(systems, pieces),
        data.base_table(root, systems),
    ]
    layers = data.layer_tables(systems)
    against = config.report.against
    summary, headlines = headline.summary(systems, against), headline.headlines(systems, against)
    warned = confounds.warnings(root, systems, tasks)
    for warning in warned:
        log.warning("%s", warning)
    summary += [f"Warning: {warning}." for warning in warned]
    compared = comparisons.comparisons(systems, against)
    refused = [one.refused for one in compared if one.refused]
    if refused:
        log.warning("%d of %d comparisons have no paired test: %s", len(refused), len(compared), refused[0])
    for result, found_flags in flags.flagged(systems):
        log.warning("%s is degenerate: %s", result, "; ".join(found_flags))
    corpora = {f"{c}/{s}": load_manifest(root / "corpus" / c / f"{s}.json", "corpus") for c, s in splits}
    # Everything has been read, so from here on no input can stop the run half-way.
    outputs = results.write_results(out, config.experiment, systems, summary, against)
    images, drawn = plots.write_plots(out, systems, config.report.dpi, pieces)
    page.write_page(
        out / "report.html",
        page.Page(
            title=config.experiment,
            summary=summary,
            headlines=headlines,
            flagged=flags.table(systems),
            compared=page.compared(systems),
            blocks=blocks.blocks(systems),
            sentences=[comparisons.placed(one) for one in compared],
            seeds=seeds.table(seeds.spreads(systems)),
            plots=drawn,
            mistakes=mistakes(systems, config.report.mistakes),
            layers=layers,
            data=[table for table in tables if table is not None],
            configs=page.configs(systems, corpora),
            provenance=provenance(root, systems),
            versions=page.versions(systems),
            measured=page.measured(systems),
        ),
    )
    for sentence in summary[: len(summary) - len(warned)]:
        log.info("%s", sentence)
    log.info("the results are in %s and %s", out / "results.txt", out / "report.html")
    metrics = {"systems": len(systems), "results": len(found), "summary": summary}
    run.finish([*outputs, *images, out / "report.html"], metrics)


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("report", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
