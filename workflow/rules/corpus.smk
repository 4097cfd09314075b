# Raw speech -> cuts, split by split. A split that is added or changed leaves the others as they are.


rule corpus:
    input:
        made("corpus"),
    output:
        cuts=f"{layout.corpus()}/{{split}}.jsonl.gz",
        index=f"{layout.corpus()}/{{split}}.index.tsv",
        set_aside=f"{layout.corpus()}/{{split}}.set_aside.tsv",
        manifest=f"{layout.corpus()}/{{split}}.json",
    log:
        layout.log(layout.corpus(), "{split}"),
    conda:
        "../../envs/data.yaml"
    threads: 2
    resources:
        mem_mb=2000,
    params:
        cfg=cfg("corpus"),
        code=code("corpus"),
        runtime=runtime("corpus"),
        paths=options(out="manifest"),
    shell:
        "python -m lowrank_speech.stages.corpus --cfg {params.cfg:q} --code {params.code} --split {wildcards.split}"
        " --runtime {params.runtime:q} --jobs {threads} {params.paths} --manifest {output.manifest:q} > {log:q} 2>&1"


# What the splits of a task share. It runs as soon as the corpora are there, and blocks the report.
rule overlap:
    input:
        made("overlap"),
        manifests=overlap_sources("json"),
        indices=ancient(overlap_sources("index.tsv")),
    output:
        manifest=f"{layout.overlap()}/overlap.json",
    log:
        layout.log(layout.overlap(), "overlap"),
    priority: 100
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        cfg=cfg("overlap"),
        code=code("overlap"),
        splits=lambda wildcards, input: overlap_options(wildcards),
    shell:
        "python -m lowrank_speech.stages.overlap --cfg {params.cfg:q} --code {params.code} {params.splits}"
        " --manifest {output.manifest:q} > {log:q} 2>&1"
