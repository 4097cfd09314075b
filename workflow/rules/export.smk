# A system in a form for others. No other target needs it; for example
#   snakemake --cores all exp/default/export/wav2vec2/asr/lowrank/dense/export.json


rule export:
    input:
        made("export"),
        train=f"{layout.train()}/train.json",
        weights=ancient(f"{layout.train()}/model/model.safetensors"),
    output:
        manifest=f"{layout.export()}/export.json",
    log:
        layout.log(layout.export(), "export"),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=8000,
    params:
        cfg=cfg("export"),
        code=code("export"),
        paths=options(model="weights"),
        out=lambda wildcards, output: f"{os.path.dirname(output.manifest)}/model",
    shell:
        "python -m lowrank_speech.stages.export --cfg {params.cfg:q} --code {params.code} {params.paths}"
        " --out {params.out:q} --manifest {output.manifest:q} > {log:q} 2>&1"
