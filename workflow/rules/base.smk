# A pretrained model: imported from the hub or a folder, or small and pretrained here (`source: scratch`).
# One rule for each of the two: an import reads no speech and runs no training code.
# Neither hub nor folder is an input; `revision` pins the one, `snakemake -R base_import` reads the other again.

SCRATCH = [name for name, section in config["bases"].items() if section["source"] == "scratch"]
IMPORTED = [name for name in config["bases"] if name not in SCRATCH]


rule base:
    input:
        corpus=pretraining(),
        lang=base_lang,
        train_cuts=ancient(pretraining("train")),
        dev_cuts=ancient(pretraining("dev")),
    output:
        weights=f"{layout.base()}/model/model.safetensors",
        config=f"{layout.base()}/model/config.json",
        metrics=f"{layout.base()}/metrics.jsonl",
        manifest=f"{layout.base()}/base.json",
    log:
        layout.log(layout.base(), "base"),
    wildcard_constraints:
        base=names(SCRATCH),
    conda:
        training_env("base")
    threads: processes("base")
    resources:
        mem_mb=4000,
        gpu=gpu("base"),
    params:
        cfg=cfg("base"),
        code=code("base"),
        launcher=launcher("base"),
        lang=folder_of("lang"),
        out=out_folder,
        scratch=scratch_folder,
        tensorboard=tensorboard_folder,
    shell:
        # exec: a signal for the job reaches the program, and no shell that would die of it while the program saves.
        "exec python -m {params.launcher}lowrank_speech.stages.base --cfg {params.cfg:q}"
        " --train-cuts {input.train_cuts:q} --dev-cuts {input.dev_cuts:q} --lang {params.lang:q}"
        " --out {params.out:q}/model --scratch {params.scratch:q} --tensorboard {params.tensorboard:q}"
        " --manifest {output.manifest:q} > {log:q} 2>&1"


rule base_import:
    output:
        weights=f"{layout.base()}/model/model.safetensors",
        config=f"{layout.base()}/model/config.json",
        manifest=f"{layout.base()}/base.json",
    log:
        layout.log(layout.base(), "base"),
    wildcard_constraints:
        base=names(IMPORTED),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=8000,
    params:
        cfg=cfg("base"),
        code=code("base", [f"lowrank_speech.{package}" for package in ("training", "features", "lang")]),
        out=out_folder,
    shell:
        "python -m lowrank_speech.stages.base --cfg {params.cfg:q}"
        " --out {params.out:q}/model --manifest {output.manifest:q} > {log:q} 2>&1"
