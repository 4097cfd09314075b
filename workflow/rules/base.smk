# A pretrained model: imported from the hub or a folder, or small and pretrained here (`source: scratch`). `revision` pins a
# model of the hub; the files of a folder are compared like all files from outside.


rule base:
    input:
        made("base"),
        train=pretraining("train", "json"),
        dev=pretraining("dev", "json"),
        lang=pretraining_lang,
        train_cuts=ancient(pretraining("train", "jsonl.gz")),
        dev_cuts=ancient(pretraining("dev", "jsonl.gz")),
    output:
        weights=f"{layout.base()}/model/model.safetensors",
        config=f"{layout.base()}/model/config.json",
        metrics=f"{layout.base()}/metrics.jsonl",
        manifest=f"{layout.base()}/base.json",
    log:
        layout.log(layout.base(), "base"),
    conda:
        training_env("base")
    threads: processes("base")
    resources:
        mem_mb=8000,
        gpu=gpu("base"),
    params:
        cfg=cfg("base"),
        code=code("base"),
        runtime=runtime("base"),
        launcher=launcher("base"),
        paths=options("train_cuts", "dev_cuts", lang="lang", out="config"),
        scratch=scratch_folder,
        tensorboard=tensorboard_folder,
    shell:
        # exec: signals reach the program, and no shell that would die of them while the program saves.
        # >>: a run that continues keeps the log of the one before.
        "exec python -m {params.launcher}lowrank_speech.stages.base --cfg {params.cfg:q} --code {params.code}"
        " --runtime {params.runtime:q} {params.paths}"
        " --scratch {params.scratch:q} --tensorboard {params.tensorboard:q}"
        " --manifest {output.manifest:q} >> {log:q} 2>&1"
