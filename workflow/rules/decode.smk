# A system and test features -> hypotheses (asr) or language scores (lid). One rule per type, because the outputs differ.

for kind, files in DECODED.items():

    rule:
        name:
            f"decode_{kind}"
        input:
            train=f"{layout.train()}/train.json",
            test=task_features("test", "manifest"),
            lang=task_lang,
            weights=ancient(f"{layout.train()}/model/model.safetensors"),
            cuts=ancient(task_features("test", "cuts")),
            stored=ancient(task_features("test", "stored")),
        output:
            decoded=[f"{layout.decode()}/{file}" for file in files],
            set_aside=f"{layout.decode()}/set_aside.tsv",
            manifest=f"{layout.decode()}/decode.json",
        log:
            layout.log(layout.decode(), "decode"),
        wildcard_constraints:
            task=names(name for name, section in config["tasks"].items() if section["type"] == kind),
        conda:
            "../../envs/torch.yaml"
        threads: 1
        resources:
            mem_mb=4000,
            gpu=gpu("decode"),
        params:
            cfg=cfg("decode"),
            code=code("decode"),
            model=folder_of("weights"),
            lang=option("--lang", "lang", folder=True),
            out=out_folder,
        shell:
            "python -m lowrank_speech.stages.decode --cfg {params.cfg:q} --model {params.model:q} --cuts {input.cuts:q}"
            " {params.lang} --out {params.out:q} --manifest {output.manifest:q} > {log:q} 2>&1"
