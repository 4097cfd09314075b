# Cuts -> the inputs of the model family, computed once. {split}.h5 beside the cuts has the arrays. Waveforms have none,
# and do not depend on the base.


rule features:
    input:
        made("features"),
        corpus=f"{layout.corpus()}/{{split}}.json",
        cuts=ancient(f"{layout.corpus()}/{{split}}.jsonl.gz"),
        base=stored_base("base.json"),
        weights=ancient(stored_base("model/model.safetensors")),
    output:
        cuts=f"{layout.features()}/{{split}}.jsonl.gz",
        manifest=f"{layout.features()}/{{split}}.json",
    log:
        layout.log(layout.features(), "{split}"),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=3000,
    params:
        cfg=cfg("features"),
        code=code("features"),
        base=lambda wildcards, output: f"{layout.base(wildcards.base)}/model",
    shell:
        "python -m lowrank_speech.stages.features --cfg {params.cfg:q} --code {params.code} --cuts {input.cuts:q}"
        " --base {params.base:q} --out {output.cuts:q} --manifest {output.manifest:q} > {log:q} 2>&1"
