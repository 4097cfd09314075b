"""Markdown tables from the records of benchmarks/gpu.py. Imports only the standard library."""

NONE = "no GPU yet"
INTRO = """# Results on a GPU

    benchmarks/gpu.sh OUT                   # again, until it finishes all pieces
    python benchmarks/gpu.py tables OUT     # writes this file

Random weights in the shapes of the published models; speechocean762, or noise with similar durations where it is
absent. The `--help` of each benchmark explains the columns. A row without a measurement says "{none}".
"""
REHEARSAL = """# A rehearsal on a CPU: small shapes, not results
"""
# Columns of each kind: key in the row, heading, function from value to text.
MIB = 2**20


def number(digits=2, scale=1.0):
    return lambda value: f"{value / scale:.{digits}f}"


COLUMNS = {
    "training": [
        ("s/s", "s of speech / s", number()),
        ("CPU s", "CPU s", number(0)),
        ("CUDA MB", "CUDA MB", number(0)),
        ("padding %", "padding %", number(0)),
        ("updates", "updates", number(0)),
        ("x speed", "x speed", number()),
        ("x MB", "x memory", number()),
        ("x speed, by length", "x speed, by length", number()),
        ("x MB, by length", "x memory, by length", number()),
    ],
    "memory": [
        ("trained", "trained M", number(1, 1e6)),
        *((part, f"{part}, MiB", number(0, MIB)) for part in ("weights", "gradients", "optimiser", "activations")),
        ("sum", "sum, MiB", number(0, MIB)),
        ("CUDA", "CUDA peak, MiB", number(0, MIB)),
        ("seconds", "s per step", number(3)),
    ],
    "constraint": [
        ("utterances", "utterances", number(0)),
        ("step s", "step, s", number(4)),
        ("share %", "share of a step, %", number(2)),
    ],
    "inference": [
        ("batch", "batch", str),
        ("s/s", "s of speech / s", number()),
        ("x speed", "x speed", number()),
        ("weights MB", "weights MB", number(0)),
        ("CUDA MB", "CUDA MB", number(0)),
        ("x CUDA MB", "x CUDA memory", number()),
    ],
    "tests": [(key, key, number(0)) for key in ("passed", "failed", "skipped")],
}
NAMES = {"training": "row", "memory": "variant", "constraint": "kind", "inference": "model", "tests": None}


def tables(pieces, records, rehearsal):
    """The file: one section for each of ``pieces``, from its record in ``records`` (None: not measured)."""
    parts = [REHEARSAL if rehearsal else INTRO.format(none=NONE)]
    parts += [section(piece, records.get(piece.name) or {}) for piece in pieces]
    return "\n".join(parts)


def section(piece, record):
    lines = [f"## {piece.title}", ""]
    status = record.get("status")
    if status in ("done", "failed"):
        versions = ", ".join(f"{key} {record[key]}" for key in ("torch", "transformers", "peft") if record.get(key))
        device = record.get("gpu") or "no GPU"
        when = record.get("when", "")[:10]
        lines += [f"{when}, {device}, {versions}, commit {record.get('commit')}; {record['seconds']:.0f} s.", ""]
    if status in ("failed", "needs", "begun"):
        lines += [f"{'Failed' if status == 'failed' else 'Not measured'}: {escaped(record['error'])}", ""]
    rows = record.get("rows") or []
    if piece.kind == "grid":
        return "\n".join([*lines, *grid(rows)]) + "\n"
    return "\n".join([*lines, *table(piece, rows)]) + "\n"


def grid(rows):
    if not rows:
        return [NONE]
    return ["```", rows[0]["table"].rstrip(), "```"] if "table" in rows[0] else [f"{rows[0]['jobs']} jobs planned"]


def table(piece, rows):
    """The rows of ``piece``; a row that it should have and has not says so."""
    columns, name = COLUMNS[piece.kind], NAMES[piece.kind]
    columns = [column for column in columns if not rows or any(row.get(column[0]) is not None for row in rows)]
    head = ([name] if name else []) + [title for _, title, _ in columns]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row[name]] if name else []
        cells += ["-" if row.get(key) is None else text(row[key]) for key, _, text in columns]
        lines.append(f"| {' | '.join(map(escaped, cells))} |")
    have = {row.get(name) for row in rows}
    absent = [expected for expected in piece.expected if expected not in have] if name else [] if rows else [None]
    for expected in absent:
        cells = ([expected] if name else []) + [NONE] * len(columns)
        lines.append(f"| {' | '.join(map(escaped, cells))} |")
    return lines


def escaped(text):
    """``text`` in one line, without the characters that end a cell or begin markup."""
    return str(text).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
