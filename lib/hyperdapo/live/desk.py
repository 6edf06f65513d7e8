"""One asset of a session: its messages, what was known at each decision time, the orders, and their ends."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hyperdapo.live import orders as ordering
from hyperdapo.live.deciding import Choice
from hyperdapo.market import native
from hyperdapo.market.book import Market
from hyperdapo.market.stream import Stream
from hyperdapo.params import Parameters
from hyperdapo.times import DAY_NS, SECOND_NS

CHANNELS = {
    native.BookMessage: "l2Book",
    native.QuoteMessage: "bbo",
    native.TradesMessage: "trades",
    native.ContextMessage: "activeAssetCtx",
}


class Known(NamedTuple):
    """What is known at a decision time: a row of features, the market of late, and the order that is wanted (1, 13)."""

    features: dict[str, Any]
    market: Market
    parents: pd.DataFrame


class Desk:
    """Follows the market of one asset, and trades in it on paper.

    `kept` counts the messages that count, by channel; `daily_volume` is V of eq. 2.4 (coin), of what printed until the
    first order where it was not known before; `next_ns` is the decision time after the last one, 0 before the first.
    """

    def __init__(self, parameters: Parameters, asset: str, daily_volume: float | None = None) -> None:
        """The parameters are those of the asset, as measured."""
        self.parameters, self.asset, self.daily_volume = parameters, asset, daily_volume
        self.stream, self.kept = Stream(parameters, asset), Counter[str]()
        self.open: list[pd.DataFrame] = []
        self.ended: list[pd.DataFrame] = []
        self.next_ns = 0
        self._last_ns = 0
        self.step_ns = round(parameters.features.decision_interval_s * SECOND_NS)

    def hear(self, message: native.Message, ns: int) -> str:
        """Take in a message; empty where it counts, else why it does not."""
        self._last_ns = ns
        cause: str = self.stream.receive(message, ns)
        if not cause:
            self.kept[CHANNELS[type(message)]] += 1
        return cause

    def lose(self, ns: int) -> None:
        """The connection was lost; the last message had come at `ns`."""
        self.stream.disconnected(ns)

    @property
    def quoted(self) -> bool:
        """Whether best quotes are known, so that there is something to make features of."""
        return bool(self.stream.book_ns or self.kept["bbo"])

    def features(self, ns: int) -> dict[str, Any]:
        """The row of features at a decision time; each is asked for once, in order."""
        self.next_ns = ns + self.step_ns
        row: dict[str, Any] = self.stream.features(ns)
        return row

    def refusal(self, features: Mapping[str, Any], ns: int) -> str:
        """Why nothing can be decided on what is known; empty where it can."""
        age_ns = ns - self.stream.book_ns
        if age_ns > self.parameters.live.max_book_age_s * SECOND_NS:
            return "no book, or an old one"
        return "" if features["warm"] else str(features["cold_because"])

    def known(self, features: dict[str, Any], ns: int) -> Known:
        """What an order at a decision time starts from."""
        market = self.market(ns)
        row = pd.DataFrame([features])
        return Known(features, market, ordering.parents_at(row, self.parameters, market))

    def market(self, ns: int) -> Market:
        """The market of late, for orders that were decided on from `ns` on."""
        if self.daily_volume is None:
            whole = self.stream.market()
            span_ns = ns - int(whole.top.local_ns[0])
            self.daily_volume = float(whole.trades.size.sum()) * DAY_NS / max(span_ns, 1)
        market: Market = self.stream.market(ns - ordering.BEFORE_NS)
        return replace(market, daily_volume=self.daily_volume)

    def _whole_market(self, ns: int) -> Market:
        """The same once nothing more comes: a silence of books that has no end is a gap too."""
        market, silent_ns = self.market(ns), self._last_ns - self.stream.book_ns
        if silent_ns <= self.parameters.clean.max_gap_s * SECOND_NS:
            return market
        return replace(market, gaps=np.vstack([market.gaps, [[self.stream.book_ns, self._last_ns]]]))

    def order(self, known: Known, choice: Choice) -> pd.DataFrame:
        """The order that is chosen, (1, ...), with all but the time that it took to choose it."""
        return ordering.orders_of(known.parents, known.market, self.parameters, [choice.action])

    def send(self, order: pd.DataFrame, policy_ms: float) -> pd.DataFrame:
        """Send an order, on paper, so long after its decision time: (1, ...)."""
        sent = order.assign(policy_ms=policy_ms)
        self.open.append(sent.assign(needed_ns=ordering.needed_until(sent, self.asset, self.parameters)))
        return sent

    def standing(self, now_ns: int) -> pd.DataFrame | None:
        """How the open orders stand, None where there is none."""
        if not self.open:
            return None
        orders = pd.concat(self.open, ignore_index=True)
        market = self.market(int(orders["decision_ns"].min()))
        return ordering.standing(market, orders.drop(columns="needed_ns"), self.parameters, now_ns)

    def due(self, now_ns: int, last: bool = False) -> "Due | None":
        """Orders whose end no message can change any more (the `last` time all), and the market to judge them by."""
        if not self.open:
            return None
        known_ns = now_ns - ordering.LATE_NS
        ripe = [last or self._ripe(int(order["needed_ns"].iloc[0]), known_ns) for order in self.open]
        if not any(ripe):
            return None
        chosen = [order for order, done in zip(self.open, ripe, strict=True) if done]
        self.open = [order for order, done in zip(self.open, ripe, strict=True) if not done]
        orders = pd.concat(chosen, ignore_index=True).drop(columns="needed_ns")
        of = self._whole_market if last else self.market
        return Due(self, orders, of(int(orders["decision_ns"].min())))

    def _ripe(self, needed_ns: int, known_ns: int) -> bool:
        """Whether all that was stamped by then has come, and a book after it, which says whether there was a gap."""
        return known_ns > needed_ns and self.stream.book_ns > needed_ns


class Due(NamedTuple):
    """Orders that have ended, and the market to judge them by."""

    desk: Desk
    orders: pd.DataFrame
    market: Market

    def settle(self, strategy: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rows of `orders.parquet`, and the orders that are void. It changes nothing, so a thread may do it."""
        void = np.asarray(ordering.voided(self.market, self.orders, self.desk.parameters))
        whole = self.orders[~void].reset_index(drop=True)
        if whole.empty:
            return whole, self.orders
        return ordering.execute(self.market, whole, self.desk.parameters, strategy, seed), self.orders[void]
