"""What an execution costs: its price against the arrival mid and the parts of that, fees by date and tier, funding,
mark-outs, and square-root impact beyond the visible book (eq. 2.4, 3.8, 3.9). And what was charged: the fee of each
real fill, explained by the exchange's tiers, discounts and rebates."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from hyperdapo.errors import DataError, ParameterError
from hyperdapo.execution.events import DUST, Arrivals, Events, Fills, funding_paid, made
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BPS, Floats, Integers, Nanoseconds
from hyperdapo.sections import Execution
from hyperdapo.times import DAY_NS, SECOND_NS

HIGHEST_TIER = 6
STAKING = (0.0, 0.05, 0.10, 0.15, 0.20, 0.30, 0.40)  # discounts from no stake to over 500,000 HYPE
REFERRAL = 0.04  # discount on the first 25 million USD, so of the two lowest tiers
REBATES_BPS = (0.1, 0.2, 0.3)  # to accounts that make over 0.5, 1.5 and 3 % of all makers' volume

_ROUNDING_USD = 1.5e-6  # fees are written with six decimals
_REFERRED_TIERS = 2


def _ns(year: int, month: int, day: int, hour: int = 0) -> int:
    return int(datetime(year, month, day, hour, tzinfo=UTC).timestamp()) * SECOND_NS


# From when, and for each tier (taker, maker) in bps; a maker fee is paid by the maker, negative is a rebate.
_SCHEDULES = (
    (_ns(2023, 6, 1), ((2.5, -0.2),)),
    (_ns(2024, 3, 11), ((3.5, 1.0),)),
    (
        _ns(2025, 5, 5, 3),
        ((4.5, 1.5), (4.0, 1.2), (3.5, 0.8), (3.0, 0.4), (2.8, 0.0), (2.6, 0.0), (2.4, 0.0)),
    ),
)


class Life(NamedTuple):
    """When n orders arrive, when their horizon ends, when their cancels land, and when what is left is taken.

    Nanoseconds of the exchange's clock, each (n,); `latency_ns` is that of what is sent first, and post-only orders
    that are refused come back `again_ns` later, of which the answer takes `answer_ns`.
    """

    latency_ns: Nanoseconds
    arrival_ns: Nanoseconds
    expiry_ns: Nanoseconds
    cancel_ns: Nanoseconds
    completion_ns: Nanoseconds
    answer_ns: Nanoseconds
    again_ns: Nanoseconds


class Volumes(NamedTuple):
    """What n orders traded, coin and USD, each (n,): in the book and from it before the cancel, and to complete."""

    taken: Floats
    taken_usd: Floats
    made: Floats
    made_usd: Floats
    completed: Floats
    completed_usd: Floats


def account(
    market: Market,
    events: Events,
    arrivals: Arrivals,
    life: Life,
    fills: Fills,
    arrival_mid: Floats,
    execution: Execution,
) -> dict[str, NDArray[Any]]:
    """Shares, prices and costs of n orders, each (n,); an order at any price is all filled.

    target_price (USD; the limit, or the arrival mid), filled_passive (share filled before the cancel), maker_share, by
    its routes filled_queue (prints at the limit), filled_through (prints beyond it) and filled_crossed (quotes of the
    other side that came to it), filled (all before the cancel), passive_price, completion_price (USD, NaN for no such
    part), exec_price, fees_bps, funding_bps (of the full hours within the horizon), completion_slippage_bps (of the
    completed part against the arrival mid, times its share), implementation_shortfall_bps (eq. 3.8), slippage_bps
    (eq. 3.9 with its sign), total_cost_bps (shortfall + fees + funding), spread_bps + timing_bps + opportunity_bps
    (= shortfall).
    """
    side, size = arrivals["side"].astype(float), arrivals["size"]
    traded = _volumes(market, arrivals, fills, execution.impact_coefficient_bps)
    worth, passive = size * arrival_mid, traded.taken + traded.made
    with np.errstate(invalid="ignore"):
        passive_price = (traded.taken_usd + traded.made_usd) / passive
        completion_price = traded.completed_usd / traded.completed
        exec_price = (traded.taken_usd + traded.made_usd + traded.completed_usd) / (passive + traded.completed)
    share = 1 - fills["abandoned"] / size
    shortfall = _signed_bps(side, exec_price, arrival_mid, share)
    target = np.where(arrivals["resting"], arrivals["limit"], arrival_mid)
    fees = _fees(traded, life, execution.fees.tier) / worth
    funding = side * _funding(market, size - fills["abandoned"], traded, life, fills) / worth * BPS
    spread, timing, opportunity = _parts(events, arrivals, traded, fills, arrival_mid)
    return {
        "target_price": target,
        "filled_passive": 1 - (traded.completed + fills["abandoned"]) / size,
        "maker_share": traded.made / size,
        "filled_queue": fills["queued"] / size,
        "filled_through": fills["through"] / size,
        "filled_crossed": fills["crossed"] / size,
        "filled": (traded.completed == 0) & (fills["abandoned"] == 0),
        "passive_price": passive_price,
        "completion_price": completion_price,
        "exec_price": exec_price,
        "fees_bps": fees,
        "funding_bps": funding,
        "completion_slippage_bps": side * (traded.completed_usd - traded.completed * arrival_mid) / worth * BPS,
        "implementation_shortfall_bps": shortfall,
        "slippage_bps": _signed_bps(side, exec_price, target, share),
        "total_cost_bps": shortfall + fees + funding,
        "spread_bps": side * spread / worth * BPS,
        "timing_bps": side * timing / worth * BPS,
        "opportunity_bps": side * opportunity / worth * BPS,
    }


def markouts(
    events: Events,
    arrivals: Arrivals,
    life: Life,
    fills: Fills,
    maker_share: Floats,
    horizons_s: Sequence[float],
) -> dict[str, Floats]:
    """How the mid moves in the trader's favour from just before the last fill to so long after it; bps, (n,).

    `maker_markout_{h}s_bps` of what was filled while resting, `taker_markout_{h}s_bps` of what was taken, NaN where
    there is none of it; `markout_{h}s_bps`: both, by their shares. NaN beyond the data.
    """
    late, taker_share = fills["completed"] > 0, 1 - fills["abandoned"] / arrivals["size"] - maker_share
    met = np.where(late | ~arrivals["resting"], arrivals["final"], arrivals["first"])
    taken_ns = np.where(late, life.completion_ns, life.arrival_ns)
    last = fills["last_event"]
    parts = {"maker": (maker_share, events.ns[last], last - 1), "taker": (taker_share, taken_ns, met)}
    side, columns = arrivals["side"], dict[str, Floats]()
    for name, (share, ns, before) in parts.items():
        for horizon in horizons_s:
            then, moved = ns + round(horizon * SECOND_NS), np.full(len(late), np.nan)
            row = np.flatnonzero((share > DUST) & (then <= events.ns[-1]))
            later = _mid(events, np.searchsorted(events.ns, then[row], side="right") - 1)
            moved[row] = side[row] * (later / _mid(events, before[row]) - 1) * BPS
            columns[f"{name}_markout_{horizon:g}s_bps"] = moved
    together = {}
    for horizon in horizons_s:
        whole = f"markout_{horizon:g}s_bps"
        each = [np.where(share > DUST, columns[f"{name}_{whole}"] * share, 0.0) for name, (share, *_) in parts.items()]
        with np.errstate(invalid="ignore"):
            together[whole] = sum(each) / (maker_share + taker_share)
    return together | columns


def _mid(events: Events, event: Integers) -> Floats:
    """Mid after each event (n,), USD."""
    return np.asarray(events.moment["best_price"][event].mean(axis=1))


def fee_rates(ns: ArrayLike, tier: int) -> tuple[Floats, Floats]:
    """Taker and maker fee of a perpetual at each instant.

    A tier is the account's, by its volume of the 14 days before: above 5, 25, 100, 500, 2,000 and 7,000 million USD.
    It does not change within a replay: our orders are far too small to lift it. Staking and referral discounts and
    market-maker rebates are left out. Known from the exchange's documentation: since 2025-05-05 03:00 UTC all seven
    tiers; from 2024-03-11 on, when tiers came, the base rates 3.5 and 1.0 bps; from June 2023 on flat 2.5 bps for
    takers and 0.2 bps back to makers. The higher tiers of 2024 are not published any more.

    Parameters
    ----------
    ns : (n,) instants, nanoseconds UTC
    tier : 0 (base) to 6

    Returns
    -------
    Taker and maker fee, each (n,), in bps of notional

    Raises
    ------
    ParameterError
        If an instant lies before the first schedule, or its schedule is not known for this tier.
    """
    index = np.searchsorted([start for start, _ in _SCHEDULES], np.atleast_1d(ns), side="right") - 1
    if index.size and index.min() < 0:
        raise ParameterError("there were no fees to know before June 2023: choose a later source.from")
    rates = [schedule[tier] if tier < len(schedule) else (np.nan, np.nan) for _, schedule in _SCHEDULES]
    taker, maker = np.array(rates)[index].T
    if np.isnan(taker).any():
        raise ParameterError(f"fees of tier {tier} before 2025-05-05 are not known: set execution.fees.tier to 0")
    return taker, maker


class Schedule(NamedTuple):
    """What an account may pay by the exchange's documentation (trading, fees), simplest first; arrays (k,).

    `taker` and `maker` in bps, discounts applied; `tier` -1: an account that pays nothing; `staking` and `referral`
    are the discounts as shares, `rebate` what a market maker gets back in bps.
    """

    name: NDArray[np.str_]
    tier: Integers
    staking: Floats
    referral: Floats
    rebate: Floats
    taker: Floats
    maker: Floats


def schedules(ns: int) -> Schedule:
    """Every rate that the documented tiers, discounts and rebates give at an instant (nanoseconds UTC).

    Raises
    ------
    ParameterError
        If not all tiers of that date are known.
    """
    rows = []
    for rebate in (0.0, *REBATES_BPS):
        for referral in (0.0, REFERRAL):
            for staking in STAKING:
                for tier in range(_REFERRED_TIERS if referral else HIGHEST_TIER + 1):
                    taker, maker = (float(rate[0]) * (1 - staking) * (1 - referral) for rate in fee_rates([ns], tier))
                    parts = {"referral": referral, "staking": staking, "rebate": rebate}
                    name = " and ".join([word for word, part in parts.items() if part]) or "tier"
                    rows.append((name, tier, staking, referral, rebate, taker, -rebate if rebate else maker))
        rows.append(("pays nothing", -1, 0.0, 0.0, rebate, 0.0, -rebate))
    rows.sort(key=lambda row: sum(part > 0 for part in row[2:5]))
    return Schedule(*(np.array(column) for column in zip(*rows, strict=True)))


def explain_fees(fills: pd.DataFrame) -> pd.DataFrame:
    """The charged fee of each fill against our dated table, one tier and one set of discounts for each account.

    An account gets the schedule that explains most of its fills, of equals the simplest; a fill is explained when that
    gives its fee to the rounding. Builders' fees are written in the record and taken out first. Our table is that of
    the exchange's perpetuals, in USDC: `spot` and `builder-deployed` markets have others and are left unexplained.

    Returns
    -------
    `fills` and: market, notional (USD), charged_bps (in all), builder_bps, exchange_bps (the rest), explanation
    (`tier`, `referral`, `staking`, `rebate` and combinations, `pays nothing`, or `none`), tier, explained, residual_bps
    (exchange_bps less the rate of the account's schedule), chance (that any schedule fits a fee drawn at random)
    """
    if fills.empty:
        raise DataError("there are no fills to explain")
    notional = fills["price"].to_numpy(float) * fills["size"].to_numpy(float)
    fee, builder = fills["fee"].to_numpy(float), fills["builder_fee"].to_numpy(float)
    coin = fills["coin"].astype(str)
    market = np.select(
        [coin.str.contains("[@/]").to_numpy(), coin.str.contains(":").to_numpy()],
        ["spot", "builder-deployed"],
        "perpetual",
    )
    ours = (market == "perpetual") & (fills["fee_token"] == "USDC").to_numpy()
    known = schedules(int(fills["exchange_ns"].min()))
    rates = np.where(fills["crossed"].to_numpy(bool)[:, None], known.taker, known.maker)
    fits = np.abs((fee - builder)[:, None] - rates * 1e-4 * notional[:, None]) <= _ROUNDING_USD
    users, account = np.unique(fills["user"].to_numpy(str), return_inverse=True)
    votes = np.zeros((len(users), len(known.tier)), dtype=np.int64)
    np.add.at(votes, account[ours], fits[ours])
    chosen = votes.argmax(axis=1)[account]
    rows = np.arange(len(fills))
    explained = ours & fits[rows, chosen]
    exchange_bps = (fee - builder) / notional * BPS
    width = 2 * _ROUNDING_USD / notional * BPS
    distinct = len(np.unique(np.round(np.concatenate([known.taker, known.maker]), 6)))
    return fills.assign(
        market=market,
        notional=notional,
        charged_bps=fee / notional * BPS,
        builder_bps=builder / notional * BPS,
        exchange_bps=exchange_bps,
        explanation=np.where(explained, known.name[chosen], "none"),
        tier=np.where(explained, known.tier[chosen], -1),
        explained=explained,
        residual_bps=np.where(ours, exchange_bps - rates[rows, chosen], np.nan),
        chance=np.minimum(distinct * width / (known.taker.max() - known.maker.min()), 1.0),
    )


def fee_shares(explained: pd.DataFrame) -> pd.DataFrame:
    """Of `explain_fees`: market, role and explanation -> fills, share of the role's fills, of its notional, residuals.

    `builder_share` is the share of these fills on which a builder charged as well; residuals are in bps.
    """
    role = np.where(explained["crossed"], "taker", "maker")
    table = explained.assign(role=role, size_bps=explained["residual_bps"].abs(), built=explained["builder_bps"] != 0)
    grouped = table.groupby(["market", "role", "explanation"])
    shares = grouped.agg(
        fills=("tid", "size"),
        notional=("notional", "sum"),
        builder_share=("built", "mean"),
        residual=("size_bps", "mean"),
    ).reset_index()
    whole = shares.groupby(["market", "role"])[["fills", "notional"]].transform("sum")
    return shares.assign(
        share=shares["fills"] / whole["fills"],
        notional_share=shares["notional"] / whole["notional"],
    ).rename(columns={"residual": "residual_bps"})


def square_root_impact(size: ArrayLike, daily_volume: float, coefficient_bps: float) -> Floats:
    """How far taking `size` moves the price, eq. 2.4 without its sign.

    Parameters
    ----------
    size : (n,) taken beyond the visible book, coin
    daily_volume : V of eq. 2.4, coin
    coefficient_bps : lambda of eq. 2.4

    Returns
    -------
    (n,) in bps; the share of a day's volume counts as one where it is above, and where nothing traded
    """
    size = np.asarray(size, dtype=float)
    share = np.minimum(size / daily_volume, 1.0) if daily_volume > 0 else (size > 0).astype(float)
    return coefficient_bps * np.sqrt(share)


def _volumes(market: Market, arrivals: Arrivals, fills: Fills, coefficient_bps: float | None) -> Volumes:
    """What is taken beyond the visible book costs the last visible price, and the impact of eq. 2.4."""
    if coefficient_bps is None:
        raise ParameterError("execution.impact_coefficient_bps is null: fill it in with `as_measured`")
    beyond = np.maximum(fills["completed"] - fills["swept"], 0.0)
    impact = square_root_impact(beyond, _daily_volume(market), coefficient_bps)
    unseen_usd = np.where(beyond > 0, beyond * fills["deepest"] * (1 + arrivals["side"] * impact * 1e-4), 0.0)
    swept_usd = fills["swept_usd"] + unseen_usd
    completes = arrivals["resting"] | arrivals["waits"]
    return Volumes(
        taken=np.where(completes, fills["taken"], fills["completed"]),
        taken_usd=np.where(completes, fills["taken_usd"], swept_usd),
        made=made(fills),
        made_usd=fills["made_usd"],
        completed=np.where(completes, fills["completed"], 0.0),
        completed_usd=np.where(completes, swept_usd, 0.0),
    )


def _fees(traded: Volumes, life: Life, tier: int) -> Floats:
    """(n,) in USD times 10,000."""
    taker, maker = fee_rates(life.arrival_ns, tier)
    completion_taker, _ = fee_rates(life.completion_ns, tier)
    return traded.taken_usd * taker + traded.made_usd * maker + traded.completed_usd * completion_taker


def _funding(market: Market, size: Floats, traded: Volumes, life: Life, fills: Fills) -> Floats:
    """What a long pays, (n,) USD, on what it holds when the hour is full, until the horizon ends.

    What is bought after the horizon has not paid an hour that ended between; that counts against it.
    """
    arrival, expiry, completion = (
        funding_paid(market, ns) for ns in (life.arrival_ns, life.expiry_ns, life.completion_ns)
    )
    return np.asarray(size * expiry - traded.taken * arrival - fills["made_funding"] - traded.completed * completion)


def _parts(
    events: Events, arrivals: Arrivals, traded: Volumes, fills: Fills, arrival_mid: Floats
) -> tuple[Floats, Floats, Floats]:
    """Spread, timing and opportunity of a buy, each (n,) USD.

    Spread: prices against the mid just before each part traded, so negative for what was made; what is taken beyond the
    visible book included. Timing: that mid against the arrival mid, over what traded before the cancel. Opportunity:
    the same over what had to be completed.
    """
    entered = _mid(events, np.where(arrivals["resting"], arrivals["first"], arrivals["final"]))
    completed = _mid(events, arrivals["final"])
    mids = traded.taken * entered + fills["made_mid_usd"]
    timing = mids - (traded.taken + traded.made) * arrival_mid
    spread = traded.taken_usd + traded.made_usd + traded.completed_usd - mids - traded.completed * completed
    return spread, timing, traded.completed * (completed - arrival_mid)


def _signed_bps(side: Floats, price: Floats, reference: Floats, share: Floats) -> Floats:
    """Of the share that traded; 0 where none did."""
    return np.where(share > 0, side * (price / reference - 1) * BPS * share, 0.0)


def _daily_volume(market: Market) -> float:
    if market.daily_volume is not None:
        return market.daily_volume
    span = int(market.top.local_ns[-1] - market.top.local_ns[0])
    return float(market.trades.size.sum()) * DAY_NS / max(span, 1)
