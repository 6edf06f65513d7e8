"""The 15 features against a slow oracle that follows the table of docs/design.md, Features, word by word."""

import gzip
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hyperdapo.errors import DataError
from hyperdapo.feed.clean import Cleaner
from hyperdapo.feed.messages import Decoder
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Columns, select
from hyperdapo.market.features import NAMES, Normaliser, compute_features, decision_grid
from hyperdapo.params import load
from markets import SECOND, random_market

PARAMETERS = load("smoke").features


def _oracle(market: Market, t: int) -> dict[str, float]:
    """One row of features, by plain pandas over everything received by `t`."""
    frames = {name: _received(market, name, t) for name in ("book", "bbo", "trades")}
    top = pd.concat([frames["book"], frames["bbo"]]).sort_values("local_ns", kind="stable")

    def mid_at(ns: int) -> float:
        seen = top[top.local_ns <= ns]
        newest = seen[seen.exchange_ns == seen.exchange_ns.max()].iloc[-1]
        return (newest.bid_price + newest.ask_price) / 2

    newest = top[top.exchange_ns == top.exchange_ns.max()].iloc[-1]
    mid = mid_at(t)
    levels = _levels(market, t, mid)
    window = frames["trades"][frames["trades"].local_ns > t - 300 * SECOND]
    hour = frames["trades"][frames["trades"].local_ns > t - 3600 * SECOND]
    large = window["size"] > hour["size"].quantile(0.9)
    volume = window["size"].sum()
    vwap = (window["size"] * window.price).sum() / volume

    def total(side: str, weight: Callable[[pd.DataFrame], pd.Series], reach: float = math.inf) -> float:
        rows = levels[(levels.side == side) & (levels.distance <= reach)]
        return float((rows["size"] * weight(rows)).sum())

    def one(rows: pd.DataFrame) -> float:
        return 1.0

    def near(rows: pd.DataFrame) -> pd.Series:
        return 1 - rows.distance / 50

    bid, ask = total("bid", one), total("ask", one)
    pressure_bid, pressure_ask = total("bid", near, 50), total("ask", near, 50)
    returns = np.diff(np.log([mid_at(t - second * SECOND) for second in range(300, -1, -1)]))
    return {
        "bid_ask_spread_bps": (newest.ask_price - newest.bid_price) / mid * 1e4,
        "book_imbalance": (bid - ask) / (bid + ask),
        "depth_ratio_10bps": min(max(total("bid", one, 10) / total("ask", one, 10), 0.01), 100),
        "book_pressure_50bps": (pressure_bid - pressure_ask) / (pressure_bid + pressure_ask),
        "trade_volume_5m": volume,
        "vwap_distance_bps": (mid - vwap) / vwap * 1e4,
        "trade_flow_5m": (window["size"] * window.aggressor).sum(),
        "order_intensity_per_min": len(window) / 5,
        "volatility_5m_bps": np.std(returns, ddof=1) * 1e4,
        "momentum_1m_bps": (mid / mid_at(t - 60 * SECOND) - 1) * 1e4,
        "momentum_5m_bps": (mid / mid_at(t - 300 * SECOND) - 1) * 1e4,
        "liquidity_score_50bps": levels[levels.distance <= 50]["size"].mean(),
        "large_trade_ratio": large.mean(),
        "volume_profile": window["size"][window.price > mid].sum() / volume,
        "trade_size_ratio": window["size"][large].sum() / window["size"][~large].sum(),
    }


def _received(market: Market, name: str, t: int) -> pd.DataFrame:
    columns = vars(getattr(market, name))
    flat = {
        key: value[:, 0] if value.ndim == 2 else value
        for key, value in columns.items()
        if isinstance(value, np.ndarray)
    }
    frame = pd.DataFrame(flat).rename(columns={"side": "aggressor"})
    return frame[frame.local_ns <= t]


def _levels(market: Market, t: int, mid: float) -> pd.DataFrame:
    book = market.book
    seen = np.flatnonzero(book.local_ns <= t)
    newest = [row for row in seen if book.exchange_ns[row] == book.exchange_ns[seen].max()][-1]
    rows = [
        {"side": side, "distance": abs(price - mid) / mid * 1e4, "size": size}
        for side, prices, sizes in (("bid", book.bid_price, book.bid_size), ("ask", book.ask_price, book.ask_size))
        for price, size in zip(prices[newest], sizes[newest], strict=True)
        if not math.isnan(price)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("seed", range(3))
def test_features_equal_the_oracle(seed: int) -> None:
    market = random_market(seed)
    grid = decision_grid(market, 37.0)[10:]
    features = compute_features(market, grid, PARAMETERS)
    for row, t in enumerate(grid):
        expected = _oracle(market, int(t))
        for name in NAMES:
            assert features[name].iloc[row] == pytest.approx(expected[name], rel=1e-9, abs=1e-9), (name, row)


def test_normalisation_equals_pandas_ewm_on_irregular_times() -> None:
    rng = np.random.default_rng(1)
    ns = np.cumsum(rng.integers(1, 40, 400)) * SECOND
    values = rng.normal(100, 5, (400, 2))
    scaled = Normaliser(600).scores(values, ns, np.zeros_like(ns))
    halflife = pd.Timedelta(seconds=600 * math.log(2))  # weight exp(-age / window) halves every window x ln 2
    for column in range(2):
        series = pd.Series(values[:, column])
        times = pd.Series(pd.to_datetime(ns))
        mean = series.ewm(halflife=halflife, times=times).mean()
        variance = ((series**2).ewm(halflife=halflife, times=times).mean() - mean**2).clip(lower=0)
        expected = (series - mean) / (np.sqrt(variance) + 1e-9)
        np.testing.assert_allclose(scaled[5:, column], expected[5:], rtol=1e-6, atol=1e-6)


def test_normalisation_restarts_after_a_gap() -> None:
    ns = np.arange(200) * SECOND
    values = np.random.default_rng(0).normal(size=(200, 1))
    since = np.where(ns < 100 * SECOND, 0, 100 * SECOND)
    whole = Normaliser(60.0).scores(values, ns, since)
    np.testing.assert_array_equal(whole[100:], Normaliser(60.0).scores(values[100:], ns[100:], since[100:]))
    assert whole[100, 0] == 0.0


def test_rows_are_cold_until_the_warm_up_and_again_after_a_gap() -> None:
    market = random_market(4)
    begin, end = int(market.top.local_ns[0]), int(market.top.local_ns[-1])
    gap = (begin + 400 * SECOND, begin + 420 * SECOND)
    features = compute_features(replace(market, gaps=np.array([gap])), decision_grid(market, 10.0), PARAMETERS)
    warm = features.set_index("decision_ns")["warm"]
    assert not warm[warm.index < begin + 300 * SECOND].any()
    assert warm[(warm.index > begin + 310 * SECOND) & (warm.index < gap[0])].all()
    assert not warm[(warm.index > gap[1]) & (warm.index < gap[1] + 300 * SECOND)].any()
    assert warm[(warm.index > gap[1] + 300 * SECOND) & (warm.index <= end)].all()


def _market(recording: Path, asset: str, sz_decimals: int) -> Market:
    decoder, cleaner = Decoder(asset), Cleaner(load("smoke"), asset)
    piece = decoder.decode(gzip.decompress(recording.read_bytes()), 0, 2**63)
    *tables, context = cleaner.clean(piece, decoder.ended_ns)
    return Market(asset, sz_decimals, *tables, np.array(cleaner.report(decoder)["gaps"]), context)


@pytest.mark.parametrize(("asset", "sz_decimals"), [("BTC", 5), ("ETH", 4), ("SOL", 2)])
def test_features_of_a_real_recording(recordings: Path, asset: str, sz_decimals: int) -> None:
    market = _market(recordings / "hyperliquid" / "2025-09-04" / f"{asset}.ndjson.gz", asset, sz_decimals)
    features = compute_features(market, decision_grid(market, 5.0), PARAMETERS)
    warm = features[features["warm"]]
    assert len(warm) > 200 and np.isfinite(warm[[*NAMES, *(f"{name}_z" for name in NAMES)]].to_numpy()).all()
    assert warm["bid_ask_spread_bps"].median() < 1
    for row in warm.iloc[::40].itertuples():
        for name, expected in _oracle(market, row.decision_ns).items():
            assert getattr(row, name) == pytest.approx(expected, rel=1e-9, abs=1e-9), name


def test_a_gap_is_not_known_before_it_shows() -> None:
    market = random_market(4)
    begin = int(market.top.local_ns[0])
    gap = (begin + 500 * SECOND, begin + 540 * SECOND)

    def silent(columns: Columns) -> Columns:
        return select(columns, (columns.local_ns <= gap[0]) | (columns.local_ns >= gap[1]))

    quiet = replace(market, book=silent(market.book), bbo=silent(market.bbo), trades=silent(market.trades))
    grid = np.arange(gap[0] - 10 * SECOND, gap[1] + 10 * SECOND, SECOND)
    unaware = compute_features(quiet, grid, PARAMETERS)
    aware = compute_features(replace(quiet, gaps=np.array([gap])), grid, PARAMETERS)
    before = grid < gap[1]
    pd.testing.assert_frame_equal(aware[before], unaware[before], check_exact=True)
    assert aware["warm"][grid < gap[0] + 10 * SECOND].all() and not aware["warm"][grid > gap[0] + 16 * SECOND].any()


def test_what_is_not_defined_is_nan_and_cold() -> None:
    market = random_market(5)
    none = select(market.trades, market.trades.tid < 0)
    features = compute_features(replace(market, trades=none), decision_grid(market, 10.0), PARAMETERS)
    undefined = {"vwap_distance_bps", "large_trade_ratio", "volume_profile", "trade_size_ratio"}
    assert set(features.columns[features.isna().all()]) == undefined | {f"{name}_z" for name in undefined}
    assert (features["trade_volume_5m"] == 0).all() and not features["warm"].any()


def test_a_market_without_a_book_is_an_error() -> None:
    market = random_market(6)
    empty = replace(market, book=select(market.book, market.book.local_ns < 0))
    with pytest.raises(DataError, match="no l2Book"):
        compute_features(empty, market.bbo.local_ns[:3], PARAMETERS)
