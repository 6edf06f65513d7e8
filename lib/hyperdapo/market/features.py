"""The 15 microstructure features (§3.2.2, Listing 4.2) and eq. 3.2; exact definitions: docs/design.md, Features.

At a decision time t only messages with `local_ns` <= t count. Windows are (t - w, t]. What the visible book does not
reach is not invented: sums run over visible levels, and `visible_depth_bps` says how far those reach. What is not
defined, such as the VWAP of a window without prints, is NaN, and a row with a NaN is not warm. What has to walk over
prints, quotes or rows one by one is compiled, at the end of the module.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from hyperdapo import sections
from hyperdapo.errors import DataError
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BPS, BookSnapshots, Floats, Integers, Mask, Nanoseconds, select
from hyperdapo.market.usable import PARTS
from hyperdapo.params import Parameters
from hyperdapo.times import SECOND_NS, Span

NAMES = (
    "bid_ask_spread_bps",
    "book_imbalance",
    "depth_ratio_10bps",
    "book_pressure_50bps",
    "trade_volume_5m",
    "vwap_distance_bps",
    "trade_flow_5m",
    "order_intensity_per_min",
    "volatility_5m_bps",
    "momentum_1m_bps",
    "momentum_5m_bps",
    "liquidity_score_50bps",
    "large_trade_ratio",
    "volume_profile",
    "trade_size_ratio",
)
SCALED = tuple(f"{name}_z" for name in NAMES)
MOMENTUM_S = 60
LARGE_QUANTILE = 0.9
_EPSILON = 1e-9  # of eq. 3.2

VOLUME, NOTIONAL, FLOW, LARGE, LARGE_VOLUME, VOLUME_ABOVE = range(6)
"""Columns of `print_sums`."""


def decision_grid(market: Market, interval_s: float, span: Span | None = None) -> Nanoseconds:
    """Multiples of the interval from the first to the last message of the book, or within a span; ns."""
    step = round(interval_s * SECOND_NS)
    first, last = market.top.local_ns[[0, -1]] if span is None else (span[0], span[1] - 1)
    return np.arange(-(-first // step) * step, last + 1, step, dtype=np.int64)


def features_in_parts(folder: Path, parameters: Parameters, split: Mapping[str, Span]) -> Iterator[pd.DataFrame]:
    """The features of all decision times of an asset, frame by frame, so that memory does not grow with the span.

    The frames are those of `compute_features` over the whole span. Raises as `Market.load`.
    """
    settings = parameters.features
    reach_s = max(settings.window_s, settings.large_trade_window_s, MOMENTUM_S, parameters.clean.max_gap_s)
    normaliser = Normaliser(settings.normalisation_s)
    for part, market in Market.in_parts(folder, before_s=reach_s):
        grid = decision_grid(market, settings.decision_interval_s, part)
        yield compute_features(market, grid, settings, split, parameters.clean.max_gap_s, normaliser)


def compute_features(
    market: Market,
    decision_ns: Nanoseconds,
    features: sections.Features,
    split: Mapping[str, Span] | None = None,
    max_gap_s: float = 15.0,
    normaliser: "Normaliser | None" = None,
) -> pd.DataFrame:
    """One row per decision time: the state beside the features, 15 raw columns, 15 normalised ones (`NAME_z`).

    A row is warm when every feature is defined, data have come for `features.warmup_s` without a gap longer than
    `max_gap_s`, no shorter one (prints may be missing) ended within `features.window_s`, and the newest book is not
    older than `max_gap_s`: what can be known at that time. `cold_because` names the first of these that fails.

    Parameters
    ----------
    market : one asset
    decision_ns : (n,) increasing, in `local_ns`
    split : half-open intervals of `decision_ns` by name; warm rows outside all of them belong to none ("")
    max_gap_s : as `clean.max_gap_s`
    normaliser : knows the rows before these, if there were any

    Raises
    ------
    DataError
        If the market holds no book.
    """
    if len(market.book.local_ns) == 0:
        raise DataError(f"{market.asset}: no l2Book message; without a book there are no features")
    decision_ns = np.asarray(decision_ns, dtype=np.int64)
    raw = _raw(market, decision_ns, features)
    since = market.uninterrupted_since(decision_ns, max_gap_s)
    book_ns = np.concatenate([[0], market.book.local_ns])[market.book_at(decision_ns) + 1]
    defined = np.isfinite(raw[["mid", *NAMES]].to_numpy()).all(axis=1)
    whole = market.uninterrupted_since(decision_ns)  # not even a short hole
    volume = raw["trade_volume_5m"].to_numpy()
    cold = cold_because(decision_ns, book_ns, since, whole, volume, defined, features, max_gap_s)
    warm = cold == ""
    normaliser = normaliser or Normaliser(features.normalisation_s)
    normalised = normaliser.scores(raw[list(NAMES)].to_numpy(), decision_ns, since)
    state = pd.DataFrame({"asset": market.asset, "decision_ns": decision_ns})
    rest = pd.DataFrame({"warm": warm, "cold_because": cold, "split": _split_names(decision_ns, warm, split or {})})
    scaled = pd.DataFrame(normalised, columns=list(SCALED))
    return pd.concat([state, raw.drop(columns=list(NAMES)), rest, raw[list(NAMES)], scaled], axis=1)


def cold_because(
    ns: Nanoseconds,
    book_ns: Nanoseconds,
    since: Nanoseconds,
    whole: Nanoseconds,
    volume: Floats,
    defined: Mask,
    features: sections.Features,
    max_gap_s: float,
) -> NDArray[np.object_]:
    """The first cause for which each row (n,) is not warm, "" where it is; see `compute_features`.

    Parameters
    ----------
    ns, book_ns : of the row, and when its newest book was received
    since, whole : since when data have come without a gap longer than `max_gap_s`, and without any
    volume, defined : `trade_volume_5m`, and whether every feature is finite
    """
    causes = {
        "no book, or an old one": ns - book_ns > max_gap_s * SECOND_NS,
        "warm-up": ns - since < features.warmup_s * SECOND_NS,
        "trade window reaches into a hole": (whole > since) & (ns - whole < features.window_s * SECOND_NS),
        "no print in the trade window": volume == 0,
        "a feature is not defined": ~defined,
    }
    return np.select(list(causes.values()), list(causes), default="").astype(object)


def decisions(features: pd.DataFrame, asset: str) -> pd.DataFrame:
    """How many decision times (rows with `warm`, `cold_because`, `split`) there are in each part, and why not more.

    Returns
    -------
    `part` (train, validation, test, or why a row is in none) and `decision_times`.

    Raises
    ------
    DataError
        If a part holds no warm row.
    """
    outside = np.where(features["warm"], "between the parts", features["cold_because"])
    counts = pd.Series(np.where(features["split"] == "", outside, features["split"])).value_counts()
    by_part = counts.reindex([*PARTS, *sorted(set(counts.index) - set(PARTS))], fill_value=0)
    if empty := [part for part in PARTS if not by_part[part]]:
        why = ", ".join(f"{count} {cause}" for cause, count in by_part.items() if cause not in PARTS)
        raise DataError(
            f"{asset}: no warm decision time in {' and '.join(empty)} ({why}); give a longer source span, or shorten "
            f"features.warmup_s"
        )
    return by_part.rename_axis("part").rename("decision_times").reset_index()


class Normaliser:
    """Eq. 3.2: (x - mu) / (sigma + epsilon) with exponentially weighted moments of what is known up to each row.

    The weight of an observation of age `a` is exp(-a / window), whatever the spacing of the rows: the draft's window
    tau is taken as the mean age of the weights, in terms of pandas `ewm` a halflife of tau ln 2. A row counts itself.
    The moments restart where `since`, the start of uninterrupted data, moves; rows that are not finite are passed over.
    What was seen is remembered from one call to the next.
    """

    def __init__(self, window_s: float) -> None:
        """`window_s` is tau, 3600 s in the draft."""
        self._window_ns = window_s * SECOND_NS
        self._moments: Floats | None = None
        self._last: tuple[int, int] | None = None  # ns and since of the last row

    def scores(self, values: Floats, ns: Nanoseconds, since: Nanoseconds) -> Floats:
        """Normalised values (n, m) of the next rows, `values` (n, m) at `ns` (n,), uninterrupted since `since` (n,)."""
        if not len(ns):
            return values.copy()
        last_ns, last_since = self._last or (ns[0], since[0])
        decay = np.exp(-np.diff(ns, prepend=last_ns) / self._window_ns)
        decay[np.diff(since, prepend=last_since) != 0] = 0.0
        if self._moments is None:
            self._moments = np.zeros((3, values.shape[1]))
        self._last = int(ns[-1]), int(since[-1])
        return weighted_scores(np.ascontiguousarray(values, dtype=float), decay, _EPSILON, self._moments)


def _split_names(ns: Nanoseconds, warm: Mask, split: Mapping[str, Span]) -> NDArray[np.object_]:
    names = np.full(len(ns), "", dtype=object)
    for name, (begin, end) in split.items():
        names[(ns >= begin) & (ns < end) & warm] = name
    return names


def _raw(market: Market, ns: Nanoseconds, features: sections.Features) -> pd.DataFrame:
    """State and raw features at (n,) decision times; NaN where a window reaches before the data."""
    top = market.top_at(ns)
    columns = {"mid": top.mid, "best_bid": top.bid_price, "best_ask": top.ask_price}
    columns |= {"bid_size": top.bid_size, "ask_size": top.ask_size}
    columns |= _book_features(market, ns, top.mid)
    columns["bid_ask_spread_bps"] = (top.ask_price - top.bid_price) / top.mid * BPS
    columns |= _trade_features(market, ns, top.mid, features)
    columns |= _price_features(market, ns, top.mid, features.window_s)
    return pd.DataFrame(columns)


def imbalance_at(market: Market, ns: Nanoseconds) -> Floats:
    """`book_imbalance` as known at each instant `ns` (n,); NaN before the first book."""
    row = market.book_at(ns)
    book = select(market.book, np.maximum(row, 0))
    bids, asks = np.nansum(book.bid_size, axis=1), np.nansum(book.ask_size, axis=1)
    return np.where(row >= 0, (bids - asks) / (bids + asks), np.nan)


def _book_features(market: Market, ns: Nanoseconds, mid: Floats) -> dict[str, Floats]:
    """`book_sums` of the newest `l2Book`."""
    row = market.book_at(ns)
    return book_sums(select(market.book, np.maximum(row, 0)), np.where(row >= 0, mid, np.nan))


def book_sums(book: BookSnapshots, mid: Floats) -> dict[str, Floats]:
    """The features of the visible levels of n books with these mids (n,); NaN where the mid is."""
    mid = mid[:, None]
    bid_off, ask_off = np.abs(book.bid_price - mid) / mid * BPS, np.abs(book.ask_price - mid) / mid * BPS
    bid, ask = _within(book, bid_off, ask_off, np.inf)
    near_bid, near_ask = _within(book, bid_off, ask_off, 10.0)
    deep_bid, deep_ask = _within(book, bid_off, ask_off, 50.0)
    levels = (bid_off <= 50.0).sum(axis=1) + (ask_off <= 50.0).sum(axis=1)
    bid_pressure = np.nansum(deep_bid * (1 - bid_off / 50.0), axis=1)
    ask_pressure = np.nansum(deep_ask * (1 - ask_off / 50.0), axis=1)
    bids, asks = bid.sum(axis=1), ask.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "visible_depth_bps": np.minimum(np.fmax.reduce(bid_off, axis=1), np.fmax.reduce(ask_off, axis=1)),
            "book_imbalance": (bids - asks) / (bids + asks),
            "depth_ratio_10bps": np.clip(near_bid.sum(axis=1) / near_ask.sum(axis=1), 0.01, 100.0),
            "book_pressure_50bps": (bid_pressure - ask_pressure) / (bid_pressure + ask_pressure),
            "liquidity_score_50bps": (deep_bid.sum(axis=1) + deep_ask.sum(axis=1)) / levels,
        }


def _within(book: BookSnapshots, bid_off: Floats, ask_off: Floats, reach: float) -> tuple[Floats, Floats]:
    """Sizes (n, 20) on bid and ask that rest within `reach` bps of mid; 0 elsewhere."""
    return np.where(bid_off <= reach, book.bid_size, 0.0), np.where(ask_off <= reach, book.ask_size, 0.0)


def _trade_features(market: Market, ns: Nanoseconds, mid: Floats, features: sections.Features) -> dict[str, Floats]:
    """Sums over the prints of the window; "large" is above the p90 of the longer window's print sizes."""
    trades = market.trades
    end = np.searchsorted(trades.local_ns, ns, side="right")
    begin = np.searchsorted(trades.local_ns, ns - round(features.window_s * SECOND_NS), side="right")
    oldest = np.searchsorted(trades.local_ns, ns - round(features.large_trade_window_s * SECOND_NS), side="right")
    sums = print_sums(begin, end, oldest, trades.price, trades.size, trades.side, mid, LARGE_QUANTILE)
    return trade_ratios(sums, end - begin, mid, features.window_s)


def trade_ratios(sums: Floats, prints: Integers, mid: Floats, window_s: float) -> dict[str, Floats]:
    """The features of the window's prints from their sums (n, 6), their number and the mid, (n,) each."""
    volume, large_volume = sums[:, VOLUME], sums[:, LARGE_VOLUME]
    with np.errstate(divide="ignore", invalid="ignore"):
        vwap = sums[:, NOTIONAL] / volume
        return {
            "trade_volume_5m": volume,
            "vwap_distance_bps": (mid - vwap) / vwap * BPS,
            "trade_flow_5m": sums[:, FLOW],
            "order_intensity_per_min": prints / (window_s / 60),
            "large_trade_ratio": sums[:, LARGE] / prints,
            "volume_profile": sums[:, VOLUME_ABOVE] / volume,
            "trade_size_ratio": large_volume / (volume - large_volume),
        }


def _price_features(market: Market, ns: Nanoseconds, mid: Floats, window_s: float) -> dict[str, Floats]:
    """Moves of the mid that was known then."""
    top = market.top
    newest = np.searchsorted(top.local_ns, ns, side="right") - 1
    deviation = return_deviation(newest, ns, top.local_ns, np.log(top.mid), int(window_s), SECOND_NS)
    return {
        "volatility_5m_bps": deviation * BPS,
        "momentum_1m_bps": (mid / market.mid_at(ns - MOMENTUM_S * SECOND_NS) - 1) * BPS,
        "momentum_5m_bps": (mid / market.mid_at(ns - round(window_s * SECOND_NS)) - 1) * BPS,
    }


@njit(cache=True)
def print_sums(
    begin: Integers,
    end: Integers,
    oldest: Integers,
    price: Floats,
    size: Floats,
    side: NDArray[np.int8],
    mid: Floats,
    quantile: float,
) -> Floats:
    """Sums over the prints [begin, end) of each row (n, 6); `begin`, `end` and `oldest` (n,) never fall.

    A print is large when it exceeds the quantile (linear between order statistics, as in numpy) of the sizes of the
    prints [oldest, end). Those sizes are counted in a Fenwick tree over the ranks of all sizes.
    """
    ordered = np.unique(size)
    rank = np.searchsorted(ordered, size)
    tree = np.zeros(len(ordered) + 1, dtype=np.int64)
    sums = np.zeros((len(end), 6))
    left = entered = 0
    for row in range(len(end)):
        while entered < end[row]:
            _count(tree, rank[entered], 1)
            entered += 1
        while left < oldest[row]:
            _count(tree, rank[left], -1)
            left += 1
        if begin[row] == end[row]:
            continue
        place = (entered - left - 1) * quantile
        below = int(place)
        low = ordered[_order_statistic(tree, below)]
        high = ordered[_order_statistic(tree, min(below + 1, entered - left - 1))]
        threshold = between(low, high, place - below)
        sum_prints(begin[row], end[row], price, size, side, mid[row], threshold, sums[row])
    return sums


@njit(cache=True)
def between(low: float, high: float, part: float) -> float:
    """The quantile that lies so far between two order statistics, rounded as numpy does it."""
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


@njit(cache=True)
def sum_prints(
    begin: int,
    end: int,
    price: Floats,
    size: Floats,
    side: NDArray[np.int8],
    mid: float,
    threshold: float,
    sums: Floats,
) -> None:
    """Add the prints [begin, end) to `sums` (6,); a print above the threshold is large."""
    for index in range(begin, end):
        sums[VOLUME] += size[index]
        sums[NOTIONAL] += size[index] * price[index]
        sums[FLOW] += size[index] * side[index]
        if size[index] > threshold:
            sums[LARGE] += 1
            sums[LARGE_VOLUME] += size[index]
        if price[index] > mid:
            sums[VOLUME_ABOVE] += size[index]


@njit(cache=True)
def _count(tree: Integers, rank: int, change: int) -> None:
    node = rank + 1
    while node < len(tree):
        tree[node] += change
        node += node & -node


@njit(cache=True)
def _order_statistic(tree: Integers, place: int) -> int:
    """Rank of the value that has `place` counted values before it."""
    step = 1
    while 2 * step < len(tree):
        step *= 2
    node, left = 0, place
    while step:
        if node + step < len(tree) and tree[node + step] <= left:
            node += step
            left -= tree[node]
        step //= 2
    return node


@njit(cache=True)
def return_deviation(
    newest: Integers, ns: Nanoseconds, known_ns: Nanoseconds, log_price: Floats, steps: int, step_ns: int
) -> Floats:
    """Standard deviation (ddof 1) of `steps` log returns over `step_ns` each, up to each of n instants.

    `newest` (n,) is the row of the last of the quotes (`known_ns`, `log_price`) known at `ns` (n,), -1 before the
    first. NaN where the returns reach before the first quote.
    """
    deviation = np.full(len(ns), np.nan)
    path = np.empty(steps + 1)
    for row in range(len(ns)):
        quote = newest[row]
        for step in range(steps + 1):
            while quote >= 0 and known_ns[quote] > ns[row] - step * step_ns:
                quote -= 1
            if quote < 0:
                break
            path[step] = log_price[quote]
        if quote >= 0:
            returns = path[:-1] - path[1:]
            deviation[row] = np.sqrt(np.sum((returns - np.mean(returns)) ** 2) / (steps - 1))
    return deviation


@njit(cache=True)
def weighted_scores(values: Floats, decay: Floats, epsilon: float, moments: Floats) -> Floats:
    """(x - mean) / (deviation + epsilon) of each column of (n, m) values under weights that decay from row to row.

    `decay` (n,) multiplies the weight of all earlier rows; 0 forgets them. Values that are not finite weigh nothing.
    `moments` (3, m), zeros at first, holds weight, mean and sum of squares of each column from one call to the next.
    """
    scores = np.full(values.shape, np.nan)
    for column in range(values.shape[1]):
        weight, mean, squares = moments[:, column]
        for row in range(values.shape[0]):
            weight *= decay[row]
            squares *= decay[row]
            value = values[row, column]
            if np.isfinite(value):
                if weight == 0.0:
                    mean = value
                weight += 1.0
                distance = value - mean
                mean += distance / weight
                squares += distance * (value - mean)
                scores[row, column] = (value - mean) / (np.sqrt(squares / weight) + epsilon)
        moments[:, column] = weight, mean, squares
    return scores
