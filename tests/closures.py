"""List all jobs of an experiment with the code that their hashes cover, and the code that ran outside it."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lowrank_speech.fingerprints import PACKAGE, closure
from lowrank_speech.workflow import closures
from lowrank_speech.workflow.config import (
    calibrate_key,
    calibrated,
    calibrated_results,
    factorise_key,
    results,
    splits_used,
    start_share,
)
from lowrank_speech.workflow.slices import NAMES, Slices

WITHOUT_HASH = {"fingerprints", "settings_errors"}
"""What runs in stages and decides no result."""


def jobs(slices: Slices) -> Iterator[tuple[str, Any]]:
    """Stage and wildcards of every job of an experiment, and of its exports; some of them several times."""
    config = slices.config
    every: list[dict[str, str]] = [split._asdict() for split in splits_used(config)]
    every += [{"lang": lang} for lang in config["langs"]] + [{"task": task} for task in config["systems"]["tasks"]]
    every += [{"lm": lm} for lm in config["lms"]]
    factorising = [method for method in config["methods"].values() if method.get("factorise")]
    keys = [{"factorisation": factorise_key(method["factorise"], start_share(method))} for method in factorising]
    keys += [{"calibration": calibrate_key(method["factorise"])} for method in factorising if calibrated(method)]
    every += [{"base": base, **key} for base in config["systems"]["bases"] for key in ({}, *keys)]
    every += [{"lang": lang, "graph": graph} for lang, graph in slices.graphs()]
    every += [
        result._asdict() | {"form": form} for result in results(config, slices.schema) for form in ("dense", "lowrank")
    ]
    for result in calibrated_results(config):
        names = result._asdict()
        every.append(names | {"backend": names.pop("decoder")})
    for known in every:
        for stage, names in NAMES.items():
            if set(names) <= set(known):
                yield stage, SimpleNamespace(**known)


def outside_of_their_hash(slices: Slices, traces: Path) -> dict[str, set[str]]:
    """Job -> modules of which functions ran in it, and which its hash does not cover.

    ``traces``: the folder that tests/tracing/sitecustomize.py wrote to.
    """
    ran: dict[str, set[str]] = {}
    for path in traces.iterdir():
        for line in path.read_text(encoding="utf-8").splitlines():
            code, module = json.loads(line)
            ran.setdefault(code, set()).add(module)
    known, found = {}, {}
    for stage, wildcards in jobs(slices):
        code = closures.code_hash(stage, slices, wildcards)
        if code not in known:
            without = [f"{PACKAGE}.{name}" for name in closures.unused(stage, slices, wildcards)]
            known[code] = closure(f"{PACKAGE}.stages.{stage}", without=without)
        extra = ran.get(code, set()) - known[code] - {f"{PACKAGE}.{name}" for name in WITHOUT_HASH}
        if extra:
            found[f"{stage} {vars(wildcards)}"] = extra
    assert set(ran) <= set(known), "a job ran with a hash that no job has"
    return found
