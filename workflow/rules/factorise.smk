# Base -> low-rank model. The folder is named after the `factorise` section (size and a hash), not after a method: methods
# with equal sections share the model.


rule factorise:
    input:
        made("factorise"),
        base=f"{layout.base()}/base.json",
        weights=ancient(f"{layout.base()}/model/model.safetensors"),
        calibrate=moments("calibrate.json"),
        moments=ancient(moments("moments.safetensors")),
        features=trial("json"),
        cuts=ancient(trial("jsonl.gz")),
    output:
        weights=f"{layout.factorise()}/model/model.safetensors",
        config=f"{layout.factorise()}/model/config.json",
        manifest=f"{layout.factorise()}/factorise.json",
    log:
        layout.log(layout.factorise(), "factorise"),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=6000,
        gpu=gpu("factorise"),
    params:
        cfg=cfg("factorise"),
        code=code("factorise"),
        runtime=runtime("factorise"),
        paths=options("moments", "cuts", model="weights", out="config"),
    shell:
        "python -m lowrank_speech.stages.factorise --cfg {params.cfg:q} --code {params.code}"
        " --runtime {params.runtime:q} {params.paths}"
        " --manifest {output.manifest:q} > {log:q} 2>&1"
