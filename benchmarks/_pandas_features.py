"""The peer of `features`: the 15 features as somebody at home in pandas writes them, without our library.

`merge_asof` for what was known at a decision, `rolling` over time for the windows, arithmetic on whole frames for the
book. Three features compare each print of a window with a number of the decision (the mid, the 90th percentile), for
which pandas has no vectorised operation; they are there twice: `by_apply` stays in pandas (`rolling.apply`), `by_pairs`
leaves it for NumPy and expands all (decision, print) pairs, the fastest way that we found (`groupby` on the same pairs
takes four times as long). Decisions must be 1 s apart, which lets moves of the mid be shifts of rows; ours asks nothing
of the kind.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from hyperdapo.market.book import Market

DECISIONS_AT_ONCE = 600  # their pairs stay in the processor's cache

OverPrints = Callable[[pd.DataFrame], pd.DataFrame]


def pandas_features(market: Market, ns: np.ndarray, over_prints: OverPrints) -> pd.DataFrame:
    """A row for each of the n decisions `ns`, a second apart, a column per feature; NaN for the first 300 rows.

    `over_prints` is `by_apply` or `by_pairs`.
    """
    decisions = pd.DataFrame({"local_ns": ns})
    quotes = pd.DataFrame({"local_ns": market.bbo.local_ns, "exchange_ns": market.bbo.exchange_ns})
    quotes = quotes.assign(bid=market.bbo.bid_price, ask=market.bbo.ask_price)
    books = pd.DataFrame({"local_ns": market.book.local_ns, "exchange_ns": market.book.exchange_ns})
    books = books.assign(bid=market.book.bid_price[:, 0], ask=market.book.ask_price[:, 0], row=np.arange(len(books)))
    top = pd.merge_asof(decisions, _newest(pd.concat([books, quotes])), on="local_ns")
    row = pd.merge_asof(decisions, _newest(books), on="local_ns")["row"].fillna(0).astype(int)
    mid = (top["bid"] + top["ask"]) / 2
    features = {
        "bid_ask_spread_bps": (top["ask"] - top["bid"]) / mid * 1e4,
        "volatility_5m_bps": np.log(mid).diff().rolling(300).std() * 1e4,
        "momentum_1m_bps": mid.pct_change(60) * 1e4,
        "momentum_5m_bps": mid.pct_change(300) * 1e4,
    }
    features |= _of_books(market, row.to_numpy(), mid)
    features |= _of_prints(market, decisions.assign(mid=mid), over_prints)
    return pd.DataFrame(features)


def _newest(quotes: pd.DataFrame) -> pd.DataFrame:
    """Those that were the newest when they came."""
    quotes = quotes.sort_values("local_ns", kind="stable")
    return quotes[quotes["exchange_ns"] == quotes["exchange_ns"].cummax()]


def _of_books(market: Market, row: np.ndarray, mid: pd.Series) -> dict[str, pd.Series]:
    names = ("bid_price", "bid_size", "ask_price", "ask_size")
    bid_price, bids, ask_price, asks = (pd.DataFrame(getattr(market.book, name)[row]) for name in names)
    bid_off = bid_price.sub(mid, axis=0).abs().div(mid, axis=0) * 1e4
    ask_off = ask_price.sub(mid, axis=0).abs().div(mid, axis=0) * 1e4
    bid, ask = bids.sum(axis=1), asks.sum(axis=1)
    near = bids.where(bid_off <= 10).sum(axis=1) / asks.where(ask_off <= 10).sum(axis=1)
    bids, asks = bids.where(bid_off <= 50), asks.where(ask_off <= 50)
    bid_pressure, ask_pressure = (bids * (1 - bid_off / 50)).sum(axis=1), (asks * (1 - ask_off / 50)).sum(axis=1)
    levels = bids.count(axis=1) + asks.count(axis=1)
    return {
        "book_imbalance": (bid - ask) / (bid + ask),
        "depth_ratio_10bps": near.clip(0.01, 100),
        "book_pressure_50bps": (bid_pressure - ask_pressure) / (bid_pressure + ask_pressure),
        "liquidity_score_50bps": (bids.sum(axis=1) + asks.sum(axis=1)) / levels,
    }


def _of_prints(market: Market, decisions: pd.DataFrame, over_prints: OverPrints) -> dict[str, pd.Series]:
    """Decisions join the prints as rows without a size, so that the windows of `rolling` end at them."""
    trades = market.trades
    prints = pd.DataFrame({"local_ns": trades.local_ns, "size": trades.size, "price": trades.price})
    prints = prints.assign(notional=trades.size * trades.price, flow=trades.size * trades.side)
    both = pd.concat([prints, decisions]).sort_values("local_ns", kind="stable")
    both.index = pd.to_datetime(both["local_ns"])
    asked = both["mid"].notna().to_numpy()
    five = both[["size", "notional", "flow"]].rolling("300s")
    sums = five.sum()[asked].reset_index(drop=True)
    count = five["size"].count()[asked].reset_index(drop=True)
    both["p90"] = both["size"].rolling("3600s").quantile(0.9)
    over = over_prints(both).reset_index(drop=True)
    vwap, mid = sums["notional"] / sums["size"], decisions["mid"]
    return {
        "trade_volume_5m": sums["size"],
        "vwap_distance_bps": (mid - vwap) / vwap * 1e4,
        "trade_flow_5m": sums["flow"],
        "order_intensity_per_min": count / 5,
        "large_trade_ratio": over["large"] / count,
        "volume_profile": over["above"] / sums["size"],
        "trade_size_ratio": over["large_volume"] / (sums["size"] - over["large_volume"]),
    }


def by_apply(both: pd.DataFrame) -> pd.DataFrame:
    """Per decision: prints of 300 s above its p90, their volume, the volume above its mid; `both` in order of time."""
    size, price, mid, p90 = (both[name].to_numpy() for name in ("size", "price", "mid", "p90"))
    asked = ~np.isnan(mid)

    def over(measure: Callable[[np.ndarray, np.ndarray, int], float]) -> pd.Series:
        def of_window(places: np.ndarray) -> float:
            row = int(places[-1])
            window = slice(int(places[0]), row)
            return measure(size[window], price[window], row) if asked[row] else np.nan

        return places.rolling("300s").apply(of_window, raw=True)[asked]

    places = pd.Series(np.arange(len(both)), index=both.index)
    columns = {
        "large": over(lambda size, price, row: np.count_nonzero(size > p90[row])),
        "large_volume": over(lambda size, price, row: size[size > p90[row]].sum()),
        "above": over(lambda size, price, row: size[price > mid[row]].sum()),
    }
    return pd.DataFrame(columns)


def by_pairs(both: pd.DataFrame) -> pd.DataFrame:
    """The same as `by_apply`."""
    asked = both["mid"].notna()
    decisions, prints = both[asked], both[~asked]
    ns, print_ns = decisions["local_ns"].to_numpy(), prints["local_ns"].to_numpy()
    begin = np.searchsorted(print_ns, ns - 300 * 10**9, side="right")
    counts = np.searchsorted(print_ns, ns, side="right") - begin
    sizes, prices = prints["size"].to_numpy(), prints["price"].to_numpy()
    mid, p90 = decisions["mid"].to_numpy(), decisions["p90"].to_numpy()
    parts = []
    for start in range(0, len(ns), DECISIONS_AT_ONCE):
        rows = slice(start, start + DECISIONS_AT_ONCE)
        count = counts[rows]
        first = np.cumsum(count) - count
        pair = np.arange(count.sum()) + np.repeat(begin[rows] - first, count)
        size, price = sizes[pair], prices[pair]
        terms = np.zeros((3, len(pair) + 1))  # one more, for a last window without a print
        terms[0, :-1] = size > np.repeat(p90[rows], count)
        terms[1, :-1] = size * terms[0, :-1]
        terms[2, :-1] = size * (price > np.repeat(mid[rows], count))
        parts.append(np.where(count > 0, np.add.reduceat(terms, first, axis=1), 0.0))
    return pd.DataFrame(np.concatenate(parts, axis=1).T, columns=["large", "large_volume", "above"])
