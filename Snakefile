# The workflow: one rule per notebook, per asset where the stage is; each executes its notebook by papermill. What 05 and
# 06 show is trained before, by rules of its own: all runs of an asset in one job, or, with `each_run`, a job for each.
# `hyperdapo run` calls it. A stage runs again when its notebook, a module it imports, a parameter it
# mentions, or an input changes.

import json
import math
import os
import re
import sys
from base64 import b64decode
from shlex import quote

from hyperdapo import plan as pipeline
from hyperdapo.evidence import provenance as manifest
from hyperdapo.workflow import dependencies as needs_of
from hyperdapo.params import load
from hyperdapo.paths import GENERALIST, Paths
from snakemake.io import strip_wildcard_constraints as plain

PROFILE = config["profile"]
OVERRIDES = b64decode(config["overrides"]).decode()
STAGES_WANTED = json.loads(config["stages"]) if isinstance(config["stages"], str) else config["stages"]
PARAMETERS = load(PROFILE, json.loads(OVERRIDES))
os.environ["HYPERDAPO_OVERRIDES"] = OVERRIDES  # not in the rules: a rule depends on its own sections only
ASSETS, ALGORITHMS, SEEDS = PARAMETERS.assets, PARAMETERS.training.algorithms, PARAMETERS.training.seeds

PATHS, EACH, ALL = Paths(PROFILE), Paths(PROFILE, "{asset}"), Paths(PROFILE, GENERALIST)
NEEDS = {stage: needs_of.dependencies(stage) for stage in pipeline.STAGES} | {"training": needs_of.training_dependencies()}
CODE = {stage: files for stage, (files, _) in NEEDS.items()}
VALUES = {stage: needs_of.section_values(PARAMETERS, names) for stage, (_, names) in NEEDS.items()}

EACH_RUN = bool(config.get("each_run"))
CORES = int(config.get("cores", 1))  # of this machine; on a cluster the workflow profile sets threads
SHARE = max(1, CORES // len(ASSETS))
GPU = PARAMETERS.policy.four_bit or int(config.get("gpus", 0)) > 0  # NF4 is for GPUs; and where there are some, one is used
LENGTH = max(1, (PARAMETERS.source.end_ns - PARAMETERS.source.start_ns) / (8 * 3600e9))  # of the market, in those of `sample`
MODEL_MB = 4000 + 1000 * PARAMETERS.training.memory_gb + (32000 if PARAMETERS.policy.four_bit else 0)


def rendered(stage, paths=EACH):
    suffix = "" if stage in pipeline.ACROSS_ASSETS else f"_{paths.asset}"
    return paths.notebooks / f"{stage}{suffix}.ipynb"


def record(stage):
    return manifest.record_path(PATHS if stage in pipeline.ACROSS_ASSETS else EACH, stage)


def for_all(*patterns):
    return [str(pattern).format(asset=asset) for pattern in patterns for asset in ASSETS]


def former_kept(*files):
    """Outputs that a stage writes whole or not at all: where it fails, the former ones come back."""
    return [update(str(file)) for file in files]


def adapters(paths, algorithms):
    return [paths.adapter(algorithm, seed) for algorithm in algorithms for seed in SEEDS]


TRAINED = {"05_train": for_all(*adapters(EACH, ALGORITHMS)), "06_convergence": adapters(ALL, ALGORITHMS[:1])}


def call(command):
    return f"OMP_NUM_THREADS={{threads}} exec {quote(sys.executable)} -m hyperdapo.cli {command} --profile {PROFILE} --overrides \"$HYPERDAPO_OVERRIDES\""


def execute(stage):
    asset = "" if stage in pipeline.ACROSS_ASSETS else " --asset {wildcards.asset:q}"
    return call(f"render {stage} {{output.notebook:q}}{asset}")


def train(asset):
    return call(f"train --asset {asset}" + (" --algorithm {wildcards.algorithm} --seed {wildcards.seed}" if EACH_RUN else ""))


def needs(minutes, mem_mb):
    """Of a job that reads the market: minutes for each eight hours of it, and memory, with room to spare; no GPU."""
    return {"runtime": max(15, math.ceil(minutes * LENGTH)), "mem_mb": mem_mb, "gpu": 0}


def needs_model(minutes, gpus=1):
    """Of a job with the model: minutes, six times as many for one of four bits; memory; GPUs where it wants one."""
    runtime = minutes * (6 if PARAMETERS.policy.four_bit else 1)
    return {"runtime": runtime, "mem_mb": math.ceil(MODEL_MB), "gpu": gpus if GPU else 0}


MARKET = [EACH.data / f"{name}.parquet" for name in ["book", "bbo", "trades", "context", "quality"]]
MARKET += [EACH.data / "cleaning.json", EACH.data / "split.json"]


wildcard_constraints:
    asset="|".join(map(re.escape, ASSETS)),
    algorithm="|".join(ALGORITHMS),
    seed="|".join(map(str, SEEDS)),


rule download:
    input: CODE["01_download"],
    output: EACH.data / "manifest.json", notebook=rendered("01_download"), record=record("01_download"),
    params: values=VALUES["01_download"],
    threads: SHARE
    resources: **needs(2, 2000),
    shell: execute("01_download")


rule preprocess:
    input: CODE["02_preprocess"], EACH.data / "manifest.json",
    output: *former_kept(*MARKET), notebook=rendered("02_preprocess"), record=record("02_preprocess"),
    params: values=VALUES["02_preprocess"],
    threads: SHARE
    resources: **needs(2, 2000),
    shell: execute("02_preprocess")


rule features:
    input: CODE["03_features"], MARKET,
    output: *former_kept(EACH.data / "features.parquet", EACH.data / "laws.parquet"), notebook=rendered("03_features"), record=record("03_features"),
    params: values=VALUES["03_features"],
    threads: SHARE
    resources: **needs(2, 2000),
    shell: execute("03_features")


rule preference_pairs:
    input: CODE["04_preference_pairs"], MARKET, EACH.data / "features.parquet", EACH.data / "laws.parquet",
    output: *former_kept(EACH.data / "outcomes.parquet", EACH.data / "pairs.parquet"), notebook=rendered("04_preference_pairs"), record=record("04_preference_pairs"),
    params: values=VALUES["04_preference_pairs"],
    threads: SHARE
    resources: **needs(3, 3000),
    shell: execute("04_preference_pairs")


STATES = [EACH.data / "features.parquet", EACH.data / "outcomes.parquet"]


rule adapters:
    input: CODE["training"], STATES,
    output: [directory(folder) for folder in ([EACH.adapter("{algorithm}", "{seed}")] if EACH_RUN else adapters(EACH, ALGORITHMS))],
    params: values=VALUES["training"],
    threads: SHARE
    resources: **needs_model(240, PARAMETERS.training.processes),
    shell: train("{wildcards.asset:q}")


rule train:
    input: CODE["05_train"], STATES, adapters(EACH, ALGORITHMS),
    output: [EACH.model(algorithm) / "training_log.csv" for algorithm in ALGORITHMS], notebook=rendered("05_train"), record=record("05_train"),
    params: values=VALUES["05_train"],
    threads: SHARE
    resources: **needs_model(60),
    shell: execute("05_train")


rule generalist:
    input: CODE["training"], for_all(*STATES),
    output: [directory(folder) for folder in ([ALL.adapter("{algorithm}", "{seed}")] if EACH_RUN else TRAINED["06_convergence"])],
    params: values=VALUES["training"],
    threads: CORES
    resources: **needs_model(240, PARAMETERS.training.processes),
    shell: train(GENERALIST)


rule convergence:
    input: CODE["06_convergence"], for_all(*rules.train.output[: len(ALGORITHMS)], *STATES), TRAINED["06_convergence"],
    output: PATHS.tables / "convergence.csv", PATHS.data / "specialists.parquet", PATHS.outputs / "dashboard.html", notebook=rendered("06_convergence", PATHS), record=record("06_convergence"),
    params: values=VALUES["06_convergence"],
    threads: CORES
    resources: **needs_model(120),
    shell: execute("06_convergence")


rule inference:
    input: CODE["07_inference"], rules.train.output, STATES,
    output: *former_kept(EACH.data / "decisions.parquet"), notebook=rendered("07_inference"), record=record("07_inference"),
    params: values=VALUES["07_inference"],
    threads: SHARE
    resources: **needs_model(120),
    shell: execute("07_inference")


rule backtest:
    input: CODE["08_backtest"], MARKET, *(EACH.data / f"{name}.parquet" for name in ["features", "laws", "outcomes", "decisions"]),
    output: *former_kept(EACH.data / "orders.parquet", EACH.data / "calibration.parquet"), notebook=rendered("08_backtest"), record=record("08_backtest"),
    params: values=VALUES["08_backtest"],
    threads: SHARE
    resources: **needs(5, 4000),
    shell: execute("08_backtest")


rule significance:
    input: CODE["09_significance"], PATHS.tables / "convergence.csv", PATHS.data / "specialists.parquet", for_all(*(EACH.data / f"{name}.parquet" for name in ["orders", "calibration", "outcomes", "decisions"])),
    output: PATHS.outputs / "numbers.tex", PATHS.outputs / "manifest.json", notebook=rendered("09_significance", PATHS), record=record("09_significance"),
    params: values=VALUES["09_significance"],
    threads: CORES
    resources: **needs(2, 4000),
    shell: execute("09_significance")


WANTED = [plain(str(name)) for stage in STAGES_WANTED for name in getattr(rules, pipeline.rule(stage)).output]


rule all:  # every file of a wanted stage, not its notebook alone: a lost one is made again
    default_target: True
    input:
        [name.format(asset=asset) for name in WANTED for asset in (ASSETS if "{asset}" in name else [""])],
        [TRAINED.get(stage, []) for stage in STAGES_WANTED],


if "files" in config:  # `hyperdapo remote` asks what each stage reads and writes
    FILES = {rule.name: [[plain(str(name)) for name in names] for names in (rule.input, rule.output)] for rule in workflow.rules}
    with open(config["files"], "w") as listing:
        json.dump(FILES, listing)
