# From speech to a table of error rates and costs; see README.md.
#
#   snakemake --cores all                                                    the default experiment, config.yaml
#   snakemake --cores all --configfile workflow/experiments/digits.yaml      another one
#   snakemake --cores all --workflow-profile workflow/profiles/slurm         on a cluster
#   snakemake --cores all exp/default/export/wav2vec2/asr/lowrank/dense/export.json
#
# A config file that has `corpora` stands alone; one without it is laid over config.yaml.

import os

if "corpora" not in config:

    configfile: os.path.join(workflow.basedir, "config.yaml")


include: "workflow/rules/common.smk"
include: "workflow/rules/corpus.smk"
include: "workflow/rules/lang.smk"
include: "workflow/rules/lm.smk"
include: "workflow/rules/graph.smk"
include: "workflow/rules/base.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/factorise.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/decode.smk"
include: "workflow/rules/backend.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/export.smk"


localrules:
    all,
    report,


# `make run` shows the errors itself, after Snakemake's output.
onerror:
    if "LOWRANK_SPEECH_LAUNCHED" not in os.environ:
        sys.stderr.write("".join(f"{line}\n" for line in errors(layout, STARTED)))


rule all:
    default_target: True
    input:
        f"{layout.report()}/report.json",
        f"{layout.report()}/results.csv",
        f"{layout.report()}/results.txt",
        f"{layout.report()}/report.html",
