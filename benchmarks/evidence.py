"""The statistics of 09 at the size of a long day: 4 assets, 16 strategies, 20,000 orders each, 1,000 resamples.

`evidence_in_60_s`: every test, interval and table that 09 makes of `orders.parquet`, on the cores that there are,
against the minute that we allow. The orders are drawn: costs that share a slow market, and a part of each strategy's.
"""

import sys

import numpy as np
import pandas as pd
from _timing import best_of

from hyperdapo.evidence import metrics, significance
from hyperdapo.evidence.hypotheses import courses, registered
from hyperdapo.evidence.hypotheses.conditions import conditions
from hyperdapo.evidence.hypotheses.superiority import superiority
from hyperdapo.params import load
from hyperdapo.times import HOUR_NS

ASSETS, ORDERS, HOURS, BUDGET_S = ("BTC", "ETH", "SOL", "HYPE"), 20_000, 24, 60.0
PARAMETERS = load("sample", {"evidence": {"bootstrap": 1000}})
POLICY, REFERENCE = PARAMETERS.hypotheses.policy, "market"
STRATEGIES = (
    *dict.fromkeys([REFERENCE, *PARAMETERS.hypotheses.references, POLICY]),
    *("join_best", "mid_peg", "threshold", "linear", "mlp", "boosting", "boosting_sequential", "reward_weighted"),
)


def main() -> None:
    """Print the lines of `benchmarks`."""
    drawn = pd.concat([orders(asset, np.random.default_rng([0, place])) for place, asset in enumerate(ASSETS)])
    seconds, tables = best_of(lambda: evidence(drawn.reset_index(drop=True)), 1)
    rows = sum(len(table) for table in tables)
    print(f"evidence: {len(drawn):,} orders of {len(STRATEGIES)} strategies, {rows:,} rows", file=sys.stderr)
    print(f"BENCH evidence_in_{BUDGET_S:g}_s {seconds:.2f} {BUDGET_S:.2f} {BUDGET_S / seconds:.2f} 1")


def evidence(executed: pd.DataFrame) -> list[pd.DataFrame]:
    """As `stages.significance` makes them."""
    asked, seed = PARAMETERS.evidence, PARAMETERS.seed
    tests = significance.paired_tests(executed, REFERENCE, asked, seed)
    tables = [
        registered.judge(executed, PARAMETERS.hypotheses, asked, seed),
        tests,
        superiority(executed, [POLICY], asked, seed),
        conditions(executed, POLICY, REFERENCE, asked, seed),
        courses.cumulative(executed, POLICY, PARAMETERS.hypotheses.references, asked),
        courses.distribution(executed),
    ]
    asked = asked.model_copy(update={"block_s": float(tests["block_s"].iloc[0])})
    blocks = metrics.in_blocks(executed, asked.block_s)
    return [
        *tables,
        metrics.main_table(blocks, asked, seed),
        metrics.summarise(blocks, asked, seed),
        significance.against_the_cheapest(blocks, [POLICY], asked, seed),
        *(metrics.decompose(blocks, reference, asked, seed) for reference in (REFERENCE, "best_fixed")),
    ]


def orders(asset: str, rng: np.random.Generator) -> pd.DataFrame:
    """Rows of `orders.parquet`, as far as 09 reads them, of all strategies on the same orders."""
    market = 0.1 * np.cumsum(rng.normal(size=ORDERS)) / np.sqrt(1 + np.arange(ORDERS))
    state = pd.DataFrame(
        {
            "order_id": np.arange(ORDERS),
            "decision_ns": PARAMETERS.source.start_ns + np.linspace(0, HOURS * HOUR_NS, ORDERS).astype(np.int64),
            "side": rng.choice([-1, 1], ORDERS),
            "volatility_5m_bps": rng.lognormal(size=ORDERS),
            "bid_ask_spread_bps": rng.lognormal(size=ORDERS),
            "book_imbalance": rng.uniform(-1, 1, ORDERS),
        }
    )
    return pd.concat([_executed(state, strategy, market, rng) for strategy in STRATEGIES]).assign(asset=asset)


def _executed(state: pd.DataFrame, strategy: str, market: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    price, takes = market + rng.normal(size=ORDERS), rng.uniform(size=ORDERS) < 0.3
    fees = np.where(takes, 4.5, 1.5)
    parts = {name: price / 3 for name in ("spread_bps", "timing_bps", "opportunity_bps")}
    marks = {
        f"{side}markout_{s}s_bps": rng.normal(size=ORDERS) for side in ("", "maker_", "taker_") for s in (1, 5, 10, 60)
    }
    return state.assign(
        strategy=strategy,
        seed=-1,
        objective="balanced",
        size=1.0,
        horizon_s=60.0,
        arrival_mid=100.0,
        filled=~takes,
        filled_passive=1.0 - takes,
        maker_share=1.0 - takes,
        filled_queue=0.0,
        filled_through=0.0,
        filled_crossed=0.0,
        fees_bps=fees,
        funding_bps=0.0,
        implementation_shortfall_bps=price,
        slippage_bps=price,
        total_cost_bps=fees + price,
        cost_all_ahead_bps=fees + price - 0.1,
        cost_all_behind_bps=fees + price + 0.1,
        latency_ms=250.0,
        split="test",
        **parts,
        **marks,
    )


if __name__ == "__main__":
    main()
