# All scores and costs -> table, plots, one page. The three files with a caption also go into `snakemake --report`.


rule report:
    input:
        made("report"),
        corpora=[split_file(split, "json") for split in splits_used(CONFIG)],
        overlaps=[f"{layout.overlap(task)}/overlap.json" for task in CONFIG["systems"]["tasks"]],
        bases=sorted({f"{layout.base(system.base)}/base.json" for system in GRID}),
        starts=sorted({start_of(system) for system in GRID}),
        trains=[f"{layout.train(*system)}/train.json" for system in GRID],
        decodes=[f"{layout.decode(*result)}/decode.json" for result in RESULTS],
        backends=sorted({f"{layout.backend(*result[:4])}/backend.json" for result in CALIBRATED}),
        scores=[f"{layout.score(*result)}/score.json" for result in [*RESULTS, *CALIBRATED]],
        utterances=ancient([f"{layout.score(*result)}/utterances.tsv" for result in [*RESULTS, *CALIBRATED]]),
        curves=ancient([f"{layout.train(*system)}/metrics.jsonl" for system in GRID]),
    output:
        table=report(f"{layout.report()}/results.csv", caption="../report/results.rst", category="Results"),
        comparisons=f"{layout.report()}/comparisons.csv",
        seeds=f"{layout.report()}/seeds.csv",
        text=f"{layout.report()}/results.txt",
        error=report(f"{layout.report()}/error.png", caption="../report/error.rst", category="Plots"),
        cost=report(f"{layout.report()}/cost.png", caption="../report/cost.rst", category="Plots"),
        curves=report(f"{layout.report()}/curves.png", caption="../report/curves.rst", category="Plots"),
        page=f"{layout.report()}/report.html",
        manifest=f"{layout.report()}/report.json",
    log:
        layout.log(layout.report(), "report"),
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        cfg=cfg("report"),
        code=code("report"),
        root=lambda wildcards, output: os.path.dirname(os.path.dirname(output.manifest)),
        paths=options(out="manifest"),
    shell:
        "python -m lowrank_speech.stages.report --cfg {params.cfg:q} --code {params.code} --root {params.root:q}"
        " {params.paths} --manifest {output.manifest:q} > {log:q} 2>&1"
