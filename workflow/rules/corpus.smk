# Raw speech -> cuts. One rule per corpus, because the splits, and so the outputs, are the corpus's own.
# Raw data is taken as unchanging and is no input: `snakemake -R corpus_<name>` reads it again.

KINDS = SCHEMA["$defs"]["corpus"]["properties"]["kind"]["enum"]

for name, section in config["corpora"].items():

    rule:
        name:
            f"corpus_{name}"
        output:
            cuts=[f"{layout.corpus()}/{split}.jsonl.gz" for split in section["splits"]],
            set_aside=f"{layout.corpus()}/set_aside.tsv",
            manifest=f"{layout.corpus()}/corpus.json",
        log:
            layout.log(layout.corpus(), "corpus"),
        wildcard_constraints:
            corpus=re.escape(name),
        conda:
            "../../envs/data.yaml"
        threads: 4
        resources:
            mem_mb=2000,
        params:
            cfg=cfg("corpus"),
            # The readers of other kinds do not run here.
            code=code("corpus", [f"lowrank_speech.corpora.{kind}" for kind in KINDS if kind != section["kind"]]),
            out=out_folder,
        shell:
            "python -m lowrank_speech.stages.corpus --cfg {params.cfg:q} --jobs {threads}"
            " --out {params.out:q} --manifest {output.manifest:q} > {log:q} 2>&1"
