# A system, a decoder and a test set -> hypotheses (asr) or language scores (lid). Which files there are depends on the
# type of the task: the manifest lists them.


# Network outputs that several decoders read, computed once.
rule emissions:
    input:
        made("emissions"),
        train=f"{layout.train()}/train.json",
        test=test_features("json"),
        weights=ancient(f"{layout.train()}/model/model.safetensors"),
        cuts=ancient(test_features("jsonl.gz")),
    output:
        manifest=f"{layout.emissions()}/emissions.json",
    log:
        layout.log(layout.emissions(), "emissions"),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        gpu=gpu("emissions"),
    params:
        cfg=cfg("emissions"),
        code=code("emissions"),
        runtime=runtime("emissions"),
        paths=options("cuts", model="weights", out="manifest"),
    shell:
        "python -m lowrank_speech.stages.emissions --cfg {params.cfg:q} --code {params.code}"
        " --runtime {params.runtime:q} {params.paths} --manifest {output.manifest:q} > {log:q} 2>&1"


# The scales of a decoder on the dev split of its task, never on a test set.
rule tune:
    input:
        made("tune"),
        train=f"{layout.train()}/train.json",
        dev=task_features("dev", "json"),
        lang=task_lang,
        lm=resource("lm"),
        graph=resource("graph"),
        rescore_lm=resource("rescore_lm"),
        emissions=emissions("emissions.json", DEV),
        weights=ancient(f"{layout.train()}/model/model.safetensors"),
        cuts=ancient(task_features("dev", "jsonl.gz")),
    output:
        manifest=f"{layout.tune()}/tune.json",
    log:
        layout.log(layout.tune(), "tune"),
    conda:
        decoding_env
    threads: 1
    resources:
        mem_mb=4000,
        gpu=gpu("tune"),
    params:
        cfg=cfg("tune"),
        code=code("tune"),
        runtime=runtime("tune"),
        paths=options(
            "cuts",
            model="weights",
            lang="lang",
            lm="lm",
            graph="graph",
            rescore_lm="rescore_lm",
            emissions="emissions",
        ),
    shell:
        "python -m lowrank_speech.stages.tune --cfg {params.cfg:q} --code {params.code}"
        " --runtime {params.runtime:q} {params.paths} --manifest {output.manifest:q} > {log:q} 2>&1"


rule decode:
    input:
        made("decode"),
        train=f"{layout.train()}/train.json",
        test=test_features("json"),
        lang=task_lang,
        lm=resource("lm"),
        graph=resource("graph"),
        rescore_lm=resource("rescore_lm"),
        tune=tuned,
        emissions=emissions("emissions.json"),
        weights=ancient(f"{layout.train()}/model/model.safetensors"),
        cuts=ancient(test_features("jsonl.gz")),
    output:
        set_aside=f"{layout.decode()}/set_aside.tsv",
        manifest=f"{layout.decode()}/decode.json",
    log:
        layout.log(layout.decode(), "decode"),
    conda:
        decoding_env
    threads: 1
    resources:
        mem_mb=4000,
        gpu=gpu("decode"),
    params:
        cfg=cfg("decode"),
        code=code("decode"),
        runtime=runtime("decode"),
        paths=options(
            "cuts",
            "tune",
            model="weights",
            lang="lang",
            lm="lm",
            graph="graph",
            rescore_lm="rescore_lm",
            emissions="emissions",
            out="manifest",
        ),
    shell:
        "python -m lowrank_speech.stages.decode --cfg {params.cfg:q} --code {params.code}"
        " --runtime {params.runtime:q} {params.paths} --manifest {output.manifest:q} > {log:q} 2>&1"
