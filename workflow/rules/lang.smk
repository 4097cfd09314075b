# Training transcripts -> token set. Which files there are depends on the kind: the manifest lists them.


rule lang:
    input:
        made("lang"),
        manifests=lang_sources("json"),
        cuts=ancient(lang_sources("jsonl.gz")),
    output:
        manifest=f"{layout.lang()}/lang.json",
    log:
        layout.log(layout.lang(), "lang"),
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        cfg=cfg("lang"),
        code=code("lang"),
        paths=options("cuts", out="manifest"),
    shell:
        "python -m lowrank_speech.stages.lang --cfg {params.cfg:q} --code {params.code} {params.paths}"
        " --manifest {output.manifest:q} > {log:q} 2>&1"
