"""Two laws that chapter 2 takes for granted, measured: square-root impact (eq. 2.4), fill probability (eq. 2.5).

Observe part by part, keep the observations in `Thinned`, then fit; `as_measured` puts the results into the parameters.
Intervals are clustered on blocks of time (t, blocks - 1 degrees of freedom): those of 95 % held the truth in 92-96 % of
simulations with 30 blocks, in 85-96 % with 8. What cannot be measured is NaN: intervals from fewer than 5 blocks,
parameters that are not identified.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import brentq, minimize_scalar
from statsmodels.api import GLM, OLS, families

from hyperdapo.errors import DataError, ParameterError
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BPS, Floats, Integers, Nanoseconds, TopOfBook, select
from hyperdapo.market.stylised import market_orders
from hyperdapo.params import Parameters
from hyperdapo.times import SECOND_NS, block_of

IMPACT_EXPONENT, FILL_EXPONENT = 0.5, 1.5  # the draft's: of eq. 2.4, and alpha of eq. 2.5
DISTANCES_BPS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
EVENLY = 1.0  # the queue's exponent where too few makers are recognised: cancels spread over the queue
_ESTIMATES = ["parameter", "value", "ci_low", "ci_high", "draft"]
_FEWEST_BLOCKS = 5
_EXPONENTS = (-1.0, 2.0)  # where the free exponent of eq. 2.4 is looked for
_SIZE_QUANTILES = (0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 1)  # of the bins, finer towards the largest orders


@dataclass(frozen=True)
class Fit:
    """A law as estimated: `parameters` (`parameter, value, ci_low, ci_high` and `draft`, what the thesis says) and
    `curve`, the law and its rival beside what was measured."""

    parameters: pd.DataFrame
    curve: pd.DataFrame
    blocks: int


def aggressive_orders(market: Market, from_ns: int, to_ns: int, after_s: float = 10.0) -> pd.DataFrame:
    """How the mid moved with each aggressive order of `from_ns` <= local_ns < `to_ns` (eq. 2.4).

    An order is one of `stylised.market_orders`. Its impact runs from the
    last quote of an earlier block (that of its own block mostly arrives before its prints, and has moved already) to
    the mid known `after_s` later: the price's response, with whatever other orders add to it meanwhile.

    Returns
    -------
    In order of `local_ns`: it, `side` (+1 buy), `size` (coin), `impact_bps` (side x (after - before) / before). None
    whose window touches a gap or leaves the data. A market without a quote is a `DataError`.
    """
    inside = slice(*map(int, np.searchsorted(market.trades.local_ns, [from_ns, to_ns])))
    orders, top = market_orders(select(market.trades, inside)), _quotes(market)
    local_ns, side = orders["local_ns"].to_numpy(), orders["side"].to_numpy()
    row = np.searchsorted(top.exchange_ns, orders["exchange_ns"], side="left") - 1
    before, later_ns = select(top, np.maximum(row, 0)), local_ns + round(after_s * SECOND_NS)
    impact = side * (market.mid_at(later_ns) / before.mid - 1) * BPS
    orders = orders[["local_ns", "side", "size"]].assign(impact_bps=impact)
    whole = (row >= 0) & ~market.interrupted(np.minimum(before.local_ns, local_ns - 1), later_ns)
    return orders[whole].sort_values("local_ns", kind="stable", ignore_index=True)


def reaches(market: Market, decision_ns: Nanoseconds, horizon_s: float) -> pd.DataFrame:
    """How far from the mid at each decision time t (n,) the prints of (t, t + horizon_s] went, to both sides (eq. 2.5).

    Returns
    -------
    Two rows per t: `decision_ns`, `side` of the limit order (+1 buy), `reach_bps` (buy: mid minus lowest print; sell:
    highest print minus mid; no print: -inf). No t whose window touches a gap or leaves the data. `DataError` as above.
    """
    _quotes(market)
    windows = np.column_stack([decision_ns, decision_ns + round(horizon_s * SECOND_NS)])
    windows = windows[~market.interrupted(*windows.T)]
    prints, start_ns = np.searchsorted(market.trades.local_ns, windows, side="right"), windows[:, 0]
    price, mid = np.append(market.trades.price, np.nan), market.mid_at(start_ns)
    low, high = (extreme.reduceat(price, prints.ravel())[::2] for extreme in (np.minimum, np.maximum))
    reach = np.column_stack([1 - low / mid, high / mid - 1]) * BPS
    reach[prints[:, 0] == prints[:, 1]] = -np.inf
    side = np.tile(np.array([1, -1], dtype=np.int8), len(start_ns))
    return pd.DataFrame({"decision_ns": start_ns.repeat(2), "side": side, "reach_bps": reach.ravel()})


class Thinned:
    """Observations that come part by part, of which about `most` are kept, so that memory does not grow with the span.

    Every k-th of each part: k is 1 until more than `most` have come, and doubles whenever k times as many have.
    """

    def __init__(self, most: int = 200_000) -> None:
        self.most, self.every, self.seen = most, 1, 0
        self._kept: list[pd.DataFrame] = []

    def add(self, part: pd.DataFrame) -> None:
        """Add the next part, which must not change afterwards."""
        self.seen += len(part)
        self._kept.append(part.iloc[:: self.every].copy())
        while self.seen > self.most * self.every:
            self.every *= 2
            self._kept = [kept.iloc[::2].copy() for kept in self._kept]

    def joined(self) -> pd.DataFrame:
        """What is kept, in the order in which it came."""
        return pd.concat(self._kept, ignore_index=True)


def fit_impact(orders: pd.DataFrame, daily_volume: float, block_s: float, confidence: float) -> Fit:
    """Eq. 2.4, dP = lambda sign(Q) sqrt(|Q| / V), and its rival with a free exponent, dP = c sign(Q) (|Q| / V)^beta.

    Least squares without a constant on `aggressive_orders`; V in coin. `c_bps` and `beta` are not identified, so NaN,
    where lambda may be zero, all sizes are equal, or beta leaves (-1, 2).

    Returns
    -------
    `parameters` `lambda_bps`, `c_bps`, `beta`; `curve` per bin of sizes: `share_of_day` (|Q| / V, by the mean root),
    `orders`, `impact_bps` (mean), `ci_low`, `ci_high`, `law_bps`, `free_bps`. No order or no V is a `DataError`.
    """
    known = orders[np.isfinite(orders["impact_bps"]) & (orders["size"] > 0)]
    if known.empty or not daily_volume > 0:
        raise DataError(f"{len(known)} aggressive orders and {daily_volume:g} coin a day: no impact can be measured")
    share, impact = known["size"].to_numpy() / daily_volume, known["impact_bps"].to_numpy()
    blocks = np.unique(block_of(known["local_ns"], block_s), return_inverse=True)[1]
    root, free = np.sqrt(share), np.full((2, 3), np.nan)
    law = _clustered(OLS(impact, root), blocks, confidence)
    if np.ptp(share) > 0 and (law[0, 1] > 0 or law[0, 2] < 0):
        free = _free_power(impact, share, blocks, confidence)
    bins = np.searchsorted(np.unique(np.quantile(share, _SIZE_QUANTILES))[1:-1], share)
    rows = []
    for members in (bins == number for number in np.unique(bins)):
        typical = root[members].mean()
        mean = _clustered(OLS(impact[members], np.ones(members.sum())), blocks[members], confidence)[0]
        rows.append((typical**2, members.sum(), *mean, law[0, 0] * typical, free[0, 0] * typical ** (2 * free[1, 0])))
    names = ["share_of_day", "orders", "impact_bps", "ci_low", "ci_high", "law_bps", "free_bps"]
    estimates = [("lambda_bps", *law[0], np.nan), ("c_bps", *free[0], np.nan), ("beta", *free[1], IMPACT_EXPONENT)]
    return Fit(pd.DataFrame(estimates, columns=_ESTIMATES), pd.DataFrame(rows, columns=names), int(blocks.max()) + 1)


def fit_fill_curve(reaches: pd.DataFrame, distances_bps: ArrayLike, block_s: float, confidence: float) -> Fit:
    """Eq. 2.5, P_fill = 1 - exp(-lambda delta^-alpha), at the horizon of the `reaches` and the (m,) deltas.

    An order at delta from the mid counts as filled when a print went beyond its price (reach > delta). Queues and
    latency play no part; the fills of the simulator, which has both, are judged elsewhere. A binomial model with
    log(-log(1 - P)) = log lambda - alpha log delta; two shares other than 0 and 1 must be there to identify alpha.

    Returns
    -------
    `parameters` `alpha`, `lambda` (bps^alpha), `lambda_draft` (the draft's alpha); `curve`: `distance_bps`, `filled`
    (share), `ci_low`, `ci_high`, `fitted`, `draft`. No decision: `DataError`; a distance not above 0: `ParameterError`.
    """
    delta = np.unique(np.asarray(distances_bps, dtype=float))
    if not delta.size or not (delta > 0).all():
        raise ParameterError(f"distances from the mid must be above 0 bps, not {delta.tolist()}")
    if reaches.empty:
        raise DataError("no decision with an uninterrupted horizon: fills cannot be measured")
    blocks = np.unique(block_of(reaches["decision_ns"], block_s), return_inverse=True)[1]
    filled = np.array([np.bincount(blocks, weights=reaches["reach_bps"] > distance) for distance in delta])
    orders, design = np.bincount(blocks), np.column_stack([np.ones_like(delta), -np.log(delta)])
    each = [_binomial(row[None], orders, design[:1, :1], confidence)[0] for row in filled]
    law, total = _binomial(filled, orders, design, confidence), filled.sum(axis=1)
    draft = _draft_scale(total, orders.sum(), delta) if np.isfinite(law[0, 0]) else np.nan
    heights = np.column_stack([np.array(each)[:, 1:], design @ law[:, 0], design @ [np.log(draft), FILL_EXPONENT]])
    curve = pd.DataFrame(-np.expm1(-np.exp(heights)), columns=["ci_low", "ci_high", "fitted", "draft"])
    curve = pd.DataFrame({"distance_bps": delta, "filled": total / orders.sum()}).join(curve)
    scales = [("lambda", *np.exp(law[0]), np.nan), ("lambda_draft", draft, *[np.nan] * 3)]
    return Fit(pd.DataFrame([("alpha", *law[1], FILL_EXPONENT), *scales], columns=_ESTIMATES), curve, len(orders))


def as_measured(parameters: Parameters, laws: pd.DataFrame) -> Parameters:
    """These parameters with the market's own numbers where `execution` has none.

    Parameters
    ----------
    laws : `parameter`, `value`; of them `lambda_bps` (eq. 2.4; below zero, as little data can give, counts as none:
        nobody is paid for his impact) and `queue_exponent` (NaN where it could not be fitted)

    Raises
    ------
    ParameterError
        If 03 could not measure lambda, and the parameters do not either.
    """
    execution, measured = parameters.execution, laws.set_index("parameter")["value"].astype(float)
    coefficient, exponent = execution.impact_coefficient_bps, execution.queue_exponent
    if coefficient is None:
        coefficient = max(float(measured["lambda_bps"]), 0.0)
    if np.isnan(coefficient):
        raise ParameterError("03 could not measure eq. 2.4: set execution.impact_coefficient_bps to a number")
    if exponent is None:
        exponent = float(measured["queue_exponent"])
        exponent = EVENLY if np.isnan(exponent) else exponent
    update = {"impact_coefficient_bps": coefficient, "queue_exponent": exponent}
    return parameters.model_copy(update={"execution": execution.model_copy(update=update)})


def _quotes(market: Market) -> TopOfBook:
    if not len(market.top.local_ns):
        raise DataError(f"{market.asset}: no l2Book or bbo message; without quotes there is no mid to measure from")
    return market.top


def _clustered(model: OLS | GLM, blocks: Integers, confidence: float, **options: object) -> Floats:
    """Estimates with their bounds, (k, 3)."""
    enough = len(np.unique(blocks)) >= _FEWEST_BLOCKS
    kind = {"cov_type": "cluster", "cov_kwds": {"groups": blocks}, "use_t": True} if enough else {}
    fit = model.fit(**kind, **options)
    bounds = fit.conf_int(1 - confidence) if enough else np.full((len(fit.params), 2), np.nan)
    converged = getattr(fit, "mle_retvals", {"converged": True})["converged"]
    return np.column_stack([fit.params, bounds]) * (1.0 if converged else np.nan)


def _free_power(impact: Floats, share: Floats, blocks: Integers, confidence: float) -> Floats:
    """c and beta (2, 3); their intervals are those of the linear regression on the slopes at the optimum."""

    def unexplained(beta: float) -> float:
        power = share**beta
        return -float((power @ impact) ** 2 / (power @ power))

    beta = float(minimize_scalar(unexplained, bounds=_EXPONENTS, method="bounded").x)
    if min(beta - _EXPONENTS[0], _EXPONENTS[1] - beta) < 1e-3:
        return np.full((2, 3), np.nan)
    power = share**beta
    slope = (power @ impact) / (power @ power) * power * np.log(share)
    return _clustered(OLS(impact + beta * slope, np.column_stack([power, slope])), blocks, confidence)


def _binomial(filled: Floats, orders: Integers, design: Floats, confidence: float) -> Floats:
    """(k, 3) of log(-log(1 - P)) = design x estimates: `filled` (m, b) of `orders` (b,), `design` (m, k)."""
    share = filled.sum(axis=1) / orders.sum()
    if ((share > 0) & (share < 1)).sum() < design.shape[1]:
        return np.full((design.shape[1], 3), np.nan)
    outcomes = np.column_stack([filled.ravel(), (orders - filled).ravel()])
    model = GLM(outcomes, design.repeat(len(orders), axis=0), family=families.Binomial(families.links.CLogLog()))
    return _clustered(model, np.tile(np.arange(len(orders)), len(filled)), confidence, method="newton", disp=0)


def _draft_scale(filled: Floats, orders: int, delta: Floats) -> float:
    """By its own likelihood: that of statsmodels cuts off probabilities next to 1, where the draft's alpha may lead."""

    def score(log_scale: float) -> float:
        rate = np.exp(log_scale) * delta**-FILL_EXPONENT
        return float((filled * rate * np.exp(-rate) / -np.expm1(-rate) - (orders - filled) * rate).sum())

    return float(np.exp(brentq(score, -50, 50)))
