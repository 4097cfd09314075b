# A system in a form for others. No target asks for it; say for example
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
        model=f"{layout.train()}/model",
        out=layout.export(),
    shell:
        "python -m lowrank_speech.stages.export --cfg {params.cfg:q} --code {params.code} --model {params.model:q}"
        " --out {params.out:q}/model --manifest {output.manifest:q} > {log:q} 2>&1"
