"""The synthetic exchange: matching against a plain reference, the market it makes, and its two worlds."""

import json
import math
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperdapo.errors import ParameterError
from hyperdapo.market.grid import on_grid
from hyperdapo.params import load
from hyperdapo.synthetic import matching
from hyperdapo.synthetic.exchange import ladder, simulate
from hyperdapo.synthetic.matching import ASK, BID, empty_book
from hyperdapo.synthetic.tape import CHANNELS, Tape

PARAMETERS = load("sample")
START = PARAMETERS.source.start_ns
SECOND, HOUR = 10**9, 3600 * 10**9
ASSETS = ["BTC", "ETH", "SOL", "HYPE"]


@lru_cache(maxsize=8)
def play(asset: str, predictability: float, hours: float = 8.0, seed: int = 7) -> Tape:
    model, facts = PARAMETERS.synthetic.assets[asset], PARAMETERS.contracts[asset]
    return simulate(asset, model, facts.sz_decimals, predictability, seed, START, START + int(hours * HOUR))


class PlainBook:
    """Price-time priority as one would write it down: a list of [id, lots] per level and side."""

    def __init__(self) -> None:
        self.sides: tuple[dict[int, list[list[int]]], ...] = ({}, {})

    def best(self, side: int) -> int | None:
        levels = [level for level, queue in self.sides[side].items() if queue]
        return (max if side == BID else min)(levels, default=None)

    def crosses(self, side: int, level: int) -> bool:
        other = self.best(1 - side)
        return other is not None and (level >= other if side == BID else level <= other)

    def take(self, taker: int, limit: int, lots: int) -> list[tuple[int, int, int]]:
        prints = []
        while (
            lots
            and (level := self.best(1 - taker)) is not None
            and (level <= limit if taker == BID else level >= limit)
        ):
            order = self.sides[1 - taker][level][0]
            traded = min(lots, order[1])
            prints.append((level, traded, taker))
            order[1] -= traded
            lots -= traded
            if not order[1]:
                self.sides[1 - taker][level].pop(0)
        return prints


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 19), st.integers(1, 30)), max_size=120))
def test_matching_is_price_time_priority(actions: list[tuple[int, int, int, int]]) -> None:
    book, plain, prints, used, expected = empty_book(20, 256), PlainBook(), np.empty((4096, 5), np.int64), 0, []
    resting: dict[int, tuple[int, int, list[int]]] = {}
    for kind, side, level, lots in actions:
        if kind <= 1:
            order = int(book.free[book.top[2] - 1])
            accepted = matching.post(book, side, level, lots)
            assert accepted == (not plain.crosses(side, level))
            if accepted:
                entry = [order, lots]
                plain.sides[side].setdefault(level, []).append(entry)
                resting[order] = (side, level, entry)
        elif kind == 2 and resting:
            order = sorted(resting)[lots % len(resting)]
            side, level, entry = resting.pop(order)
            matching.cancel(book, order)
            plain.sides[side][level].remove(entry)
        elif kind == 3:
            used = matching.take(book, side, level, lots, prints, used)
            expected += plain.take(side, level, lots)
        resting = {order: place for order, place in resting.items() if place[2][1]}
        best = [plain.best(BID), plain.best(ASK)]
        assert book.top[:2].tolist() == [-1 if best[0] is None else best[0], 20 if best[1] is None else best[1]]
        for level in range(20):
            queue = plain.sides[BID].get(level, []) + plain.sides[ASK].get(level, [])
            assert (book.orders[level], book.lots[level]) == (len(queue), sum(lots for _, lots in queue))
    assert [tuple(row) for row in prints[:used, :3].tolist()] == expected


def test_same_seed_same_bytes_and_a_longer_span_has_the_same_beginning() -> None:
    short, longer = play("SOL", 0.8, 0.2), play("SOL", 0.8, 0.9)
    end = START + int(0.2 * HOUR)
    assert short.lines(CHANNELS, START, end) == longer.lines(CHANNELS, START, end)
    assert short.lines(CHANNELS, START, end) == play.__wrapped__("SOL", 0.8, 0.2).lines(CHANNELS, START, end)


def test_seed_and_asset_each_make_another_market() -> None:
    model = PARAMETERS.synthetic.assets["SOL"]
    first, other_seed, other_name = (
        simulate(asset, model, 2, 0.8, seed, START, START + 60 * SECOND)
        for asset, seed in [("A", 7), ("A", 8), ("B", 7)]
    )
    assert not np.array_equal(first.bbo.bid_size, other_seed.bbo.bid_size)
    assert not np.array_equal(first.bbo.bid_size, other_name.bbo.bid_size)


@pytest.mark.slow
@pytest.mark.parametrize("asset", ASSETS)
def test_book_is_whole(asset: str) -> None:
    tape = play(asset, 0.8)
    book, bbo, lot = tape.book, tape.bbo, 10.0**-tape.sz_decimals
    assert (book.ask_price[:, 0] > book.bid_price[:, 0]).all() and (bbo.ask_price > bbo.bid_price).all()
    for prices, sizes, outward in ((book.bid_price, book.bid_size, -1), (book.ask_price, book.ask_size, 1)):
        seen = ~np.isnan(prices)
        assert on_grid(prices[seen], tape.sz_decimals).all()
        assert np.allclose(sizes[seen] / lot, np.round(sizes[seen] / lot), atol=1e-6) and (sizes[seen] > 0).all()
        steps = np.diff(prices, axis=1) * outward
        assert (steps[~np.isnan(steps)] > 0).all() and seen.mean() > 0.99
    assert on_grid(tape.trades.price, tape.sz_decimals).all() and (tape.book_orders[tape.book_orders >= 0] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("asset", ASSETS)
def test_feed_is_like_the_real_one(asset: str) -> None:
    tape = play(asset, 0.8)
    for stream in (tape.book, tape.bbo, tape.trades):
        assert (np.diff(stream.local_ns) >= 0).all()
        assert stream.local_ns[0] >= START and stream.local_ns[-1] < START + 8 * HOUR
    delay = (tape.bbo.local_ns - tape.bbo.exchange_ns) / SECOND
    assert delay.min() > 0.3 and 0.38 < np.median(delay) < 0.5
    assert np.median(np.diff(tape.book.exchange_ns)) / SECOND == pytest.approx(0.54, abs=0.02)
    assert len(np.unique(tape.trades.tid)) == len(tape.trades.tid)
    assert 0 < tape.backfilled <= 10
    assert (tape.trades.exchange_ns[: tape.backfilled] < START).all()


@pytest.mark.slow
@pytest.mark.parametrize("predictability", [0.0, 0.8])
@pytest.mark.parametrize("asset", ASSETS)
def test_market_is_as_described(asset: str, predictability: float) -> None:
    tape, model = play(asset, predictability), PARAMETERS.synthetic.assets[asset]
    bbo, lasting = tape.bbo, np.diff(tape.bbo.exchange_ns)
    mid = bbo.mid[np.searchsorted(bbo.local_ns, np.arange(bbo.local_ns[0], bbo.local_ns[-1], SECOND), "right") - 1]
    volatility = np.std(np.log(mid[60:] / mid[:-60])) * 1e4
    tick = (
        10.0 ** -min(4 - math.floor(math.log10(model.price_usd)), 6 - tape.sz_decimals)
        if model.price_usd < 1e5
        else 1.0
    )
    spread = np.average((bbo.ask_price - bbo.bid_price)[:-1] / tick, weights=lasting)
    depth = np.average(((bbo.bid_size + bbo.ask_size) / 2 * bbo.mid)[:-1], weights=lasting)
    prints = len(tape.trades.price) / (8 * 60)
    assert volatility == pytest.approx(model.volatility_bps, rel=0.25)
    assert spread == pytest.approx(model.spread_ticks, rel=0.25, abs=0.45)
    assert depth == pytest.approx(model.depth_usd, rel=0.25)
    assert prints == pytest.approx(model.trades_per_min, rel=0.25)
    assert 0.90 < _cancel_share(tape) < 0.985
    _, block, in_block = np.unique(tape.trades.exchange_ns, return_inverse=True, return_counts=True)
    assert tape.trades.size[in_block[block] >= 5].sum() / tape.trades.size.sum() > 0.75


def _cancel_share(tape: Tape) -> float:
    """Share of the decreases of the best bid's size that no sell explains."""
    bbo, sells = tape.bbo, tape.trades.side < 0
    sold = np.append(0, np.cumsum(tape.trades.size[sells]))
    traded = np.diff(sold[np.searchsorted(tape.trades.exchange_ns[sells], bbo.exchange_ns, "right")])
    same, worse = bbo.bid_price[1:] == bbo.bid_price[:-1], bbo.bid_price[1:] < bbo.bid_price[:-1]
    decrease = np.where(same, np.maximum(-np.diff(bbo.bid_size), 0), np.where(worse, bbo.bid_size[:-1], 0))
    return float(1 - np.minimum(traded, decrease).sum() / decrease.sum())


def _foretelling(tape: Tape) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) imbalance, signed flow of 300 s, momentum of 60 s every 10 s, and the mid's next 60 s return (n,)."""
    at = np.arange(START + 360 * SECOND, tape.book.local_ns[-1] - 60 * SECOND, 10 * SECOND)
    bids, asks = np.nansum(tape.book.bid_size, axis=1), np.nansum(tape.book.ask_size, axis=1)
    imbalance = ((bids - asks) / (bids + asks))[np.searchsorted(tape.book.local_ns, at, "right") - 1]
    bought = np.append(0, np.cumsum(tape.trades.size * tape.trades.side))
    flow = bought[np.searchsorted(tape.trades.local_ns, at, "right")]
    flow = flow - bought[np.searchsorted(tape.trades.local_ns, at - 300 * SECOND, "right")]

    def log_mid(ns: np.ndarray) -> np.ndarray:
        return np.log(tape.bbo.mid[np.searchsorted(tape.bbo.local_ns, ns, "right") - 1])

    return np.stack([imbalance, flow, log_mid(at) - log_mid(at - 60 * SECOND)], 1), log_mid(at + 60 * SECOND) - log_mid(
        at
    )


def _correlations(asset: str, predictability: float, seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """Correlations (3,) with the next return, and their t values over blocks of 15 minutes."""
    products = []
    for seed in seeds:
        known, following = _foretelling(play(asset, predictability, seed=seed))
        known, following = (known - known.mean(0)) / known.std(0), (following - following.mean()) / following.std()
        blocks = len(following) // 90
        products.append((known * following[:, None])[: blocks * 90].reshape(blocks, 90, 3).mean(axis=1))
    each = np.concatenate(products)
    return each.mean(0), each.mean(0) / (each.std(0, ddof=1) / math.sqrt(len(each)))


@pytest.mark.slow
@pytest.mark.parametrize("asset", ASSETS)
def test_planted_world_foretells_half_of_the_variance(asset: str) -> None:
    correlation, t_value = _correlations(asset, 0.8, range(7, 8))
    assert (t_value > 2.0).all() and t_value[0] > 5.0 and correlation[0] > 0.65, (correlation, t_value)
    known, following = _foretelling(play(asset, 0.8))
    design = np.column_stack([np.ones(len(known)), known])
    residual = following - design @ np.linalg.lstsq(design, following, rcond=None)[0]
    assert 1 - residual.var() / following.var() > 0.48


@pytest.mark.slow
@pytest.mark.parametrize("asset", ASSETS)
def test_null_world_foretells_nothing(asset: str) -> None:
    correlation, t_value = _correlations(asset, 0.0, range(7, 10))
    assert (np.abs(t_value) < 3.0).all() and (np.abs(correlation) < 0.1).all(), (correlation, t_value)


def test_tick_moves_with_the_price() -> None:
    units = ladder(10.0, 2)
    assert np.array_equal(np.unique(units), units) and on_grid(units / 10**4, 2).all()
    assert {int(step) for step in np.diff(units[units < 100_000])} == {1}
    assert {int(step) for step in np.diff(units[units >= 100_000])} == {10}
    btc = ladder(99_990.0, 5)
    assert set(np.diff(btc).tolist()) == {10} and btc[0] % 10 == 0
    model = PARAMETERS.synthetic.assets["HYPE"].model_copy(update={"price_usd": 10.0})
    tape = simulate("HYPE", model, 2, 0.0, 3, START, START + HOUR // 2)
    assert on_grid(tape.trades.price, 2).all() and tape.trades.price.min() < 10 < tape.trades.price.max()


def test_native_spelling() -> None:
    lines = play("BTC", 0.8, 0.2).lines(CHANNELS, START, START + 60 * SECOND).splitlines()
    messages = {channel: next(line for line in lines if f'"{channel}"'.encode() in line) for channel in CHANNELS}
    assert lines[0] == messages["trades"], "the backfill comes first"
    assert len(lines[0].split(b" ")[0]) == 28 and lines[0][26:28].endswith(b"Z")
    book = json.loads(messages["l2Book"][29:])["data"]
    assert book["coin"] == "BTC" and [len(side) for side in book["levels"]] == [20, 20]
    assert book["levels"][0][0]["px"].endswith(".0") and set(book["levels"][0][0]) == {"px", "sz", "n"}
    prints = json.loads(messages["trades"][29:])["data"]
    assert len(prints) > 1 and set(prints[0]) == {"coin", "side", "px", "sz", "time", "hash", "tid"}
    assert not any(b"e-" in line for line in lines)


def test_a_whole_size_asset_can_be_added() -> None:
    model = PARAMETERS.synthetic.assets["HYPE"].model_copy(update={"price_usd": 0.22, "depth_usd": 15000.0})
    tape = simulate("DOGE", model, 0, 0.8, 7, START, START + 60 * SECOND)
    assert on_grid(tape.bbo.bid_price, 0).all() and (tape.trades.size % 1 == 0).all()


def test_a_book_too_thin_for_the_minimum_order_is_an_error() -> None:
    model = PARAMETERS.synthetic.assets["HYPE"].model_copy(update={"depth_usd": 50.0})
    with pytest.raises(ParameterError, match="depth_usd 50"):
        simulate("HYPE", model, 2, 0.8, 7, START, START + 60 * SECOND)


def test_a_price_that_runs_away_is_an_error() -> None:
    model = PARAMETERS.synthetic.assets["HYPE"].model_copy(update={"volatility_bps": 3000.0})
    with pytest.raises(ParameterError, match="volatility_bps"):
        simulate("HYPE", model, 2, 0.0, 7, START, START + 8 * HOUR)
