# Cuts -> what the model family eats, computed once. One rule for features that are stored, and one for plain waveforms,
# which leave no arrays and do not look at the base.

WAVEFORM = [name for name, section in config["bases"].items() if section["features"] == "waveform"]
STORED = [name for name in config["bases"] if name not in WAVEFORM]


rule features:
    input:
        corpus=f"{layout.corpus()}/corpus.json",
        cuts=ancient(f"{layout.corpus()}/{{split}}.jsonl.gz"),
        base=f"{layout.base()}/base.json",
        weights=ancient(f"{layout.base()}/model/model.safetensors"),
    output:
        cuts=f"{layout.features()}/{{split}}.jsonl.gz",
        stored=f"{layout.features()}/{{split}}.h5",
        manifest=f"{layout.features()}/{{split}}.json",
    log:
        layout.log(layout.features(), "{split}"),
    wildcard_constraints:
        base=names(STORED),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=3000,
    params:
        cfg=cfg("features"),
        code=code("features"),
        base=folder_of("weights"),
    shell:
        "python -m lowrank_speech.stages.features --cfg {params.cfg:q} --cuts {input.cuts:q} --base {params.base:q}"
        " --out {output.cuts:q} --manifest {output.manifest:q} > {log:q} 2>&1"


rule features_waveform:
    input:
        corpus=f"{layout.corpus()}/corpus.json",
        cuts=ancient(f"{layout.corpus()}/{{split}}.jsonl.gz"),
    output:
        cuts=f"{layout.features()}/{{split}}.jsonl.gz",
        manifest=f"{layout.features()}/{{split}}.json",
    log:
        layout.log(layout.features(), "{split}"),
    wildcard_constraints:
        base=names(WAVEFORM),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        cfg=cfg("features"),
        code=code("features"),
        base=lambda wildcards: f"{layout.base(wildcards.base)}/model",
    shell:
        "python -m lowrank_speech.stages.features --cfg {params.cfg:q} --cuts {input.cuts:q} --base {params.base:q}"
        " --out {output.cuts:q} --manifest {output.manifest:q} > {log:q} 2>&1"
