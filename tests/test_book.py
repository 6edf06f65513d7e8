"""The book at any instant against one rebuilt message by message, and a market in parts against the whole."""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import hand_built
from hyperdapo.errors import DataError
from hyperdapo.market.book import Book, Market
from hyperdapo.market.columns import Contexts, select
from hyperdapo.market.features import compute_features, decision_grid, features_in_parts
from hyperdapo.market.quality import visible_levels
from hyperdapo.market.storage import writer
from hyperdapo.params import load
from hyperdapo.times import DAY_NS, HOUR_NS, SECOND_NS
from markets import random_market, save

Side = list[tuple[float, float]]


def _rebuilt(market: Market, t: int) -> tuple[Side, Side]:
    """Bids and asks from the newest snapshot by `t` and the newest best quote by `t`, one level at a time."""
    seen = [row for row in range(len(market.book.local_ns)) if market.book.local_ns[row] <= t]
    newest = max(seen, key=lambda row: (market.book.exchange_ns[row], row), default=None)
    if newest is None:
        return [], []
    book, top = market.book, market.top_at(t)
    sides = []
    for prices, sizes, best, size, better in (
        (book.bid_price, book.bid_size, top.bid_price[0], top.bid_size[0], lambda price, best: price >= best),
        (book.ask_price, book.ask_size, top.ask_price[0], top.ask_size[0], lambda price, best: price <= best),
    ):
        levels = [(p, q) for p, q in zip(prices[newest], sizes[newest], strict=True) if not math.isnan(p)]
        sides.append([(best, size)] + [(p, q) for p, q in levels if not better(p, best)])
    return sides[0], sides[1]


@pytest.mark.parametrize("seed", range(3))
def test_the_book_is_the_one_rebuilt_message_by_message(seed: int) -> None:
    market = random_market(seed, seconds=120)
    instants = np.random.default_rng(seed).integers(market.top.local_ns[0] - SECOND_NS, market.top.local_ns[-1], 200)
    book = Book.at(market, instants)
    for row, t in enumerate(instants):
        bids, asks = _rebuilt(market, int(t))
        for price, size, expected in (
            (book.bid_price, book.bid_size, bids),
            (book.ask_price, book.ask_size, asks),
        ):
            visible = ~np.isnan(price[row])
            assert visible[: len(expected)].all() and not visible[len(expected) :].any()
            assert list(zip(price[row][visible], size[row][visible], strict=True)) == expected


def test_the_book_by_hand() -> None:
    market = hand_built.market(quotes=[(10.0, 1000.0, 7.0, 1000.1, 3.0)])
    book = Book.at(market, [hand_built.known_at(5.0), hand_built.known_at(11.0)])
    assert book.bid_price[:, :4].tolist()[1] == [1000.0, 999.9, 999.8, 999.7]
    assert book.bid_size[:, :4].tolist()[1] == [7.0, 5.0, 10.0, 20.0]
    assert book.ask_price[:, :3].tolist() == [[1000.1, 1000.2, 1000.3]] * 2
    assert book.ask_size[:, :3].tolist() == [[4.0, 8.0, 16.0], [3.0, 8.0, 16.0]]
    assert book.mid.tolist() == [1000.0, 1000.05]
    earlier = Book.at(market, hand_built.known_at(-5.0))
    assert all(np.isnan(side).all() for side in (earlier.mid, earlier.bid_price, earlier.bid_size, earlier.ask_price))


def test_visible_levels_are_nearest_first() -> None:
    levels = visible_levels(hand_built.market(), hand_built.known_at(5.0)).set_index("side")
    assert levels.loc["bid", "size_usd"].tolist() == pytest.approx([999.9 * 5, 999.8 * 10, 999.7 * 20])
    assert levels.loc["ask", "distance_bps"].tolist() == pytest.approx([1, 2, 3])
    assert levels.loc["ask", "cumulative_usd"].iloc[-1] == pytest.approx(1000.1 * 4 + 1000.2 * 8 + 1000.3 * 16)


def test_a_market_without_a_book_is_an_error() -> None:
    market = random_market(0, seconds=60)
    with pytest.raises(DataError, match="no l2Book"):
        Book.at(replace(market, book=select(market.book, slice(0, 0))), market.bbo.local_ns)


def test_mark_price_and_funding_are_those_received_last() -> None:
    context = Contexts(np.array([100, 200]), *(np.array([1.0, 2.0]) * scale for scale in (10, 20, 1e-5, 5)))
    known = replace(random_market(0, seconds=60), context=context).context_at([99, 100, 250])
    np.testing.assert_array_equal(known.mark_price, [np.nan, 10.0, 20.0])
    np.testing.assert_array_equal(known.funding, [np.nan, 1e-5, 2e-5])


@pytest.fixture(scope="module")
def three_days(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Market]]:
    """A market over two midnights, written hour by hour, with a gap of two hours."""
    market = random_market(3, seconds=26 * 3600)
    gap = (int(market.top.local_ns[0]) + 7 * HOUR_NS, int(market.top.local_ns[0]) + 9 * HOUR_NS)

    def shifted(columns):
        moved = {"exchange_ns", "local_ns"} & {field.name for field in fields(columns)}
        later = replace(columns, **{name: getattr(columns, name) + DAY_NS - HOUR_NS for name in moved})
        return select(later, (columns.local_ns <= gap[0]) | (columns.local_ns >= gap[1]))

    gaps = np.array([gap]) + DAY_NS - HOUR_NS
    tables = (shifted(market.book), shifted(market.bbo), shifted(market.trades))
    whole = Market("ETH", 4, *tables, gaps)
    folder = tmp_path_factory.mktemp("three_days")
    save(whole, folder)
    with writer(folder) as append:
        for hour in np.unique(np.concatenate([table.local_ns for table in tables]) // HOUR_NS):
            append(*(select(table, table.local_ns // HOUR_NS == hour) for table in (*tables, whole.context)))
    yield folder, whole


def test_a_part_answers_as_the_whole(three_days: tuple[Path, Market]) -> None:
    folder, whole = three_days
    begin = int(whole.top.local_ns[0])
    for from_s, to_s in ((3_000, 9_000), (20_000, 30_000), (40_000, 41_000)):
        span = begin + from_s * SECOND_NS, begin + to_s * SECOND_NS
        part = Market.load(folder, span)
        assert len(part.book.local_ns) < len(whole.book.local_ns)
        instants = np.linspace(*span, 500).astype(np.int64)
        np.testing.assert_array_equal(part.mid_at(instants), whole.mid_at(instants))
        np.testing.assert_array_equal(part.uninterrupted_since(instants), whole.uninterrupted_since(instants))
        for name in ("bid_price", "ask_size"):
            np.testing.assert_array_equal(
                getattr(Book.at(part, instants), name), getattr(Book.at(whole, instants), name)
            )


def test_features_part_by_part_are_those_of_the_whole_span(three_days: tuple[Path, Market]) -> None:
    folder, whole = three_days
    parameters = load("smoke", {"features": {"decision_interval_s": 60}, "policy": {"decide_again_s": None}})
    frames = list(features_in_parts(folder, parameters, {}))
    assert len(frames) > 4
    expected = compute_features(whole, decision_grid(whole, 60), parameters.features)
    pd.testing.assert_frame_equal(pd.concat(frames, ignore_index=True), expected, check_exact=True)
    assert expected["warm"].any() and not expected["warm"].all()
