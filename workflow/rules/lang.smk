# Training transcripts -> token set. One rule per kind, because the outputs differ.

MADE = {"char": ["tokens.txt"], "sentencepiece": ["pieces.model"], "whisper": []}


for kind, files in MADE.items():

    rule:
        name:
            f"lang_{kind}"
        input:
            manifests=lang_sources("corpus.json"),
            cuts=ancient(lang_sources("{split}.jsonl.gz")),
        output:
            made=[f"{layout.lang()}/{file}" for file in files],
            manifest=f"{layout.lang()}/lang.json",
        log:
            layout.log(layout.lang(), "lang"),
        wildcard_constraints:
            lang=names(name for name, section in config.get("langs", {}).items() if section["kind"] == kind),
        conda:
            "../../envs/data.yaml"
        threads: 1
        resources:
            mem_mb=2000,
        params:
            cfg=cfg("lang"),
            code=code("lang"),
            cuts=option("--cuts", "cuts"),
            out=out_folder,
        shell:
            "python -m lowrank_speech.stages.lang --cfg {params.cfg:q} {params.cuts}"
            " --out {params.out:q} --manifest {output.manifest:q} > {log:q} 2>&1"
