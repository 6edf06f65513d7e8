"""One asset of a session: its messages, what was known at each decision time, the orders, and their ends."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from hyperdapo.feed.stream import Stream
from hyperdapo.live import orders as ordering
from hyperdapo.live.deciding import Choice, Known
from hyperdapo.market import native
from hyperdapo.market.book import Market
from hyperdapo.params import Parameters
from hyperdapo.times import SECOND_NS


class Desk:
    """Follows the market of one asset, and trades in it on paper.

    `daily_volume` is V of eq. 2.4 (coin): where it was not known before, what the messages until the first order say.
    """

    def __init__(self, parameters: Parameters, asset: str, daily_volume: float | None = None) -> None:
        """The parameters are those of the asset, as measured."""
        self.parameters, self.asset, self.daily_volume = parameters, asset, daily_volume
        self.stream = Stream(parameters, asset)
        self.open: list[pd.DataFrame] = []
        self.ended: list[pd.DataFrame] = []

    def hear(self, message: native.Message, ns: int) -> str:
        """Take in a message; empty where it counts, else why it does not."""
        return self.stream.receive(message, ns)

    def lose(self, ns: int) -> None:
        """The connection was lost; the last message had come at `ns`."""
        self.stream.disconnected(ns)

    def refusal(self, ns: int) -> str:
        """Why nothing can be decided on what is known at a decision time; empty where it can."""
        age_ns = ns - self.stream.book_ns
        if age_ns > self.parameters.live.max_book_age_s * SECOND_NS:
            return "no book, or an old one"
        features = self.stream.features(ns)
        return "" if features["warm"] else str(features["cold_because"])

    def known(self, ns: int) -> Known:
        """What an order at a decision time starts from."""
        features, market = self.stream.features(ns), self.market(ns)
        row = pd.DataFrame([features])
        return Known(features, market, ordering.parents_at(row, self.parameters, market))

    def market(self, ns: int) -> Market:
        """The market of late, for orders that were decided on from `ns` on."""
        market = self.stream.market(ns - ordering.BEFORE_NS)
        if self.daily_volume is None:
            self.daily_volume = market.daily_volume
        return replace(market, daily_volume=self.daily_volume)

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
        return Due(self, orders, self.market(int(orders["decision_ns"].min())))

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
