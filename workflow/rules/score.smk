# Hypotheses or language scores against the truth -> error rates and costs with intervals.


rule score:
    input:
        made("score"),
        decode=scored,
    output:
        utterances=f"{layout.score()}/utterances.tsv",
        manifest=f"{layout.score()}/score.json",
    log:
        layout.log(layout.score(), "score"),
    wildcard_constraints:
        decoder=names([*CONFIG["decoders"], *CONFIG["backends"]]),
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        cfg=cfg("score"),
        code=code("score"),
        paths=options(decoded="decode", out="manifest"),
    shell:
        "python -m lowrank_speech.stages.score --cfg {params.cfg:q} --code {params.code} {params.paths}"
        " --manifest {output.manifest:q} > {log:q} 2>&1"
