"""The cleaning report's figures, minute by minute and day by day, and mark price and funding all the way through."""

import numpy as np
import pytest

from hyperdapo.feed.clean import Cleaner, context_faults
from hyperdapo.feed.messages import Decoder
from hyperdapo.market.columns import Contexts, select
from hyperdapo.market.quality import by_minute, feed_name, level_counts
from hyperdapo.params import load
from hyperdapo.synthetic.exchange import World
from hyperdapo.synthetic.tape import Tape
from hyperdapo.times import DAY_NS, MINUTE_NS

PARAMETERS = load("smoke")
MIDNIGHT = PARAMETERS.source.start_ns + DAY_NS


def tapes(asset: str = "ETH", minutes: int = 10) -> list[Tape]:
    """Some minutes on both sides of a midnight."""
    return list(World.of(PARAMETERS, asset).play(MIDNIGHT - minutes * MINUTE_NS, MIDNIGHT + minutes * MINUTE_NS))


def test_mark_and_funding_come_through_exactly() -> None:
    for tape in tapes():
        decoder = Decoder("ETH")
        piece = decoder.decode(tape.lines(("bbo", "activeAssetCtx"), *tape.covers), *tape.covers)
        assert decoder.messages["activeAssetCtx"] == len(tape.context.local_ns) > 190 and not decoder.dropped
        for name in ("local_ns", "mark_price", "oracle_price", "funding", "open_interest"):
            np.testing.assert_array_equal(getattr(piece.context, name), getattr(tape.context, name))


def test_the_mark_price_is_the_median_of_eq_2_2() -> None:
    for tape in tapes("BTC"):
        minutes = by_minute(tape.book, tape.bbo, tape.trades, tape.context)
        assert minutes["mark_error_bps"].max() < 1e-9 and minutes["mark_error_bps"].count() >= 9
        assert (minutes["mark_price"] / minutes["oracle_price"] - 1).abs().max() * 1e4 < 15
        assert minutes["funding"].abs().max() < 0.04


def test_minutes_count_what_came() -> None:
    first, second = tapes()
    whole = by_minute(first.book, first.bbo, first.trades, first.context)
    assert whole["books"].sum() == len(first.book.local_ns) and whole["quotes"].sum() == len(first.bbo.local_ns)
    assert whole["volume"].sum() == pytest.approx(first.trades.size.sum())
    assert whole["bought"].sum() == pytest.approx(first.trades.size[first.trades.side > 0].sum())
    assert whole["minute_ns"].is_monotonic_increasing and (whole["delay_s"] > 0.2).all()
    none = Contexts(*(np.zeros(0, np.int64), *(np.zeros(0),) * 4))
    silent = by_minute(select(second.book, slice(0, 0)), second.bbo, second.trades, none)
    assert silent["spread_bps"].isna().all() and (silent["books"] == 0).all() and silent["quotes"].sum() > 0


def test_the_cadence_is_told_for_each_day() -> None:
    cleaner, decoder = Cleaner(PARAMETERS, "ETH"), Decoder("ETH")
    first, second = tapes()
    for tape, every in ((first, 1), (second, 4)):
        lines = tape.lines(("l2Book",), *tape.covers).splitlines(keepends=True)
        cleaner.clean(decoder.decode(b"".join(lines[::every]), *tape.covers), decoder.ended_ns)
    days = cleaner.report(decoder)["days"]
    assert [day["date"] for day in days] == ["2025-08-01", "2025-08-02"]
    assert days[0]["cadence_s"] == pytest.approx(0.54, abs=0.02) and days[1]["cadence_s"] == pytest.approx(
        2.16, abs=0.06
    )
    assert days[0]["l2Book"] == len(first.book.local_ns) and days[1]["gap_s"] == 0


def test_the_feed_is_named_by_its_levels() -> None:
    told = level_counts({"levels": {"5": 30, "20": 90}})
    assert told.to_dict("list") == {"levels": [5, 20], "books": [30, 90], "share": [0.25, 0.75]}
    assert feed_name({"levels": {"5": 30}, "dropped": {}}).startswith(
        "only the exchange's `fast` book, 5 levels a side"
    )
    mixed = {"levels": {"18": 1, "20": 9}, "dropped": {"l2Book_fast": 7, "l2Book_aggregated": 3, "malformed": 1}}
    expected = "books of up to 20 levels a side; dropped beside them: 7 `fast` ones, 3 rounded ones (`nSigFigs`)"
    assert feed_name(mixed) == expected


def test_contexts_that_cannot_be_are_named() -> None:
    columns = np.array(
        [
            [1, 1, 0, 1],
            [np.nan, 1, 0, 1],
            [np.inf, 1, 0, 1],
            [0, 1, 0, 1],
            [1, -1, 0, 1],
            [1, 1, 0.05, 1],
            [1, 1, 0, -1],
        ]
    ).T
    faults = context_faults(Contexts(np.arange(7), *columns))
    named = {cause: np.flatnonzero(rows).tolist() for cause, rows in faults.items()}
    assert named == {"non_finite": [1, 2], "non_positive": [3, 4, 6], "funding_cap": [5]}


def test_days_of_one_market_are_the_market() -> None:
    whole = b"".join(tape.lines(("l2Book", "bbo", "trades"), *tape.covers) for tape in tapes())
    decoder = Decoder("ETH")
    piece = decoder.decode(whole, MIDNIGHT - 10 * MINUTE_NS, MIDNIGHT + 10 * MINUTE_NS)
    assert decoder.connection == 0 and len(np.unique(piece.trades.tid)) == len(piece.trades.tid)
    assert piece.backfill.sum() == tapes()[0].backfilled and not decoder.dropped
