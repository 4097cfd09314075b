# Token set, lexicon and n-gram -> a graph that CTC decoders search. The folder is named after what defines it, so decoders
# with the same graph share it. Which files there are depends on the kind of graph: the manifest lists them.


rule graph:
    input:
        made("graph"),
        lang=f"{layout.lang()}/lang.json",
        lm=graph_lm,
    output:
        manifest=f"{layout.graph()}/graph.json",
    log:
        layout.log(layout.graph(), "graph"),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=4000,
    params:
        cfg=cfg("graph"),
        code=code("graph"),
        paths=options(lang="lang", lm="lm", out="manifest"),
    shell:
        "python -m lowrank_speech.stages.graph --cfg {params.cfg:q} --code {params.code} {params.paths}"
        " --manifest {output.manifest:q} > {log:q} 2>&1"
