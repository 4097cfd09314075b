# Language scores of dev -> a back end, and with it test scores -> calibrated or fused ones, which are scored as others are.


rule backend:
    input:
        made("backend"),
        dev=decoded_by_fused(DEV),
    output:
        listed=f"{layout.backend()}/dev.tsv",
        manifest=f"{layout.backend()}/backend.json",
    log:
        layout.log(layout.backend(), "backend"),
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        cfg=cfg("backend"),
        code=code("backend"),
        paths=folders("dev", out="manifest"),
    shell:
        "python -m lowrank_speech.stages.backend --cfg {params.cfg:q} --code {params.code} {params.paths}"
        " --manifest {output.manifest:q} > {log:q} 2>&1"


rule apply:
    input:
        made("apply"),
        backend=f"{layout.backend()}/backend.json",
        test=decoded_by_fused(),
    output:
        scores=f"{layout.apply()}/scores.tsv",
        labels=f"{layout.apply()}/labels.tsv",
        manifest=f"{layout.apply()}/apply.json",
    log:
        layout.log(layout.apply(), "apply"),
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        cfg=cfg("apply"),
        code=code("apply"),
        paths=folders("test", backend="backend", out="manifest"),
    shell:
        "python -m lowrank_speech.stages.apply --cfg {params.cfg:q} --code {params.code} {params.paths}"
        " --manifest {output.manifest:q} > {log:q} 2>&1"
