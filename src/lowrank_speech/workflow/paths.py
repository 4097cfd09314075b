"""Paths of the artefacts of an experiment.

Every method returns a folder: without arguments as a pattern with Snakemake's wildcards, with names the folder itself.
So rules and targets cannot disagree:

    >>> Layout("exp/default").train()
    'exp/default/train/{base}/{task}/{method}'
    >>> Layout("exp/default").train("whisper", "lid", "lora")
    'exp/default/train/whisper/lid/lora'
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The folders below ``root`` (config ``output``)."""

    root: str

    def corpus(self, corpus: str = "{corpus}") -> str:
        """For each split: {split}.jsonl.gz, {split}.index.tsv, {split}.set_aside.tsv, {split}.json."""
        return f"{self.root}/corpus/{corpus}"

    def overlap(self, task: str = "{task}") -> str:
        """overlap.json: what the splits of a task share."""
        return f"{self.root}/overlap/{task}"

    def lang(self, lang: str = "{lang}") -> str:
        """tokens.txt or pieces.model, lang.json."""
        return f"{self.root}/lang/{lang}"

    def lm(self, lm: str = "{lm}") -> str:
        """lm.arpa, lm.bin, words.txt, lm.json."""
        return f"{self.root}/lm/{lm}"

    def graph(self, lang: str = "{lang}", graph: str = "{graph}") -> str:
        """H.fst, HL.fst, HG.fst or HLG.fst, symbol tables, graph.json; ``graph`` is config.graph_key of a decoder."""
        return f"{self.root}/graph/{lang}/{graph}"

    def base(self, base: str = "{base}") -> str:
        """model/, metrics.jsonl, base.json."""
        return f"{self.root}/base/{base}"

    def features(self, base: str = "{base}", corpus: str = "{corpus}") -> str:
        """{split}.jsonl.gz, {split}.h5 where arrays are stored, {split}.json (the manifest)."""
        return f"{self.root}/features/{base}/{corpus}"

    def calibrate(self, base: str = "{base}", calibration: str = "{calibration}") -> str:
        """moments.safetensors, calibrate.json; ``calibration`` is config.calibrate_key of a factorise section."""
        return f"{self.root}/calibrate/{base}/{calibration}"

    def factorise(self, base: str = "{base}", factorisation: str = "{factorisation}") -> str:
        """model/, factorise.json; ``factorisation`` is config.factorise_key of a factorise section."""
        return f"{self.root}/factorise/{base}/{factorisation}"

    def train(self, base: str = "{base}", task: str = "{task}", method: str = "{method}") -> str:
        """model/, adapter/ (LoRA), metrics.jsonl, set_aside.tsv, train.json."""
        return f"{self.root}/train/{base}/{task}/{method}"

    def emissions(
        self, base: str = "{base}", task: str = "{task}", method: str = "{method}", test: str = "{test}"
    ) -> str:
        """Network outputs of a system on a test set, for the decoders that share them; emissions.json."""
        return f"{self.root}/emissions/{base}/{task}/{method}/{test}"

    def tune(
        self, base: str = "{base}", task: str = "{task}", method: str = "{method}", decoder: str = "{decoder}"
    ) -> str:
        """tune.json: the scales of a decoder that are best on the task's dev split."""
        return f"{self.root}/tune/{base}/{task}/{method}/{decoder}"

    def decode(
        self,
        base: str = "{base}",
        task: str = "{task}",
        method: str = "{method}",
        decoder: str = "{decoder}",
        test: str = "{test}",
    ) -> str:
        """hyp.txt, ref.txt, languages.tsv (asr) or scores.tsv, labels.tsv (lid); set_aside.tsv, decode.json."""
        return f"{self.root}/decode/{base}/{task}/{method}/{decoder}/{test}"

    def backend(
        self, base: str = "{base}", task: str = "{task}", method: str = "{method}", backend: str = "{backend}"
    ) -> str:
        """backend.json, dev.tsv: what calibrates a system, or fuses several (beside the first)."""
        return f"{self.root}/backend/{base}/{task}/{method}/{backend}"

    def apply(
        self,
        base: str = "{base}",
        task: str = "{task}",
        method: str = "{method}",
        backend: str = "{backend}",
        test: str = "{test}",
    ) -> str:
        """Calibrated scores, in the form of ``decode``: scores.tsv, labels.tsv; apply.json."""
        return f"{self.root}/apply/{base}/{task}/{method}/{backend}/{test}"

    def score(
        self,
        base: str = "{base}",
        task: str = "{task}",
        method: str = "{method}",
        decoder: str = "{decoder}",
        test: str = "{test}",
    ) -> str:
        """utterances.tsv, alignments and transcripts (asr), score.json; ``decoder`` may also be a back end."""
        return f"{self.root}/score/{base}/{task}/{method}/{decoder}/{test}"

    def export(self, base: str = "{base}", task: str = "{task}", method: str = "{method}", form: str = "{form}") -> str:
        """model/, export.json."""
        return f"{self.root}/export/{base}/{task}/{method}/{form}"

    def report(self) -> str:
        """results.csv, results.txt, plots, report.html, report.json."""
        return f"{self.root}/report"

    def scratch(self, folder: str) -> str:
        """State of an unfinished run of ``folder``. It is not a declared output, so Snakemake does not delete it."""
        return f"{self.root}/scratch/{folder.removeprefix(self.root + '/')}"

    def tensorboard(self, folder: str) -> str:
        """Event files of the training in ``folder``, beside its log."""
        return f"{self.root}/logs/{folder.removeprefix(self.root + '/')}/tensorboard"

    def log(self, folder: str, name: str) -> str:
        """Log of the rule that writes ``folder``; logs mirror the paths of the outputs."""
        return f"{self.root}/logs/{folder.removeprefix(self.root + '/')}/{name}.log"
