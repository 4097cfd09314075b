# Second moments of the layers' inputs, only for methods whose factors depend on them.


rule calibrate:
    input:
        made("calibrate"),
        base=f"{layout.base()}/base.json",
        features=calibration_features("json"),
        weights=ancient(f"{layout.base()}/model/model.safetensors"),
        cuts=ancient(calibration_features("jsonl.gz")),
    output:
        moments=f"{layout.calibrate()}/moments.safetensors",
        manifest=f"{layout.calibrate()}/calibrate.json",
    log:
        layout.log(layout.calibrate(), "calibrate"),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=6000,
        gpu=gpu("calibrate"),
    params:
        cfg=cfg("calibrate"),
        code=code("calibrate"),
        runtime=runtime("calibrate"),
        paths=options("cuts", model="weights"),
    shell:
        "python -m lowrank_speech.stages.calibrate --cfg {params.cfg:q} --code {params.code}"
        " --runtime {params.runtime:q} {params.paths}"
        " --out {output.moments:q} --manifest {output.manifest:q} > {log:q} 2>&1"
