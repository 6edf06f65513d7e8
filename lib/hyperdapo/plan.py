"""The nine stages by name: what each reads and leaves for others, for which assets, and what its jobs are called."""

from collections.abc import Iterable, Sequence

from hyperdapo.errors import ParameterError, nearest
from hyperdapo.paths import NOTEBOOKS

STAGES = tuple(path.stem for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")))
ACROSS_ASSETS = ("06_convergence", "09_significance")
WITH_MODEL = ("05_train", "06_convergence", "07_inference")

MARKET = ("book.parquet", "bbo.parquet", "trades.parquet", "context.parquet", "cleaning.json", "split.json")
STATES = ("features.parquet", "outcomes.parquet")
MODELS = "models"
"""Stands among the files of an asset for the adapters that were trained for it, with their logs."""

WRITES = {
    "01_download": ("manifest.json",),
    "02_preprocess": (*MARKET, "quality.parquet"),
    "03_features": (
        *("features.parquet", "laws.parquet", "impact_curve.parquet", "fill_curve.parquet", "queue.parquet"),
        "moments.parquet",
    ),
    "04_preference_pairs": (
        *("outcomes.parquet", "pairs.parquet", "prompts.parquet"),
        *("weight_trials.parquet", "weight_costs.parquet"),
        "action_values.parquet",
    ),
    "05_train": (MODELS,),
    "06_convergence": ("convergence.parquet", "specialists.parquet"),
    "07_inference": (
        *("decisions.parquet", "again.parquet"),
        *("latency.parquet", "precisions.parquet", "throughput.parquet"),
    ),
    "08_backtest": (
        *("requoting.parquet", "orders.parquet", "sequential.parquet", "sensitivity.parquet", "probes.parquet"),
        "order_life.parquet",
        *("own_fills.parquet", "fees.parquet"),  # where `truth` names records of real executions
        *("level3_fills.parquet", "cancel_splits.parquet"),  # where it names every order by its id
    ),
    "09_significance": (
        *("main.parquet", "metrics.parquet", "fill_calibration.parquet", "learning_gap.parquet"),
        *("learning_gap_over_seeds.parquet", "specialist_gaps.parquet", "significance.parquet"),
        *("cheapest.parquet", "decomposition.parquet", "decided_again.parquet", "how_often.parquet", "claims.parquet"),
        *("hypotheses.parquet", "superiority.parquet", "placebo.parquet", "conditions.parquet"),
        *("cumulative.parquet", "distribution.parquet", "dataset.parquet"),
    ),
}
"""What each stage leaves in the folder of its asset, or of the run where it is made across assets."""

READS = {
    "01_download": (),
    "02_preprocess": ("manifest.json",),
    "03_features": (*MARKET, "quality.parquet"),
    "04_preference_pairs": (*MARKET, "features.parquet", "laws.parquet"),
    "05_train": (*STATES, "action_values.parquet"),
    "06_convergence": (*STATES, MODELS),
    "07_inference": (*STATES, "action_values.parquet", MODELS),
    "08_backtest": (*MARKET, *STATES, "laws.parquet", "decisions.parquet", "again.parquet", "latency.parquet"),
    "09_significance": (
        *("orders.parquet", "sequential.parquet", "probes.parquet", "outcomes.parquet", "decisions.parquet"),
        *("convergence.parquet", "specialists.parquet", "cleaning.json", "quality.parquet"),
    ),
}
"""What each stage reads of those before it; across assets, of every asset."""

WRITTEN_BY = {name: stage for stage, names in WRITES.items() for name in names}


def makers(stage: str) -> list[str]:
    """The stages whose files a stage reads, in their order."""
    return sorted({WRITTEN_BY[name] for name in READS[stage]})


def before(stage: str) -> list[str]:
    """All stages on which a stage depends, directly or through others, in their order."""
    known = {maker: None for first in makers(stage) for maker in (*before(first), first)}
    return sorted(known)


def assets_of(stage: str, assets: Sequence[str]) -> Sequence[str]:
    """For which assets of a run a stage is made: each, or "" where it is made across them."""
    return [""] if stage in ACROSS_ASSETS else assets


def units(assets: Iterable[str]) -> list[str]:
    """Every stage of a whole run, by asset where it is made for one: `05_train BTC`, `06_convergence`."""
    return [unit(stage, asset) for stage in STAGES for asset in assets_of(stage, list(assets))]


def unit(stage: str, asset: str = "") -> str:
    """A stage of one asset, or of all: `05_train BTC`, `06_convergence`."""
    return f"{stage} {asset}".strip()


def wanted(until: str | None = None, only: str | None = None) -> list[str]:
    """The stages up to `until`, or `only` one, or all; raises as `named`."""
    last = named(only or until or STAGES[-1])
    return [last] if only else list(STAGES[: STAGES.index(last) + 1])


def named(stage: str) -> str:
    """The stage that a user means by `05` or `05_train`.

    Raises
    ------
    ParameterError
        If there is none.
    """
    for known in STAGES:
        if stage in (known, known[:2]):
            return known
    raise ParameterError(f"no stage {stage!r}{nearest(stage, STAGES)}; there are {', '.join(STAGES)}")


def rule(stage: str) -> str:
    """The Snakefile's rule that computes a stage: its name without the number."""
    return stage[3:]


def rules(stage: str) -> list[str]:
    """The rules of a stage: the one that computes it, and the one that renders its notebook."""
    return [rule(stage), f"render_{rule(stage)}"]


def labels() -> dict[str, str]:
    """What the jobs of each rule are called: `05_train`, `05_render`, and `05_run` for one training on a cluster."""
    computed = {rule(stage): stage for stage in STAGES}
    return computed | {f"render_{rule(stage)}": f"{stage[:2]}_render" for stage in STAGES} | {"training_run": "05_run"}
