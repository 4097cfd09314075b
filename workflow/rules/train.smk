# Adapts a base, dense or factorised, to a task. The state of an unfinished run is in scratch, which is not an output:
# Snakemake deletes outputs before it starts a job again, and the stage continues from the state.


rule train:
    input:
        made("train"),
        start=start_of,
        train=task_features("train", "json"),
        dev=task_features("dev", "json"),
        untranscribed=untranscribed_features("json"),
        lang=task_lang,
        teacher=teacher_of(None),
        calibrate=truncation_moments("calibrate.json"),
        weights=ancient(lambda wildcards: start_of(wildcards, "model.safetensors")),
        teacher_weights=ancient(teacher_of("model/model.safetensors")),
        moments=ancient(truncation_moments("moments.safetensors")),
        train_cuts=ancient(task_features("train", "jsonl.gz")),
        dev_cuts=ancient(task_features("dev", "jsonl.gz")),
        untranscribed_cuts=ancient(untranscribed_features("jsonl.gz")),
    output:
        weights=f"{layout.train()}/model/model.safetensors",
        config=f"{layout.train()}/model/config.json",
        metrics=f"{layout.train()}/metrics.jsonl",
        set_aside=f"{layout.train()}/set_aside.tsv",
        manifest=f"{layout.train()}/train.json",
    log:
        layout.log(layout.train(), "train"),
    conda:
        training_env("train")
    threads: processes("train")
    resources:
        mem_mb=4000,
        gpu=gpu("train"),
    params:
        cfg=cfg("train"),
        code=code("train"),
        runtime=runtime("train"),
        launcher=launcher("train"),
        paths=options(
            "train_cuts",
            "dev_cuts",
            "untranscribed_cuts",
            "moments",
            model="weights",
            lang="lang",
            teacher="teacher_weights",
            out="manifest",
        ),
        scratch=scratch_folder,
        tensorboard=tensorboard_folder,
    shell:
        # exec and >>: as for the rule base.
        "exec python -m {params.launcher}lowrank_speech.stages.train --cfg {params.cfg:q} --code {params.code}"
        " --runtime {params.runtime:q} {params.paths}"
        " --scratch {params.scratch:q} --tensorboard {params.tensorboard:q}"
        " --manifest {output.manifest:q} >> {log:q} 2>&1"
