# Training transcripts and text files -> an n-gram language model. Rules that decode ask for those that they use.


rule lm:
    input:
        made("lm"),
        lang=lambda wildcards: f"{layout.lang(CONFIG['lms'][wildcards.lm]['lang'])}/lang.json",
        manifests=lm_sources(lm_splits, "json"),
        dev_manifest=lm_sources(lm_dev, "json"),
        cuts=ancient(lm_sources(lm_splits, "jsonl.gz")),
        dev_cuts=ancient(lm_sources(lm_dev, "jsonl.gz")),
    output:
        manifest=f"{layout.lm()}/lm.json",
    log:
        layout.log(layout.lm(), "lm"),
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=4000,
    params:
        cfg=cfg("lm"),
        code=code("lm"),
        paths=options("cuts", "dev_cuts", lang="lang", out="manifest"),
    shell:
        "python -m lowrank_speech.stages.lm --cfg {params.cfg:q} --code {params.code} {params.paths}"
        " --manifest {output.manifest:q} > {log:q} 2>&1"
