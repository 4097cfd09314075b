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
        train_cuts=option("--train-cuts", "train_cuts"),
        dev_cuts=option("--dev-cuts", "dev_cuts"),
        lang=option("--lang", "lang", folder=True),
        out=layout.base(),
        scratch=layout.scratch(layout.base()),
        tensorboard=layout.tensorboard(layout.base()),
    shell:
        # exec: a signal for the job reaches the program, and no shell that would die of it while the program saves.
        # >>: a run that goes on does not wipe the log of the one before.
        "exec python -m {params.launcher}lowrank_speech.stages.base --cfg {params.cfg:q} --code {params.code}"
        " --runtime {params.runtime:q} {params.train_cuts} {params.dev_cuts} {params.lang}"
        " --out {params.out:q}/model --scratch {params.scratch:q} --tensorboard {params.tensorboard:q}"
        " --manifest {output.manifest:q} >> {log:q} 2>&1"
