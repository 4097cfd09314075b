"""Benchmarks: the longer ones run on tiny models and print plausible rows; invalid options give a one-line error.

Most rows run in this process, because a new process would import everything again.
"""

import json
import re
import runpy
import sys
from types import SimpleNamespace

import pytest
import torch

from conftest import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"


@pytest.fixture
def main(monkeypatch):
    """Runs a benchmark of some name with some options; ``child`` does what its own processes would."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delenv("SPEECH_DATA", raising=False)
    threads = torch.get_num_threads()

    def main(name, child, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
        if child is not None:
            import speech

            def here(_, what, arguments):
                return child(SimpleNamespace(**vars(arguments) | what))

            monkeypatch.setattr(speech, "own_process", here)
        __import__(name).main()

    yield main
    torch.set_num_threads(threads)


@pytest.fixture
def run(main, tmp_path):
    """Runs a benchmark as ``main`` does; the rows that it wrote."""

    def run(name, child, *options):
        main(name, child, "--json", str(tmp_path / "rows"), "--device", "cpu", *options)
        return [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]

    return run


def printed(text):
    """The rows of the Markdown table in ``text``, as dicts."""
    head, rule, *rows = (line.strip("|").split("|") for line in text.splitlines() if line.startswith("|"))
    head = [name.strip() for name in head]
    assert len(rule) == len(head)
    return [dict(zip(head, map(str.strip, row), strict=True)) for row in rows]


TINY = ("--preset", "tiny", "--utterances", "8", "--batch", "4", "--rounds", "2")


@pytest.mark.slow
def test_every_row_of_the_trainer_benchmark(run):
    def child(a):
        import bench_trainer

        return bench_trainer.measure(a) if a.row else bench_trainer.agreement(a)

    rows = run("bench_trainer", child, *TINY)
    full, lora = ([row for row in rows if row["benchmark"] == f"trainer, {method}"] for method in ("full", "lora"))
    assert [row["row"] for row in full] == [row["row"] for row in lora if "bf16" not in row["row"]][:-1]
    assert len(lora) == 10
    for row in rows:
        assert row["s/s"] > 0 and row["MB"] > 100 and 0 <= row["padding %"] < 100 and row["updates"] == 2
        assert row["x speed"] > 0 and row["x MB, by length"] > 0
    for first in (full[0], lora[0]):
        assert first["row"] == "trainer" and first["x speed"] == first["x MB"] == 1


@pytest.mark.slow
def test_a_row_of_the_trainer_benchmark_in_its_own_process(run, capsys):
    (row,) = run("bench_trainer", None, *TINY[:-2], "--methods", "lora", "--rows", "and both")
    assert row["s/s"] > 0 and row["x speed"] is None
    assert "loss and gradient norm of one batch agree" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "options"), [("xls-r-300m", ["--stored"]), ("whisper-tiny", ["--tokens", "3"])])
def test_inference(run, preset, options):
    def child(a):
        import bench_inference

        return bench_inference.memory(a)

    rows = run("bench_inference", child, "--preset", preset, "--layers", "1", "--utterances", "3", *options)
    assert [(row["model"], row["batch"]) for row in rows] == [
        (model, batch) for batch in ("one by one", "by duration") for model in ("dense", "low rank")
    ]
    for dense, low in (rows[:2], rows[2:]):
        assert dense["x speed"] == dense["x weights"] == 1 and low["x weights"] < 1
        assert low["weights MB"] == pytest.approx(4 * low["parameters M"], rel=0.01)
        assert min(dense["s/s"], low["s/s"]) > 0


def test_exports(run):
    pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")

    def child(a):
        import bench_export

        return bench_export.measure(a)

    words = ["--preset", "whisper-tiny", "--layers", "1", "--utterances", "2", "--tokens", "3", "--rounds", "1"]
    words += ["--engines", "ctranslate2"]
    rows = run("bench_export", child, *words)
    assert [(row["engine"], row["model"], row["batch"]) for row in rows] == [
        (engine, model, batch)
        for model in ("dense", "low rank")
        for engine in ("torch", "ctranslate2")
        for batch in ("one by one", "by duration")
    ]
    dense, low = rows[0], rows[4]
    assert dense["x speed"] == 1 < low["theory"] and low["file MB"] < dense["file MB"]
    assert rows[2]["file MB"] == pytest.approx(rows[6]["file MB"])  # CTranslate2 has no factors


@pytest.mark.slow
def test_every_variant_of_the_memory_benchmark(main, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed

    def child(a):
        import bench_memory

        measured[a.variant] = bench_memory.measure(a)
        return measured[a.variant]

    measured = {}
    main("bench_memory", child, "--layers", "1", "--seconds", "0.5", "--repeats", "1")
    out = capsys.readouterr().out
    rows = {row["variant"]: row for row in printed(out)}
    parts = ("weights", "gradients", "optimiser", "activations")
    assert list(rows) == list(measured) and len(rows) == 6 and "the same, 8-bit AdamW" not in rows
    assert out.splitlines()[-1].startswith("left out: the same, 8-bit AdamW (bitsandbytes is not installed")
    for name, found in measured.items():
        assert found["sum"] == sum(found[part] for part in parts)
        assert 0 <= 4 * found["trained"] - found["gradients"] <= 4 * 1024  # the embedding of masks has none
        assert max(found[part] for part in parts) < found["at once"] <= found["sum"]
        assert list(rows[name])[1:] == [
            "trained M",
            *parts,
            "sum",
            "at once",
            "rss",
            "s per step",
            "sum / dense",
            "at once / dense",
        ]
    dense, low, lora, both, checkpoints, half = measured.values()
    assert rows["dense-full"]["sum / dense"] == rows["dense-full"]["at once / dense"] == "100.0%"
    assert low["weights"] < dense["weights"] and both["weights"] < lora["weights"]
    assert low["trained"] < dense["trained"] and 50 * both["trained"] < low["trained"]
    assert checkpoints["weights"] == both["weights"] and half["weights"] < 0.6 * both["weights"]


@pytest.mark.slow
def test_the_loader_benchmark(main, capsys):
    main("bench_loader", None, "--hours", "0.01", "--templates", "5", "--modes", "eager", "kept")
    rows = printed(capsys.readouterr().out)
    import bench_loader

    assert [tuple(row) for row in rows] == [bench_loader.HEAD] * 2
    assert [(row["cuts"], row["mode"]) for row in rows] == [("10", "eager"), ("10", "kept")]
    for row in rows:
        assert (row["again"] == "-") == (row["mode"] == "eager")
        assert all(float(row[key]) >= 0 for key in ("prepare", "count", "start", "at prepare", "training"))


def test_the_ctc_benchmark(main, capsys):
    sizes = ("--utterances", "2", "--frames", "20", "--vocabulary", "5", "--labels", "3", "--repeats", "2")
    main("bench_ctc", None, *sizes)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("2 x 20 frames x 5 tokens, 3 labels, scale 1, cpu, 1 thread(s), torch ")
    line = r"(torch|k2 .*) +\d+ ms \(fastest \d+\), loss off by (\S+) of (\d+), gradient by (\S+)"
    _, loss, largest, gradient = re.fullmatch(line, last).groups()
    assert float(loss) < 1e-4 * float(largest) and float(gradient) < 1e-4


BAD = [
    ("allocation", "", "the following arguments are required: model, --speech"),
    ("gpu", "", "the following arguments are required: command"),
    ("padding", "--rounds 0", "argument --rounds: '0' "),
    ("profile_step", "--rounds 0", "argument --rounds: '0' "),
    ("bench_trainer", "--preset nix", "--preset nix: expected one of: small, "),
    ("bench_trainer", "--preset w2v-bert-2.0", "--preset w2v-bert-2.0: expected one of: small, "),
    ("bench_trainer", "--device cuda", "torch sees no CUDA device"),
    ("bench_trainer", "--batch 0", "argument --batch: '0' is not valid; expected an integer above 0"),
    ("bench_trainer", "--rounds 0", "argument --rounds: '0' "),
    ("bench_trainer", "--workers -1", "argument --workers: '-1' is not valid; expected an integer of at least 0"),
    ("bench_inference", "--preset nix", "--preset nix: expected one of: xls-r-300m, "),
    ("bench_inference", "--preset w2v-bert-2.0", "--preset w2v-bert-2.0: expected one of: xls-r-300m, "),
    ("bench_inference", "--device cuda", "torch sees no CUDA device"),
    ("bench_inference", "--rank 0", "argument --rank: '0' "),
    ("bench_inference", "--rank 1025", "--rank 1025: the full rank is only 1024"),
    ("bench_inference", "--layers 0", "argument --layers: '0' "),
    ("bench_inference", "--preset whisper-tiny --tokens 448", "--tokens 448: this Whisper model generates at most 447"),
    ("bench_export", "--preset nix", "--preset nix: expected one of: xls-r-300m, "),
    ("bench_export", "--engines nix", "argument --engines: invalid choice: 'nix'"),
    ("bench_export", "--engines ctranslate2", "--engines ctranslate2: CTranslate2 only runs Whisper; choose another"),
    ("bench_loader", "--hours 0", "argument --hours: '0' is not valid; expected a number above 0"),
    ("bench_loader", "--hours 1 -1", "argument --hours: '-1' "),
    ("bench_loader", "--hours nan", "argument --hours: 'nan' "),
    ("bench_loader", "--hours 0.0005", "--hours 0.0005: less than one cut of 3.5 s; expected at least 0.001"),
    ("bench_loader", "--templates 0", "argument --templates: '0' "),
    ("bench_loader", "--modes nix", "argument --modes: invalid choice: 'nix'"),
    ("bench_memory", "--seconds 0", "argument --seconds: '0' is not valid; expected a number of at least 0.1"),
    ("bench_memory", "--preset whisper-tiny", "--preset whisper-tiny: expected one of: xls-r-300m, "),
    ("bench_memory", "--dropout 1", "argument --dropout: 1 is not valid; it must be below 1"),
    ("bench_memory", "--variant=the_same,_8-bit_AdamW", "--variant the same, 8-bit AdamW: bitsandbytes is not "),
    ("bench_ctc", "--device cuda", "torch sees no CUDA device"),
    ("bench_ctc", "--vocabulary 1", "argument --vocabulary: '1' is not valid; expected an integer of at least 2"),
    ("bench_ctc", "--frames 8 --vocabulary 2 --labels 5", "--frames 8: the 5 labels need at least 9"),
    ("window", "--windows 0", "argument --windows: '0' "),
    ("window", "--preset xls-r-300m", "--preset xls-r-300m: expected one of: whisper-tiny, "),
    ("window", "--tokens 448", "--tokens 448: this Whisper model generates at most 447"),
    ("constraint", "--utterances 0", "argument --utterances: '0' "),
    ("factorise", "--scratch /nix", "argument --scratch: the folder /nix does not exist; create it or give another"),
    ("planning", "--sizes 1x1x1", "argument --sizes: invalid size value: '1x1x1'"),
    ("front_end", "--json /nix/rows", "argument --json: the folder /nix does not exist; create it or give another"),
    ("bench_lm", "--words 0", "argument --words: '0' is not valid; expected an integer above 0"),
    ("bench_lm", "--prune -1", "argument --prune: '-1' is not valid; expected an integer of at least 0"),
    ("bench_lm", "--order 7", "argument --order: invalid choice: 7"),
    ("bench_lfmmi", "--threads 0", "argument --threads: '0' is not valid; expected an integer above 0"),
    ("bench_lfmmi", "--device cuda", "torch sees no CUDA device"),
    ("bench_lid_scoring", "--languages 1", "argument --languages: '1' is not valid; expected an integer of at least 2"),
    ("bench_decoding", "--threshold 0", "argument --threshold: '0' is not valid; expected a number above 0"),
    ("layer", "--rounds 1.5", "argument --rounds: '1.5' is not valid; expected an integer above 0"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_options_end_in_one_line(name, options, message, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *(word.replace("_", " ") for word in options.split())])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr()
    *before, last = said.err.splitlines()
    assert end.value.code == 2 and not said.out and message in last
    assert before[0].startswith("usage: ") if before else last.startswith("error: ")


def test_every_benchmark_is_among_them():
    scripts = {path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    assert scripts == {name for name, _, _ in BAD}


def test_an_error_of_a_process_of_its_own_stays_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    import speech
    import timing

    script = tmp_path / "bench.py"
    script.write_text("import sys\nprint('a warning\\nerror: too long', file=sys.stderr)\nsys.exit(2)\n")
    with pytest.raises(SystemExit) as end:
        timing.run(lambda: speech.own_process(str(script), {}, SimpleNamespace()))
    assert end.value.code == 2 and capsys.readouterr().err == "error: too long\n"


def test_language_models(main, tmp_path):
    main("bench_lm", None, "--words", "3000", "--order", "2", "--query", "--json", str(tmp_path / "rows"))
    row = json.loads((tmp_path / "rows").read_text())
    assert row["words"] == 3000 and row["order"] == 2 and len(row["n-grams"].split(" + ")) == 2
    assert row["seconds"] > 0 and row["own: queries/s"] > 0


@pytest.mark.slow
def test_planning(main, tmp_path, capsys):
    main("planning", None, "--sizes", "2x1x1", "4x3x2", "--rounds", "1", "--json", str(tmp_path / "rows"))
    small, large = map(json.loads, (tmp_path / "rows").read_text().splitlines())
    # Two more splits, with features for two bases; two more systems; decoding and scoring of each.
    assert large["jobs"] - small["jobs"] == 2 + 2 * 2 + 2 + 2 * (4 * 3 * 2 - 2)
    assert small["cpu seconds"] > 0


def test_scoring_of_language_recognition(main, capsys, tmp_path):
    main("bench_lid_scoring", None, "--segments", "1200", "--languages", "60", "--bootstrap", "20")
    (without, with_intervals) = printed_table(capsys.readouterr().out)
    assert without[:3] == ["1200", "60", "0"] and with_intervals[:3] == ["1200", "60", "20"]
    assert without[-1] == "-" and float(with_intervals[-1]) > 0
    assert all(float(v) > 0 for row in (without, with_intervals) for v in row[3:6])


def printed_table(text):
    """The cells of the rows below the header of an aligned table."""
    return [line.split() for line in text.strip().splitlines()[3:]]


def test_the_decoding_benchmark(main, capsys, tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    tiny = ("--utterances", "3", "--words", "60", "--beam", "8", "--rounds", "1", "--json", str(tmp_path / "rows"))
    main("bench_decoding", None, *tiny)
    rows = {row["decoder"]: row for row in map(json.loads, (tmp_path / "rows").read_text().splitlines())}
    assert rows["beam 1"]["WER %"] == rows["greedy"]["WER %"]
    assert rows["beam"]["WER %"] == rows["flashlight"]["WER %"]
    assert rows["beam, words"]["WER %"] < rows["greedy"]["WER %"]
    assert all(row["speech s / s"] > 0 for row in rows.values())
