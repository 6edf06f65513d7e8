"""The 15 microstructure features (§3.2.2, Listing 4.2; exact definitions in the table of DESIGN §4) and eq. 3.2.

At a decision time t only messages with `local_ns` <= t count. Windows are (t - w, t]. What the visible book does not
reach is not invented: sums run over visible levels, and `visible_depth_bps` says how far those reach.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from hyperdapo import schema
from hyperdapo.errors import DataError
from hyperdapo.market.book import Floats, Market, Nanoseconds
from hyperdapo.paths import atomic, require

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

_SECOND = 1_000_000_000
_BPS = 1e4
_LARGE_QUANTILE = 0.9
_EPSILON = 1e-9  # of eq. 3.2
_CHUNK = 4096  # decision times whose windows are held in memory at once


def decision_grid(market: Market, interval_s: float) -> Nanoseconds:
    """Multiples of the interval from the first to the last message of the book, ns."""
    step = round(interval_s * _SECOND)
    first, last = market.top.local_ns[[0, -1]]
    return np.arange(-(-first // step) * step, last + 1, step, dtype=np.int64)


def compute_features(
    market: Market, decision_ns: Nanoseconds, features: schema.Features, split: Mapping[str, tuple[int, int]] | None = None
) -> pd.DataFrame:
    """One row per decision time: the state beside the features, 15 raw columns, 15 normalised ones (`NAME_z`).

    Parameters
    ----------
    market : one asset
    decision_ns : (n,) increasing, in `local_ns`
    split : half-open intervals of `decision_ns` by name; warm rows outside all of them belong to none ("")

    Raises
    ------
    DataError
        If the market holds no book.
    """
    if len(market.book.local_ns) == 0:
        raise DataError(f"{market.asset}: no l2Book message; without a book there are no features")
    blocks = [decision_ns[start : start + _CHUNK] for start in range(0, len(decision_ns), _CHUNK)]
    raw = pd.concat([_raw(market, block, features) for block in blocks], ignore_index=True)
    since = market.uninterrupted_since(decision_ns)
    known = np.isfinite(raw[[*NAMES, "mid"]]).all(axis=1).to_numpy()
    warm = known & (decision_ns - since >= features.warmup_s * _SECOND) & (since < decision_ns)
    normalised = normalise(raw[list(NAMES)].to_numpy(), decision_ns, since, features.normalisation_s)
    state = pd.DataFrame({"asset": market.asset, "decision_ns": decision_ns})
    rest = pd.DataFrame({"warm": warm, "split": _split_names(decision_ns, warm, split or {})})
    scaled = pd.DataFrame(normalised, columns=[f"{name}_z" for name in NAMES])
    return pd.concat([state, raw.drop(columns=list(NAMES)), rest, raw[list(NAMES)], scaled], axis=1)


def normalise(values: Floats, ns: Nanoseconds, since: Nanoseconds, window_s: float) -> Floats:
    """Eq. 3.2: (x - mu) / (sigma + epsilon) with exponentially weighted moments of what is known up to each row.

    The weight of an observation of age `a` is exp(-a / window), whatever the spacing of the rows; a row counts itself.
    The moments restart where `since`, the start of uninterrupted data, moves; rows that are not finite are passed over.

    Parameters
    ----------
    values : (n, m); `ns`, `since` : (n,); `window_s` : tau, 3600 s in the draft
    """
    scaled = np.full(values.shape, np.nan)
    weight, mean, spread = np.zeros(values.shape[1]), np.zeros(values.shape[1]), np.zeros(values.shape[1])
    decays = np.exp(-np.diff(ns, prepend=ns[:1]) / (window_s * _SECOND))
    decays[np.diff(since, prepend=since[:1]) != 0] = 0.0
    for row, (value, decay) in enumerate(zip(values, decays, strict=True)):
        finite = np.isfinite(value)
        weight = weight * decay + finite
        off = np.where(finite, value - mean, 0.0)
        gain = np.divide(1.0, weight, out=np.zeros_like(weight), where=weight > 0)
        mean = mean + off * gain
        spread = spread * decay + off * np.where(finite, value - mean, 0.0)
        scaled[row] = (value - mean) / (np.sqrt(np.maximum(spread * gain, 0.0)) + _EPSILON)
    return scaled


def _raw(market: Market, ns: Nanoseconds, features: schema.Features) -> pd.DataFrame:
    """State and raw features at (n,) decision times; NaN where a window reaches before the data."""
    top = market.top_at(ns)
    state = {"best_bid": top.bid_price, "best_ask": top.ask_price, "bid_size": top.bid_size, "ask_size": top.ask_size}
    mid = top.mid
    columns = {"mid": mid, **state}
    columns |= _book_features(market, ns, mid)
    columns["bid_ask_spread_bps"] = (state["best_ask"] - state["best_bid"]) / mid * _BPS
    columns |= _trade_features(market, ns, mid, features)
    columns |= _price_features(market, ns, mid, features.window_s)
    return pd.DataFrame(columns)


def _book_features(market: Market, ns: Nanoseconds, mid: Floats) -> dict[str, Floats]:
    """Sums over the visible levels of the newest `l2Book`; its arrays are (n, 20)."""
    row = market.book_at(ns)
    known = (row >= 0)[:, None]
    sides = []
    for price, size in ((market.book.bid_price, market.book.bid_size), (market.book.ask_price, market.book.ask_size)):
        distance = np.where(known, np.abs(price[row] - mid[:, None]) / mid[:, None] * _BPS, np.nan)
        sides.append((distance, np.where(np.isfinite(distance), size[row], 0.0)))

    def within(reach: float) -> list[Floats]:
        return [np.where(distance <= reach, size, 0.0) for distance, size in sides]

    (bids, asks), (near_bids, near_asks), (deep_bids, deep_asks) = within(np.inf), within(10.0), within(50.0)
    bid, ask = bids.sum(axis=1), asks.sum(axis=1)
    weighted = [(size * (1 - np.nan_to_num(far) / 50.0)).sum(axis=1) for size, (far, _) in zip(within(50.0), sides, strict=True)]
    levels = (deep_bids > 0).sum(axis=1) + (deep_asks > 0).sum(axis=1)
    reach = np.minimum(*(np.nanmax(np.nan_to_num(distance, nan=0.0), axis=1) for distance, _ in sides))
    empty = ~known[:, 0]
    near_ask = near_asks.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(near_ask > 0, near_bids.sum(axis=1) / near_ask, np.where(near_bids.sum(axis=1) > 0, np.inf, 1.0))
        columns = {
            "visible_depth_bps": reach,
            "book_imbalance": (bid - ask) / (bid + ask),
            "depth_ratio_10bps": np.clip(ratio, 0.01, 100.0),
            "book_pressure_50bps": (weighted[0] - weighted[1]) / (weighted[0] + weighted[1]),
            "liquidity_score_50bps": (deep_bids.sum(axis=1) + deep_asks.sum(axis=1)) / levels,
        }
    return {name: np.where(empty, np.nan, values) for name, values in columns.items()}


def _trade_features(market: Market, ns: Nanoseconds, mid: Floats, features: schema.Features) -> dict[str, Floats]:
    """Sums over the prints of the window; "large" is above the p90 of the longer window's print sizes."""
    trades = market.trades
    end = np.searchsorted(trades.local_ns, ns, side="right")
    begin = np.searchsorted(trades.local_ns, ns - round(features.window_s * _SECOND), side="right")
    long_begin = np.searchsorted(trades.local_ns, ns - round(features.large_trade_window_s * _SECOND), side="right")
    names = ("volume", "notional", "flow", "large_share", "large_volume", "above")
    sums = {name: np.zeros(len(ns)) for name in names}
    for row, (first, last, oldest) in enumerate(zip(begin.tolist(), end.tolist(), long_begin.tolist(), strict=True)):
        size, price = trades.size[first:last], trades.price[first:last]
        if first == last:
            continue
        large = size > np.quantile(trades.size[oldest:last], _LARGE_QUANTILE)
        sums["volume"][row] = size.sum()
        sums["notional"][row] = size @ price
        sums["flow"][row] = size @ trades.side[first:last]
        sums["large_share"][row] = large.mean()
        sums["large_volume"][row] = size[large].sum()
        sums["above"][row] = size[price > mid[row]].sum()
    volume = sums["volume"]
    with np.errstate(divide="ignore", invalid="ignore"):
        vwap = sums["notional"] / volume
        ratio = sums["large_volume"] / (volume - sums["large_volume"])
    return {
        "trade_volume_5m": volume,
        "vwap_distance_bps": (mid - vwap) / vwap * _BPS,
        "trade_flow_5m": sums["flow"],
        "order_intensity_per_min": (end - begin) / (features.window_s / 60),
        "large_trade_ratio": sums["large_share"],
        "volume_profile": np.divide(sums["above"], volume, out=np.full(len(ns), np.nan), where=volume > 0),
        "trade_size_ratio": ratio,
    }


def _price_features(market: Market, ns: Nanoseconds, mid: Floats, window_s: float) -> dict[str, Floats]:
    """Moves of the mid that was known then."""
    seconds = np.arange(int(window_s), -1, -1, dtype=np.int64) * _SECOND
    path = np.log(market.mid_at(ns[:, None] - seconds))
    return {
        "volatility_5m_bps": np.std(np.diff(path, axis=1), axis=1, ddof=1) * _BPS,
        "momentum_1m_bps": (mid / market.mid_at(ns - 60 * _SECOND) - 1) * _BPS,
        "momentum_5m_bps": (mid / market.mid_at(ns - round(window_s * _SECOND)) - 1) * _BPS,
    }


def _split_names(ns: Nanoseconds, warm: np.ndarray, split: Mapping[str, tuple[int, int]]) -> np.ndarray:
    names = np.full(len(ns), "", dtype=object)
    for name, (begin, end) in split.items():
        names[(ns >= begin) & (ns < end) & warm] = name
    return names


def save_features(features: pd.DataFrame, folder: Path) -> list[Path]:
    """Write `features.parquet` into an asset's data folder."""
    with atomic(folder / "features.parquet") as temporary:
        features.to_parquet(temporary, compression="zstd", index=False)
    return [folder / "features.parquet"]


def load_features(folder: Path) -> pd.DataFrame:
    """Read `features.parquet`.

    Raises
    ------
    MissingInputError
        If 03_features has not run.
    """
    return pd.read_parquet(require(folder / "features.parquet", "03_features", folder.parent.name))
