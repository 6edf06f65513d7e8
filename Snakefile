# The workflow: of each stage one rule that computes it and one that renders its notebook by papermill, for each asset
# where the stage is made for one. `hyperdapo run` calls it, and forces what no longer stands by its record (workflow.stale):
# here a job only waits for what it reads. On a cluster (`each_run`) every training is a job of its own; else a stage
# trains what it needs.

import json
import math
import os
import re
import sys
from base64 import b64decode
from shlex import quote

from hyperdapo import plan
from hyperdapo.evidence import provenance
from hyperdapo.params import load
from hyperdapo.paths import GENERALIST, Paths
from hyperdapo.stages import record

PROFILE = config["profile"]
OVERRIDES = b64decode(config["overrides"]).decode()
WANTED = json.loads(config["stages"]) if isinstance(config["stages"], str) else config["stages"]
AGAIN = config.get("again", "none")
PARAMETERS = load(PROFILE, json.loads(OVERRIDES))
os.environ["HYPERDAPO_OVERRIDES"] = OVERRIDES  # for every job, whatever characters it holds
ASSETS, ALGORITHMS, SEEDS = PARAMETERS.assets, PARAMETERS.training.algorithms, PARAMETERS.training.seeds
RUN = Paths(PARAMETERS.name)

EACH_RUN = bool(config.get("each_run"))
CORES = int(config.get("cores", 1))  # of this machine; on a cluster the workflow profile sets threads
SHARE = max(1, CORES // len(ASSETS))
GPU = PARAMETERS.policy.four_bit or int(config.get("gpus", 0)) > 0  # NF4 is for GPUs; and where there are some, one is used
LENGTH = max(1, (PARAMETERS.source.end_ns - PARAMETERS.source.start_ns) / (8 * 3600e9))  # of the market, in those of `sample`
MODEL_MB = 4000 + 1000 * PARAMETERS.training.memory_gb + (32000 if PARAMETERS.policy.four_bit else 0)


def needs(minutes, mem_mb):
    """Of a job that reads the market: minutes for each eight hours of it, and memory, with room to spare; no GPU."""
    return {"runtime": max(15, math.ceil(minutes * LENGTH)), "mem_mb": mem_mb, "gpu": 0}


def needs_model(minutes, gpus=1):
    """Of a job with the model: minutes, six times as many for one of four bits; memory; GPUs where it wants one."""
    runtime = minutes * (6 if PARAMETERS.policy.four_bit else 1)
    return {"runtime": runtime, "mem_mb": math.ceil(MODEL_MB), "gpu": gpus if GPU else 0}


TRAINING = needs_model(240, PARAMETERS.training.processes)
RESOURCES = {
    "04_preference_pairs": needs(3, 3000),
    "05_train": needs_model(60) if EACH_RUN else TRAINING,
    "06_convergence": needs_model(120) if EACH_RUN else TRAINING,
    "07_inference": needs_model(120),
    "08_backtest": needs(5, 4000),
    "09_significance": needs(2, 4000),
}


def folder(stage):
    return RUN if stage in plan.ACROSS_ASSETS else RUN.of("{asset}")


def computed(stage):
    return record.place(stage, folder(stage))


def shown(stage):
    return folder(stage).notebooks / f"{plan.unit(stage, folder(stage).asset).replace(' ', '_')}.ipynb"


def inputs(stage):
    """Records of the stages that a stage reads, and its trainings where those are jobs of their own."""
    patterns = [computed(maker) for maker in plan.makers(stage)]
    if EACH_RUN and stage == "05_train":
        patterns += trainings(RUN.of("{asset}"), ALGORITHMS)
    if EACH_RUN and stage == "06_convergence":
        patterns += trainings(RUN.of(GENERALIST), ALGORITHMS[:1])
    return for_all(patterns) if stage in plan.ACROSS_ASSETS else patterns


def for_all(patterns):
    return list(dict.fromkeys(str(pattern).format(asset=asset) for pattern in patterns for asset in ASSETS))


def states_of(asset):
    """Records of the states that a training learns from: of its asset, or of all."""
    names = ASSETS if asset == GENERALIST else [asset]
    return [str(computed("04_preference_pairs")).format(asset=name) for name in names]


def trainings(paths, algorithms):
    return [paths.adapter(algorithm, seed) / "training.json" for algorithm in algorithms for seed in SEEDS]


def call(command):
    environment = "OMP_NUM_THREADS={threads} exec"
    options = f"--profile {PROFILE} --overrides \"$HYPERDAPO_OVERRIDES\""
    return f"{environment} {quote(sys.executable)} -m hyperdapo.cli {command} {{params.asset}} {options}"


def of_asset(across):
    """The command's option that names the asset of a job, where it has one."""
    return "" if across else lambda wildcards: f"--asset {quote(wildcards.asset)}"


wildcard_constraints:
    asset="|".join(map(re.escape, [*ASSETS, GENERALIST])),
    algorithm="|".join(ALGORITHMS),
    seed="|".join(map(str, SEEDS)),


for stage in plan.STAGES:
    across = stage in plan.ACROSS_ASSETS

    rule:
        name: plan.rule(stage)
        input: inputs(stage),
        output: update(str(computed(stage))),  # the record of the former computation says whether it still stands
        priority: 1  # before renders, which nothing waits for
        params: stage=stage, asset=of_asset(across),
        threads: CORES if across else SHARE
        resources: **RESOURCES.get(stage, needs(2, 2000)),
        shell: call("stage {params.stage} --again {AGAIN:q}")

    rule:
        name: f"render_{plan.rule(stage)}"
        input: computed(stage),
        output: shown(stage), update(str(provenance.record_path(folder(stage), stage))),
        params: stage=stage, asset=of_asset(across),
        threads: CORES if across else SHARE
        resources: **needs(2, 4000),
        shell: call("render {params.stage} {output[0]:q}")


rule training_run:
    input: lambda wildcards: states_of(wildcards.asset),
    output: update(str(RUN.of("{asset}").adapter("{algorithm}", "{seed}") / "training.json")),
    params: asset=of_asset(across=False),
    threads: SHARE
    resources: **TRAINING,
    shell: call("train --algorithm {wildcards.algorithm} --seed {wildcards.seed}")


rule all:
    default_target: True
    input: [for_all([computed(stage), shown(stage), provenance.record_path(folder(stage), stage)]) for stage in WANTED],
