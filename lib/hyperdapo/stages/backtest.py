"""08: every strategy on the test orders of one asset, how true their fills are, and what they cost otherwise."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from hyperdapo.actions import Action
from hyperdapo.execution import history, strategies, validation
from hyperdapo.execution.costs import explain_fees, fee_shares
from hyperdapo.execution.history import read_account
from hyperdapo.execution.laws import as_measured
from hyperdapo.execution.parents import action_orders, life_s, parent_orders, parents_in_parts
from hyperdapo.execution.queue_fit import fit_queue, observe_makers
from hyperdapo.execution.simulator import replay_orders, trace_order
from hyperdapo.files import read_table, write_table
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.sequential import intervals
from hyperdapo.sequential.iteration import BOOSTING, is_trained, policies
from hyperdapo.sequential.rollouts import execute as execute_again
from hyperdapo.stages.truth import judge_level3
from hyperdapo.synthetic.exchange import World
from hyperdapo.synthetic.probes import play_probes
from hyperdapo.times import HOUR_NS, SECOND_NS, Span

_SEARCHED = 500  # test orders among which one is looked for whose life can be shown
_ORDER = ["decision_ns", "arrival_ns", "side", "size", "limit_price", "arrival_mid"]


def compute(parameters: Parameters, paths: Paths, trained_on: Paths | None = None) -> list[Path]:
    """Execute the test orders by every strategy and under other assumptions, and probe the simulator's fills.

    `trained_on` has the market of the training split, where it is another than that of the test.

    Raises
    ------
    DataError
        If an account's own records, a node's, or a level-3 stream are damaged.
    """
    outcomes = read_table(paths.data, "outcomes")
    tests = outcomes[outcomes["split"] == "test"].drop_duplicates("order_id")
    states = read_table(paths.data, "features").loc[tests["order_id"]]
    assumed = as_measured(parameters, read_table(paths.data, "laws"))
    tables = execute(assumed, paths, states, outcomes, trained_on or paths)
    tables |= {"probes": probe(parameters, paths), "order_life": one_life(assumed, paths, states.head(_SEARCHED))}
    tables |= judge_records(assumed, paths)
    return [write_table(table, paths.data, name) for name, table in tables.items()]


def execute(
    parameters: Parameters, paths: Paths, states: pd.DataFrame, outcomes: pd.DataFrame, trained_on: Paths
) -> dict[str, pd.DataFrame]:
    """`requoting.parquet`: what was tried on the training split. `orders.parquet` and `sensitivity.parquet`: every
    strategy. `sequential.parquet`: on those orders on which the language model decides again, where it does, it too,
    and what decides at other intervals (`sequential.intervals_s`).

    `states` are rows of features, one a test order; the market is read a part of the span at a time.
    """
    decisions, table = read_table(paths.data, "decisions"), read_table(paths.data, "again")
    plays: dict[str, strategies.Play] = {
        name: partial(execute_again, policy) for name, policy in policies(table).items()
    }
    always, some = {BOOSTING: plays[BOOSTING]}, table.loc[table["policy"] != BOOSTING, "order_id"].unique()
    if is_trained(parameters, paths.asset) and trained_on == paths:
        begun = partial(parents_in_parts, paths.data, read_table(paths.data, "features"), parameters)
        plays |= intervals.plays(paths.data, begun, outcomes, parameters)
    tried = strategies.try_requoting(_parts(trained_on, parameters), outcomes, parameters)
    quoted_anew = strategies.Requoting.cheapest(tried, parameters.policy.actions)
    trained, timed_ms = strategies.train(Market.in_parts(trained_on.data), outcomes, quoted_anew), _timed_ms(paths)
    executed, scenarios, sequential = [], [], []
    for part, market in _parts(paths, parameters):
        here = states[states["decision_ns"].between(*part, inclusive="left")]
        if len(here):
            parents = parent_orders(here, parameters, market)
            known = trained, outcomes, decisions, parameters
            executed.append(strategies.backtest(market, parents, *known, always))
            scenarios.append(strategies.sensitivity(market, parents, *known, executed[-1], always, timed_ms))
            if len(few := parents[parents["order_id"].isin(some)]):
                sequential.append(strategies.backtest(market, few, *known, plays))
    tables = {"requoting": tried, "orders": pd.concat(executed, ignore_index=True)}
    tables["sensitivity"] = strategies.mean_costs(scenarios).reset_index()
    return tables | {"sequential": pd.concat(sequential or executed, ignore_index=True)}


def _parts(paths: Paths, parameters: Parameters) -> Iterator[tuple[Span, Market]]:
    """The parts of a market, each with what strategies look back on and what its orders live through."""
    return Market.in_parts(paths.data, strategies.LOOKS_BACK_S, life_s(parameters.orders))


def _timed_ms(paths: Paths) -> Floats:
    """How long the decisions took that 07 timed first, those of the policy as it is; none of an asset without."""
    times = read_table(paths.data, "latency")
    whole = times[times["part"] == "all"]
    first = (whole[["backend", "mode"]] == whole[["backend", "mode"]].head(1).squeeze()).all(axis=1)
    times_ms: Floats = whole.loc[first, "ms"].to_numpy(float)
    return times_ms


def one_life(parameters: Parameters, paths: Paths, states: pd.DataFrame) -> pd.DataFrame:
    """The events of one resting order that was filled and whose queue was seen: the one that waited longest.

    Each row repeats what the order was (`_ORDER`).
    """
    last_ns = states["decision_ns"].max() + round(life_s(parameters.orders) * SECOND_NS)
    market = Market.load(paths.data, (states["decision_ns"].min(), last_ns))
    parents = parent_orders(states, parameters, market)
    joined = action_orders(parents, market, [Action("join")])
    replayed = replay_orders(market, joined, parameters.execution, parameters.seed)
    seen = (replayed["queue_ahead"] > 0) & ~replayed["queue_estimated"]
    shown = replayed["filled"] & seen & (replayed["rejections"] == 0) & (replayed["markout_1s_bps"] >= 0)
    order = replayed.loc[(replayed["fill_ns"] - replayed["arrival_ns"]).where(shown, -1).idxmax()]
    return trace_order(market, order, parameters.execution).assign(**order[_ORDER])


def probe(parameters: Parameters, paths: Paths) -> pd.DataFrame:
    """Orders whose fate in the synthetic exchange is known, each beside its replay, by queue model.

    They are played in the world of the asset, or of BTC where the synthetic exchange does not list it; the queue is
    fitted to what that world publishes.
    """
    asset, law = paths.asset if paths.asset in parameters.synthetic.assets else "BTC", parameters.laws
    start_ns = parameters.source.start_ns
    end_ns = start_ns + round(parameters.truth.hours * HOUR_NS)
    world = replace(World.of(parameters, asset), seed=parameters.seed + 1)
    published, truth = play_probes(world, start_ns, end_ns, parameters.truth.probes_per_hour)
    queue = fit_queue(observe_makers(published, 0, end_ns), law.block_s, law.confidence, parameters.seed)
    laws = read_table(paths.data, "laws")
    fitted = laws.assign(value=laws["value"].mask(laws["parameter"] == "queue_exponent", queue.exponent))
    compared = validation.replay_by_queue_model(published, truth, as_measured(parameters, fitted).execution)
    return compared.assign(played=len(truth.orders))


def judge_records(parameters: Parameters, paths: Paths) -> dict[str, pd.DataFrame]:
    """Real orders (an account's, of level 3) against the simulator, and a node's fees, where `truth` names files."""
    tables = dict[str, pd.DataFrame]()
    if folder := parameters.truth.account_folder:
        orders, left_out = read_account(folder / "historicalOrders.json", folder / "userFills.json", paths.asset)
        compared = validation.replay_by_queue_model(Market.load(paths.data), orders, parameters.execution)
        tables["own_fills"] = compared.assign(submitted=len(orders.orders), left_out=str(dict(left_out)))
    if file := parameters.truth.node_fills_file:
        tables["fees"] = fee_shares(explain_fees(history.read_node_fills(file).rows))
    if folder := parameters.truth.level3_folder:
        tables["level3_fills"], tables["cancel_splits"] = judge_level3(folder, paths.asset, parameters)
    return tables
