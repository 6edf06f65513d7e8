"""What was charged: the fee of each real fill, explained by the exchange's tiers, discounts and rebates."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo.errors import DataError
from hyperdapo.execution.costs import HIGHEST_TIER, fee_rates
from hyperdapo.market.columns import BPS, Floats, Integers

STAKING = (0.0, 0.05, 0.10, 0.15, 0.20, 0.30, 0.40)  # discounts from no stake to over 500,000 HYPE
REFERRAL = 0.04  # discount on the first 25 million USD, so of the two lowest tiers
REBATES_BPS = (0.1, 0.2, 0.3)  # to accounts that make over 0.5, 1.5 and 3 % of all makers' volume

_ROUNDING_USD = 1.5e-6  # fees are written with six decimals
_REFERRED_TIERS = 2


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
