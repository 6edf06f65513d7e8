# The workflow: one rule per notebook, per asset where the stage is; each executes its notebook by papermill.
# `hyperdapo run` calls it. A stage runs again when its notebook, a module it imports, a parameter it
# mentions, or an input changes.

import json
import os
import re
import sys
from base64 import b64decode
from shlex import quote

from hyperdapo import workflow as pipeline
from hyperdapo.evidence import manifest
from hyperdapo.params import load
from hyperdapo.paths import Paths
from snakemake.io import strip_wildcard_constraints as plain

PROFILE = config["profile"]
OVERRIDES = b64decode(config["overrides"]).decode()
STAGES_WANTED = json.loads(config["stages"]) if isinstance(config["stages"], str) else config["stages"]
PARAMETERS = load(PROFILE, json.loads(OVERRIDES))
os.environ["HYPERDAPO_OVERRIDES"] = OVERRIDES  # not in the rules: a rule depends on its own sections only
ASSETS, ALGORITHMS = PARAMETERS.assets, PARAMETERS.training.algorithms

PATHS, EACH = Paths(PROFILE), Paths(PROFILE, "{asset}")
NEEDS = {stage: pipeline.dependencies(stage) for stage in pipeline.STAGES}
CODE = {stage: files for stage, (files, _) in NEEDS.items()}
VALUES = {stage: pipeline.section_values(PARAMETERS, names) for stage, (_, names) in NEEDS.items()}


def rendered(stage, paths=EACH):
    suffix = "" if stage in pipeline.ACROSS_ASSETS else f"_{paths.asset}"
    return paths.notebooks / f"{stage}{suffix}.ipynb"


def record(stage):
    return manifest.record_path(PATHS if stage in pipeline.ACROSS_ASSETS else EACH, stage)


def for_all(*patterns):
    return [str(pattern).format(asset=asset) for pattern in patterns for asset in ASSETS]


def execute(stage):
    asset = "" if stage in pipeline.ACROSS_ASSETS else " --asset {wildcards.asset:q}"
    render = f"OMP_NUM_THREADS=1 {quote(sys.executable)} -m hyperdapo.cli render {stage} {{output.notebook:q}}"
    return f"{render} --profile {PROFILE}{asset} --overrides \"$HYPERDAPO_OVERRIDES\""


wildcard_constraints:
    asset="|".join(map(re.escape, ASSETS)),


rule all:
    default_target: True
    input:
        [for_all(rendered(stage)) if stage not in pipeline.ACROSS_ASSETS else rendered(stage) for stage in STAGES_WANTED],


rule download:
    input: CODE["01_download"],
    output: EACH.data / "manifest.json", notebook=rendered("01_download"), record=record("01_download"),
    params: values=VALUES["01_download"],
    shell: execute("01_download")


rule preprocess:
    input: CODE["02_preprocess"], EACH.data / "manifest.json",
    output:
        *(EACH.data / name for name in ["book.parquet", "bbo.parquet", "trades.parquet", "context.parquet", "quality.parquet", "cleaning.json", "split.json"]),
        notebook=rendered("02_preprocess"), record=record("02_preprocess"),
    params: values=VALUES["02_preprocess"],
    shell: execute("02_preprocess")


MARKET = rules.preprocess.output[:7]


rule features:
    input: CODE["03_features"], MARKET,
    output: EACH.data / "features.parquet", EACH.data / "laws.parquet", notebook=rendered("03_features"), record=record("03_features"),
    params: values=VALUES["03_features"],
    shell: execute("03_features")


rule preference_pairs:
    input: CODE["04_preference_pairs"], MARKET, EACH.data / "features.parquet", EACH.data / "laws.parquet",
    output: EACH.data / "outcomes.parquet", EACH.data / "pairs.parquet", notebook=rendered("04_preference_pairs"), record=record("04_preference_pairs"),
    params: values=VALUES["04_preference_pairs"],
    shell: execute("04_preference_pairs")


rule train:
    input: CODE["05_train"], EACH.data / "features.parquet", EACH.data / "outcomes.parquet",
    output: [EACH.model(algorithm) / "training_log.csv" for algorithm in ALGORITHMS], notebook=rendered("05_train"), record=record("05_train"),
    params: values=VALUES["05_train"],
    resources: gpu=1,
    shell: execute("05_train")


rule convergence:
    input: CODE["06_convergence"], for_all(*rules.train.output[: len(ALGORITHMS)], EACH.data / "features.parquet", EACH.data / "outcomes.parquet"),
    output: PATHS.tables / "convergence.csv", PATHS.data / "specialists.parquet", PATHS.outputs / "dashboard.html", notebook=rendered("06_convergence", PATHS), record=record("06_convergence"),
    params: values=VALUES["06_convergence"],
    resources: gpu=1,
    shell: execute("06_convergence")


rule inference:
    input: CODE["07_inference"], rules.train.output, EACH.data / "features.parquet", EACH.data / "outcomes.parquet",
    output: EACH.data / "decisions.parquet", notebook=rendered("07_inference"), record=record("07_inference"),
    params: values=VALUES["07_inference"],
    resources: gpu=1,
    shell: execute("07_inference")


rule backtest:
    input: CODE["08_backtest"], MARKET, *(EACH.data / f"{name}.parquet" for name in ["features", "laws", "outcomes", "decisions"]),
    output: EACH.data / "orders.parquet", EACH.data / "calibration.parquet", notebook=rendered("08_backtest"), record=record("08_backtest"),
    params: values=VALUES["08_backtest"],
    shell: execute("08_backtest")


rule significance:
    input: CODE["09_significance"], PATHS.tables / "convergence.csv", PATHS.data / "specialists.parquet", for_all(*(EACH.data / f"{name}.parquet" for name in ["orders", "calibration", "outcomes", "decisions"])),
    output: PATHS.outputs / "numbers.tex", PATHS.outputs / "manifest.json", notebook=rendered("09_significance", PATHS), record=record("09_significance"),
    params: values=VALUES["09_significance"],
    shell: execute("09_significance")


if "files" in config:  # `hyperdapo remote` asks what each stage reads and writes
    FILES = {rule.name: [[plain(str(name)) for name in names] for names in (rule.input, rule.output)] for rule in workflow.rules}
    with open(config["files"], "w") as listing:
        json.dump(FILES, listing)
