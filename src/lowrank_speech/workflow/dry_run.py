"""Ask Snakemake which jobs would run: a dry run whose jobs go to a JSON file instead of the terminal.

    python -m lowrank_speech.workflow.dry_run FILE [arguments of snakemake ...]

Out: ``{"jobs": [{"rule", "wildcards", "input", "output", "reason"}, ...], "remade": {manifest: reason}}``.
``remade``: artefacts that ``made`` in common.smk found to differ from what the config asks for. Errors go to stderr;
the exit code is Snakemake's.
"""

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

_MADE = re.compile(r"(\S+) \((\S+)\) is made again: (.*)")


class Recorder(logging.Filter):
    """Keeps what a dry run says about jobs, and passes on only warnings. (Snakemake removes handlers, not filters.)"""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[dict[str, Any]] = []
        self.remade: dict[str, str] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        event = getattr(record, "event", None)
        if getattr(event, "value", event) == "job_info":
            self.jobs.append(
                {
                    "rule": record.rule_name,
                    "wildcards": dict(record.wildcards or {}),
                    "input": [str(path) for path in record.input],
                    "output": [str(path) for path in record.output],
                    "reason": str(record.reason or ""),
                }
            )
        elif match := _MADE.fullmatch(record.getMessage()):
            self.remade[f"{match[1]}/{match[2]}"] = match[3]
        return record.levelno >= logging.WARNING


def main(argv: list[str]) -> int:
    """Run and record; the exit code is Snakemake's."""
    from snakemake.cli import main as snakemake
    from snakemake.logging import logger

    out, *arguments = argv
    recorder = Recorder()
    logger.addFilter(recorder)
    try:
        snakemake([*arguments, "--dry-run", "--nolock"])
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
    Path(out).write_text(json.dumps({"jobs": recorder.jobs, "remade": recorder.remade}), encoding="utf-8")
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
