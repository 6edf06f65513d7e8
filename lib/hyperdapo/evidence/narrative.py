"""What happened in this run, in three to five sentences a stage that are generated from its frames.

The notebooks show them under "In this run", and `python -m hyperdapo.evidence.narrative` writes those of the sample run
into README.md. Costs are in bps, positive when worse for the trader; in brackets stand the bounds of an interval. What
could not be measured is said, and a null result reads as one.
"""

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown

from hyperdapo.evidence import comparison
from hyperdapo.evidence.convergence import median_arrival
from hyperdapo.evidence.gaps import RIVALS
from hyperdapo.evidence.hypotheses.registered import counts
from hyperdapo.evidence.metrics import TOTAL, WHOLE, latency_quantiles
from hyperdapo.evidence.significance import verdict
from hyperdapo.evidence.tables import listed, markdown_table
from hyperdapo.files import atomic
from hyperdapo.paths import GENERALIST, REPOSITORY

README, TABLES = REPOSITORY / "README.md", REPOSITORY / "outputs/sample/tables"
_PLAIN, _SIGNED = "z.2f", "+z.2f"
_TABLES = ("metrics", "significance", "cheapest", "learning_gap_over_seeds", "hypotheses")
_MEASURED = (("impact", "lambda_bps"), ("fill", "alpha"), ("queue", "queue_exponent"))
_RESULTS = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)
_OPENING = """The share of the way from the best fixed action to the oracle of each held-out state that each policy
goes, with its interval over blocks of time; rewards are means over training seeds:"""


def show(text: str) -> Markdown:
    """The sentences as a notebook displays them."""
    return Markdown(text)


def download(manifest: Mapping[str, Any]) -> str:
    """01, from `manifest.json`: what came, from when to when, and what was lost or asked for again."""
    messages, asset = manifest["messages"], manifest["asset"]
    if not sum(messages.values()):
        return _bullets(f"No message of {asset} came from {manifest['endpoint']}: nothing can follow.")
    first, last = pd.Timestamp(manifest["first_ns"]), pd.Timestamp(manifest["last_ns"])
    silent = [channel for channel, count in messages.items() if not count]
    return _bullets(
        f"{sum(messages.values()):,} messages of {asset} came from {manifest['endpoint']}, received from "
        f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC: {_counts(messages)}.",
        f"They are {manifest['content_bytes'] / 1e6:,.1f} MB of text, stored in "
        f"{_some(manifest['slices'], 'slice')} of {manifest['bytes'] / 1e6:,.1f} MB.",
        f"Nothing came of {listed(silent)}, so nothing can be measured from it." if silent else "",
        f"The feed has {_some(manifest['disconnects'], 'disconnect')} and "
        f"{_some(manifest['empty_minutes'], 'minute')} without a message; "
        f"{_some(manifest['retries'], 'request')} had to be repeated and "
        f"{_some(manifest['refetched'], 'damaged slice')} fetched again.",
    )


def preprocess(report: Mapping[str, Any], minutes: pd.DataFrame) -> str:
    """02, from `cleaning.json` and `quality.parquet`: rows kept and dropped, gaps, the market, usable decisions."""
    kept, dropped = sum(report["kept"].values()), sum(report["dropped"].values())
    unusable = {cause: count for cause, count in report["decisions"].items() if cause != "usable" and count}
    median = minutes.median(numeric_only=True)
    return _bullets(
        f"Of {report['asset']} {kept:,} rows were kept and {dropped:,} dropped"
        + (f" ({_counts(report['dropped'])})." if dropped else "."),
        f"The feed has {_some(len(report['gaps']), 'gap')}"
        + (f", {report['gap_s']:,.0f} s in all." if report["gaps"] else "."),
        f"In the median of {len(minutes):,} minutes the spread is {median['spread_bps']:.2f} bps, both best levels "
        f"together hold {median['depth_usd']:,.0f} USD, and the visible levels reach {median['reach_bps']:.1f} bps "
        "from the mid.",
        _mark_price(minutes["mark_error_bps"].abs()),
        f"{_of(report['decisions']['usable'], sum(report['decisions'].values()))} decision times can be used"
        + (f"; the others cannot: {_counts(unusable)}." if unusable else "."),
    )


def features(features: pd.DataFrame, laws: pd.DataFrame) -> str:
    """03, from `features.parquet` and `laws.parquet`: usable rows by split, and what was measured of the market."""
    cold = features.loc[~features["warm"], "cold_because"].value_counts()
    laws = laws.set_index(["law", "parameter"], drop=False)
    size, alpha, queue = (laws.loc[key] for key in _MEASURED)
    draft = f"the draft's {alpha['draft']:g}"
    return _bullets(
        f"{_of(features['warm'].sum(), len(features))} decision times are warm ({_splits(features)})"
        + (f"; the others are not: {_counts(cold)}." if len(cold) else "."),
        f"Impact (eq. 2.4): lambda is {_estimate(size, ' bps')}, {_holds(size['ci_low'], size['ci_high'])}.",
        square_root_verdict(laws.loc["impact"]),
        f"Fills (eq. 2.5): alpha is {_estimate(alpha)}, "
        f"{_holds(alpha['ci_low'], alpha['ci_high'], alpha['draft'], name=draft)}.",
        f"The queue's exponent is {_estimate(queue)}.",
    )


def square_root_verdict(parameters: pd.DataFrame) -> str:
    """Whether the free exponent of eq. 2.4 (row `beta`) leaves room for the draft's square root, as a sentence."""
    beta = parameters[parameters["parameter"] == "beta"].iloc[0]
    if pd.isna(beta["value"]):
        return "No exponent can be measured here: neither a square root nor another power is shown."
    if pd.isna(beta["ci_low"]):
        return f"The square root is neither shown nor refuted: beta is {beta['value']:.3f}, without an interval."
    interval = f"the interval of beta, {beta['ci_low']:.3f} to {beta['ci_high']:.3f},"
    if beta["ci_low"] <= beta["draft"] <= beta["ci_high"]:
        return f"The square root is not refuted: {interval} holds {beta['draft']:g}."
    return f"The square root is refuted here: {interval} leaves out {beta['draft']:g}. It is charged all the same."


def preference_pairs(outcomes: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """04, from `outcomes.parquet` and `pairs.parquet`: states, fills, what an action earns, and the pairs."""
    states, actions = outcomes.drop_duplicates("order_id"), [f"`{kind}`" for kind in outcomes["kind"].unique()]
    buys = (states["side"] > 0).mean()
    return _bullets(
        f"{_some(len(states), 'state')} of {_assets(states)} ({_splits(states)}; buys {_percent(buys)}) were replayed "
        f"with {len(actions)} actions each, {listed(actions)}: {len(outcomes):,} orders, "
        f"{_percent(outcomes['distinct'].mean())} of them distinct.",
        _never_filled(outcomes[outcomes["kind"] != "wait"].groupby("kind", sort=False)["filled_passive"].max()),
        _best_action(outcomes[outcomes["split"] == "train"]),
        _pairs(pairs, len(states)),
    )


def train(log: pd.DataFrame) -> str:
    """05, from the training logs of an asset: held-out rewards before and after, beside the yardsticks."""
    looks = log.dropna(subset="heldout_reward").sort_values("step")
    runs = len(log.drop_duplicates(["asset", "algorithm", "seed"]))
    opening = (
        f"{_some(runs, 'run')} on {_assets(log)}: {_distinct(log['algorithm'], 'algorithm')}, "
        f"{_distinct(log['seed'], 'seed')}, {_some(log['step'].max(), 'update')} each."
    )
    if looks.empty:
        return _bullets(opening, "No run was scored on held-out states: whether any learned is not measured.")
    first, last = (looks.groupby(["asset", "algorithm", "seed"], sort=False).nth(place) for place in (0, -1))
    ends = last.groupby("algorithm", sort=False)["heldout_reward"].mean()
    best = str(ends.idxmax())
    start, end = (rows[rows["algorithm"] == best] for rows in (first, last))
    return _bullets(
        opening,
        f"Held out, `{best}` ends best, at a reward of {_over_seeds(end['heldout_reward'], ' bps')}, from "
        f"{start['heldout_reward'].mean():z.2f} bps before training.",
        _above_fixed(ends, last["heldout_best_fixed"].mean(), last["heldout_oracle"].mean()),
        f"`{best}` chooses the best action in {_percent(end['heldout_accuracy'].mean())} of the held-out states, "
        f"{_percent(start['heldout_accuracy'].mean())} before training.",
        "No interval over states is measured here.",
    )


def convergence(runs: pd.DataFrame, earned: pd.DataFrame) -> str:
    """06, from `convergence.csv` and `specialists.parquet`: how far and how fast, and adapters on other assets."""
    rising = (runs["first_reward_bps"] < runs["last_reward_bps"]).sum()
    falling = (runs["best_reward_bps"] > runs["last_reward_bps"]).sum()
    best = "; ".join(_best_run(str(asset), rows) for asset, rows in runs.groupby("asset", sort=False))
    return _bullets(
        f"{_of(rising, len(runs))} runs ({_assets(runs)}; {_distinct(runs['algorithm'], 'algorithm')}, "
        f"{_distinct(runs['seed'], 'seed')}) end with a higher held-out reward than they began with; {falling} end "
        "below their best look.",
        f"Held-out reward at the end, best in the mean over seeds: {best}.",
        _speed(runs),
        _generalist(earned),
    )


def inference(decisions: pd.DataFrame, latency: pd.DataFrame) -> str:
    """07, from `decisions.parquet` and `latency.parquet`: what the policies choose, how alike seeds are, how fast."""
    policies = decisions.groupby("policy", sort=False)
    return _bullets(
        f"{policies.ngroups} policies decided {_distinct(decisions['order_id'], 'state')} of {_assets(decisions)} that "
        "none was trained on.",
        f"Chosen most often: {'; '.join(_favourite(str(name), rows) for name, rows in policies)}.",
        _agreement(decisions),
        *_speeds(latency),
    )


def _speeds(latency: pd.DataFrame) -> list[str]:
    """A sentence where decisions were timed."""
    whole = latency_quantiles(latency).query(f"part == '{WHOLE}'")
    speeds = ", ".join(
        f"{row.p50_ms:,.0f} ms to {row.mode} in {row.backend} (99 % within {row.p99_ms:,.0f} ms)"
        for row in whole.itertuples()
    )
    return [f"On this machine a decision takes in the median {speeds}."] if speeds else []


def backtest(orders: pd.DataFrame, summary: pd.DataFrame, scores: pd.DataFrame) -> str:
    """08, from `orders.parquet` with its blocks, its metrics, and the scores of the simulated fills."""
    total = _costs(summary)
    cheapest = str(total["value"].drop("oracle").idxmin())
    return _bullets(
        f"{_distinct(orders['order_id'], 'order')} of {_assets(orders)} were each executed by {len(total)} strategies; "
        f"intervals, in brackets, are over {_distinct(orders['block'], 'block')} of time.",
        f"Cheapest of those that can be traded is `{cheapest}`: {_cost(total, cheapest)}, chosen in hindsight on "
        f"these orders; market orders cost {_cost(total, 'market')}, and the oracle, which nobody can trade, "
        f"{_cost(total, 'oracle')}.",
        _fill_rate(orders, summary, cheapest),
        _fills(scores),
    )


def significance(tables: Mapping[str, pd.DataFrame], algorithms: Sequence[str]) -> str:
    """09, from its tables by name: the first of the trained policies.

    Its cost beside market orders and the best fixed action, its differences to that and to the cheapest strategy, the
    status of what is registered, how many of all comparisons are significant, and the gap that it closed.
    """
    measured, tests, cheapest, means, judged = (tables[name] for name in _TABLES)
    policy = algorithms[0]
    costs = {asset: _costs(rows) for asset, rows in measured.groupby("asset", sort=False)}
    levels = "; ".join(
        f"{asset} {_cost(total, policy)}, {_cost(total, 'market')} and {_cost(total, 'best_fixed')}"
        for asset, total in costs.items()
    )
    fixed, rival = (table[table["strategy"] == policy] for table in (tests, cheapest))
    gaps = means[means["algorithm"] == policy]
    sizes = "; ".join(
        f"{orders:,} an asset, in {_some(blocks, 'block')} of time ({_assets(rows)})"
        for (orders, blocks), rows in fixed.groupby(["orders", "blocks"], sort=False)
    )
    return _bullets(
        f"Every strategy executed the same orders: {sizes}. Intervals, in brackets, and tests are over blocks.",
        f"`{policy}` costs, beside market orders and the best fixed action: {levels}.",
        f"On the same orders `{policy}` differs from the best fixed action by {_each(fixed, _tested)}; from the "
        f"strategy that turned out cheapest, chosen in hindsight, by {_each(rival, _against_rival)}.",
        f"{counts(judged)} All else is secondary: {verdict(tests, algorithms).splitlines()[-1]}",
        f"Of the way from the best fixed action to the oracle of each state `{policy}` goes {_each(gaps, _gap)}.",
    )


def readme(tables: Mapping[str, pd.DataFrame]) -> str:
    """The results block of README.md, from the tables of 09 by name."""
    means = tables["learning_gap_over_seeds"]
    algorithms = [str(name) for name in means["algorithm"].unique()]
    first = means[means["algorithm"] == algorithms[0]]
    sentences = significance(tables, algorithms).splitlines()
    sentences += _bullets(
        f"`{algorithms[0]}` minus boosting, in reward on the same states: {_means(first, 'minus_boosting', _SIGNED)}; "
        f"minus the better DPO: {_means(first, 'minus_dpo', _SIGNED)}.",
        f"The way itself, which holds the oracle's luck, is {_means(first, 'room', _PLAIN)}.",
        _fills(tables["fill_calibration"]),
    ).splitlines()
    return "\n".join([_wrapped(_OPENING), "", _gap_table(means), "", *(_wrapped(line) for line in sentences), ""])


def refresh(text: str, tables: Path) -> str:
    """The text of README.md with the results block that the saved tables of a run make."""
    block = readme({name: pd.read_csv(tables / f"{name}.csv") for name in (*_TABLES, "fill_calibration")})
    block += f"\n{comparison.markdown(pd.read_csv(tables / 'worlds.csv', keep_default_na=False))}"  # one is called null
    return _RESULTS.sub(lambda _: block, text)


def _bullets(*sentences: str) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences if sentence)


def _wrapped(line: str) -> str:
    inside = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 118, subsequent_indent=inside, break_long_words=False, break_on_hyphens=False)


def _counts(counts: Mapping[Any, int] | pd.Series) -> str:
    """`train 12, test 4`."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _some(count: int, noun: str) -> str:
    """`no gaps`, `1 gap`, `1,200 gaps`."""
    return f"{f'{count:,}' if count else 'no'} {noun}{'' if count == 1 else 's'}"


def _distinct(values: pd.Series, noun: str) -> str:
    return _some(values.nunique(), noun)


def _assets(rows: pd.DataFrame) -> str:
    return listed(rows["asset"].unique())


def _splits(rows: pd.DataFrame) -> str:
    return _counts(rows["split"].value_counts().reindex(["train", "validation", "test"], fill_value=0))


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _measured(value: float, low: float, high: float, unit: str = "", digits: str = _PLAIN) -> str:
    """`1.27 bps (0.49 to 2.05)`, or what is missing of it."""
    if math.isnan(value):
        return "not measurable"
    if low * high > 0 and min(abs(low), abs(high)) < 0.005:
        digits = digits.replace("2", "3")  # or a bound beside zero would read as zero
    interval = "no interval" if math.isnan(low) else f"{low:{digits}} to {high:{digits}}"
    return f"{value:{digits}}{unit} ({interval})"


def _estimate(row: pd.Series, unit: str = "") -> str:
    return _measured(row["value"], row["ci_low"], row["ci_high"], unit)


def _over_seeds(values: pd.Series, unit: str) -> str:
    """The mean with its lowest and highest, where there are several."""
    spread = f"{values.min():{_PLAIN}} to {values.max():{_PLAIN}} over {len(values)} seeds"
    return f"{values.mean():{_PLAIN}}{unit} ({spread if len(values) > 1 else 'one seed'})"


def _holds(low: float, high: float, point: float = 0.0, name: str = "zero") -> str:
    """Whether an interval holds a point."""
    if math.isnan(low):
        return f"so whether it is {name} cannot be said"
    return f"an interval that {'holds' if low <= point <= high else 'excludes'} {name}"


def _each(rows: pd.DataFrame, phrase: Callable[[Any], str]) -> str:
    """`BTC <phrase>; ETH <phrase>`."""
    return "; ".join(f"{row.asset} {phrase(row)}" for row in rows.itertuples())


def _mark_price(errors: pd.Series) -> str:
    if errors.isna().all():
        return "Mark prices did not come, so eq. 2.2 cannot be compared with them."
    return (
        f"The published mark price is {errors.median():.3f} bps from eq. 2.2 in the median minute, and "
        f"{errors.max():.3f} bps at most."
    )


def _never_filled(most: pd.Series) -> str:
    """`most` is the largest share that was filled before the cancel, by action."""
    never = [f"`{kind}`" for kind in most.index[most == 0]]
    if len(never) == len(most):
        return "No candidate order was filled before its cancel: all were completed at the horizon."
    if not never:
        return "Of every action that sends an order some were filled before the cancel."
    return f"No order of {listed(never)} was filled before its cancel: all of these were completed at the horizon."


def _best_action(outcomes: pd.DataFrame) -> str:
    if outcomes.empty:
        return "There is no training state, so no best action."
    means = outcomes.groupby("kind", sort=False)["reward"].mean()
    best = outcomes.groupby("order_id")["reward"].max().mean()
    return (
        f"On the training states the best single action is `{means.idxmax()}`, with a mean reward of "
        f"{means.max():z.2f} bps; the best action of each state, known only in hindsight, earns {best:z.2f} bps."
    )


def _pairs(pairs: pd.DataFrame, states: int) -> str:
    if pairs.empty:
        return "No state tells a best action from a worst: there are no preference pairs."
    shares = pairs["chosen_kind"].value_counts(normalize=True)
    difference = (pairs["chosen_reward"] - pairs["rejected_reward"]).mean()
    return (
        f"{_of(len(pairs), states)} states give a preference pair; the chosen order earns {difference:.2f} bps more "
        f"than the rejected one in the mean, and is most often `{shares.index[0]}` "
        f"({_percent(shares.iloc[0])})."
    )


def _above_fixed(ends: pd.Series, fixed: float, oracle: float) -> str:
    """`ends` is the mean reward at the end, by algorithm."""
    above = [f"`{name}`" for name in ends.index[ends > fixed]]
    return (
        f"On the same states the best fixed action earns {fixed:z.2f} bps and the oracle {oracle:z.2f} bps: "
        f"{_of(len(above), len(ends))} algorithms end above the best fixed action"
        f"{f' ({listed(above)})' if above else ''}."
    )


def _best_run(asset: str, runs: pd.DataFrame) -> str:
    rewards = runs.groupby("algorithm", sort=False)["last_reward_bps"]
    best = str(rewards.mean().idxmax())
    return f"{asset} `{best}` {_over_seeds(rewards.get_group(best), ' bps')}"


def _speed(runs: pd.DataFrame) -> str:
    steps = runs.groupby("algorithm", sort=False)["steps_to_level"]
    each = [
        f"`{name}` in {_of(values.count(), len(values))} runs"
        + (f", the median one after {late:.0f} updates" if math.isfinite(late := median_arrival(values)) else "")
        for name, values in steps
    ]
    return f"90 % of the way to the best end of any run of the asset is reached by {'; '.join(each)}."


def _generalist(earned: pd.DataFrame) -> str:
    """What the adapter of all assets earns on each, beside the asset's own."""
    if GENERALIST not in set(earned["trained_on"]):
        return "No adapter was trained on all assets, so specialists are not compared with one."
    means = earned.groupby(["asset", "trained_on"], sort=False)["reward"].mean()
    each = [
        f"{asset} {means[asset, GENERALIST]:z.2f} bps (its specialist {means[asset, asset]:z.2f})"
        for asset in earned["asset"].unique()
    ]
    return f"An adapter trained on all assets earns {'; '.join(each)}; intervals of these differences are in 09."


def _favourite(policy: str, decisions: pd.DataFrame) -> str:
    shares = decisions["kind"].value_counts(normalize=True)
    return f"`{policy}` {shares.index[0]} ({_percent(shares.iloc[0])})"


def _agreement(decisions: pd.DataFrame) -> str:
    """How often all seeds of a policy choose the same action."""
    chosen = decisions.groupby(["policy", "order_id"], sort=False)["action"].agg(["min", "max", "size"])
    chosen = chosen[chosen["size"] > 1]
    agree = (chosen["min"] == chosen["max"]).groupby("policy", sort=False).mean()
    if agree.empty:
        return "Each policy has one seed, so how far seeds agree is not measured."
    each = [f"`{policy}` {_percent(share)}" for policy, share in agree.items()]
    return f"All seeds of a policy choose the same action in this share of the states: {', '.join(each)}."


def _cost(costs: pd.DataFrame, strategy: str) -> str:
    return _estimate(costs.loc[strategy], " bps")


def _costs(measured: pd.DataFrame) -> pd.DataFrame:
    """`value, ci_low, ci_high` of the total cost in bps, by strategy, of one asset."""
    return measured[measured["metric"] == TOTAL].set_index("strategy")[["value", "ci_low", "ci_high"]]


def _fill_rate(orders: pd.DataFrame, summary: pd.DataFrame, strategy: str) -> str:
    if not (orders["maker_share"] > 0).any():
        return "No order of any strategy was filled while it rested in the book."
    rates = summary[summary["metric"] == "fill_rate"].set_index("strategy")
    maker = orders.loc[orders["strategy"] == strategy, "maker_share"].mean()
    return (
        f"`{strategy}` fills a share of {_estimate(rates.loc[strategy])} of its orders before they expire; on average "
        f"{_percent(maker)} of an order is filled as maker."
    )


def _fills(scores: pd.DataFrame) -> str:
    """How true the simulated fills are, by asset: the queue model that `scores` has first, and the others."""
    each = "; ".join(_brier(str(asset), rows) for asset, rows in scores.groupby("asset", sort=False))
    others = scores[scores["queue_model"] != scores["queue_model"].iloc[0]]
    worse, better = (others["ci_low"] > 0).sum(), (others["ci_high"] < 0).sum()
    return (
        "Filled shares of probes against the matching engine's, as Brier scores (0 is perfect) of the queue model "
        f"`{scores['queue_model'].iloc[0]}`: {each}. By the intervals of the differences {worse} of {len(others)} "
        f"others are worse and {better} better."
    )


def _brier(asset: str, scores: pd.DataFrame) -> str:
    first, rest = scores.iloc[0], scores["brier"].iloc[1:]
    return f"{asset} {first.brier:.4f} ({first.orders:,} probes, other models {rest.min():.4f} to {rest.max():.4f})"


def _difference(row: Any) -> str:
    return _measured(row.difference_bps, row.ci_low, row.ci_high, " bps", _SIGNED)


def _tested(row: Any) -> str:
    """A difference to the best fixed action, and what its test says, or why there is none (NaN in a CSV: no reason)."""
    if isinstance(row.note, str) and row.note:
        return f"{row.difference_bps:{_SIGNED}} bps, not tested: {row.note}"
    direction = "cheaper" if row.difference_bps < 0 else "more expensive"
    difference = _measured(row.difference_bps, row.joint_low, row.joint_high, " bps", _SIGNED)
    return f"{difference}, {f'significantly {direction}' if row.significant else 'not significant'}"


def _against_rival(row: Any) -> str:
    beside = f"{_difference(row)} to `{row.cheapest}`, {_holds(row.ci_low, row.ci_high)}"
    return "nothing, as it is the cheapest itself" if row.strategy == row.cheapest else beside


def _gap(row: Any) -> str:
    seeds = f"{row.seeds} seeds {row.lowest_seed:{_PLAIN}} to {row.highest_seed:{_PLAIN}}"
    return f"{_measured(row.gap_closed, row.gap_ci_low, row.gap_ci_high)}, {seeds if row.seeds > 1 else 'one seed'}"


def _means(rows: pd.DataFrame, name: str, digits: str) -> str:
    """The means of a quantity, in bps, by asset."""
    columns = [f"{name}_bps", f"{name}_ci_low", f"{name}_ci_high"]
    bounds = rows.set_index("asset")[columns].itertuples(name=None)
    return "; ".join(f"{asset} {_measured(mean, low, high, ' bps', digits)}" for asset, mean, low, high in bounds)


def _gap_table(means: pd.DataFrame) -> str:
    """Markdown: a row per trained policy and rival, a column per asset."""
    rows = [
        [f"`{algorithm}`", *(_measured(row.gap_closed, row.gap_ci_low, row.gap_ci_high) for row in gaps.itertuples())]
        for algorithm, gaps in means.groupby("algorithm", sort=False)
    ]
    shares = means.groupby("asset", sort=False).first()
    rows += [[rival, *(f"{closed:{_PLAIN}}" for closed in shares[f"{rival}_gap_closed"])] for rival in RIVALS]
    return markdown_table(["gap closed", *map(str, means["asset"].unique())], rows)


if __name__ == "__main__":
    with atomic(README) as temporary:
        temporary.write_text(refresh(README.read_text(encoding="utf-8"), TABLES), encoding="utf-8")
