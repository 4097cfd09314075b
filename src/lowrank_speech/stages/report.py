"""Stage report: all scores and costs of an experiment -> results table, plots, one HTML page.

inputs   --root  the experiment's folder. For every system of the config, below {base}/{task}/{method}/:
                   train/.../train.json    parameters, peak memory, time (and metrics.jsonl, set_aside.tsv beside it)
                   decode/.../decode.json  time per second of speech
                   score/.../score.json    error rates, or costs of language recognition, with intervals
                 and where they exist: corpus/{corpus}/corpus.json, base/{base}/base.json,
                 factorise/{base}/{factorisation}/factorise.json
outputs  --out   folder with
                   results.csv             one row per system, raw figures: fractions, bytes, seconds
                   results.txt             the same for people, as a table for the terminal
                   error.png, cost.png, curves.png
                   report.html             everything on one page that needs no other file and no network
         --manifest  hashes of the outputs, number of systems, the first sentence of each headline

cfg      experiment  the title
         systems     list of {base, task, method, type, factorisation}, in the order of the report. type is asr or lid;
                     factorisation is the folder of the low-rank model, default: one of the method's name, if any
         corpora     names of the corpora to describe; default: all under corpus/
         report      {dpi, mistakes}: resolution of the plots, rows of each table of errors

python -m lowrank_speech.stages.report --root exp/default --out exp/default/report
    --manifest exp/default/report/report.json
    --cfg '{"experiment":"default","systems":[{"base":"wav2vec2","task":"asr","method":"full","type":"asr"}]}'
"""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lowrank_speech.artefact import Manifest
from lowrank_speech.errors import UserError
from lowrank_speech.stages import common

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SystemConfig:
    """One system of the grid. ``factorisation``: folder of its low-rank model below factorise/{base}/."""

    base: str
    task: str
    method: str
    type: Literal["asr", "lid"]
    factorisation: str | None = None


@dataclass(frozen=True)
class ReportConfig:
    """How the report looks. ``dpi``: dots an inch of the plots; ``mistakes``: rows of each table of word errors."""

    dpi: int = 130
    mistakes: int = 15

    def __post_init__(self) -> None:
        if not 50 <= self.dpi <= 600:
            raise ValueError(f"dpi is {self.dpi}: expected 50 to 600")
        if self.mistakes < 0:
            raise ValueError(f"mistakes is {self.mistakes}: expected 0 or more")


@dataclass(frozen=True)
class Config:
    """The stage's slice. ``corpora``: None describes all under the root."""

    experiment: str
    systems: tuple[SystemConfig, ...]
    corpora: tuple[str, ...] | None = None
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        if not self.systems:
            raise ValueError("systems: there is none to report on")
        names = [f"{s.base}/{s.task}/{s.method}" for s in self.systems]
        twice = [name for i, name in enumerate(names) if name in names[:i]]
        if twice:
            raise ValueError(f"systems: {twice[0]} stands there twice")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", required=True, type=Path, help="the experiment's folder (config `output`)")
    parser.add_argument("--out", required=True, type=Path, help="output: folder for tables, plots and page")


def body(arguments: argparse.Namespace) -> None:
    cfg = common.read_cfg(arguments.cfg)
    config = common.from_json(Config, cfg)
    manifest = Manifest("report", cfg)
    root, out = common.existing(arguments.root, "--root"), arguments.out

    from lowrank_speech.reporting import data, headline, page, plots, results
    from lowrank_speech.reporting.mistakes import mistakes
    from lowrank_speech.reporting.systems import SystemName, read_systems

    systems = read_systems(root, [SystemName(**dataclasses.asdict(s)) for s in config.systems])
    if all(system.error is None for system in systems):
        raise UserError(f"{root}: no score.json of the {len(systems)} systems holds an error rate; score them again")
    log.info("%d systems read from %s", len(systems), root)
    tables = [
        data.corpora_table(root, config.corpora),
        data.set_aside_table(root, config.corpora, systems),
        data.base_table(root, systems),
    ]
    layers = data.layer_tables(systems)
    # Everything has been read: from here on nothing in the inputs can stop the run half-way.
    outputs = results.write_results(out, config.experiment, systems)
    images, drawn = plots.write_plots(out, systems, config.report.dpi)
    headlines = headline.headlines(systems)
    page.write_page(
        out / "report.html",
        page.Page(
            title=config.experiment,
            headlines=headlines,
            compared=page.compared(systems),
            blocks=results.blocks(systems),
            plots=drawn,
            mistakes=mistakes(systems, config.report.mistakes),
            layers=layers,
            data=tables,
            configs=page.configs(systems),
            versions=page.versions(systems),
            measured=page.measured(systems),
        ),
    )
    for item in headlines:
        log.info("%s on %s: %s", item.task, item.base, item.lead)
    log.info("read %s, or open %s", out / "results.txt", out / "report.html")
    numbers = {
        "systems": len(systems),
        "headlines": {f"{item.task}/{item.base}": item.lead for item in headlines},
    }
    manifest.write(arguments.manifest, [*outputs, *images, out / "report.html"], numbers)


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("report", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
