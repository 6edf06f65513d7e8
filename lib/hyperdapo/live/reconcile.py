"""A session held against its own record: is every order what the ordinary batch route makes of the same messages?

The record goes through the cleaner, the features, the prompts, the policy and the replay of a backtest, with the
decision times and the `policy_ms` of the session and its seed. Every order is compared, and of one that differs the
first cause is named, in the order in which one leads to the next: the message set (the session judges a message by what
came before it, the cleaner also by what came after), a feature, the prompt, the action, the price, a time, the queue, a
fill, the cost.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hyperdapo.errors import DataError
from hyperdapo.feed.clean import recorded
from hyperdapo.files import atomic
from hyperdapo.live import orders as ordering
from hyperdapo.live.connection import record as recording
from hyperdapo.live.deciding import Decider, decider_of
from hyperdapo.live.desk import Desk
from hyperdapo.live.session import Json, Session
from hyperdapo.market import native
from hyperdapo.market.book import Market
from hyperdapo.market.features import compute_features, decision_grid
from hyperdapo.params import Parameters
from hyperdapo.times import SECOND_NS

TOLERANCE = 1e-9
"""Of features, relative to their size or 1, and of costs in bps; all else is equal, or it differs."""
CAUSES: dict[str, tuple[str, ...]] = {
    "feature": (),  # every column of both rows
    "prompt": ("prompt",),
    "action": ("action", "kind"),
    "price": ("side", "size", "horizon_s", "arrival_mid", "limit_price", "post_only", "waits", "offset_bps"),
    "time": ("policy_ms", "latency_ms", "arrival_ns", "expiry_ns", "cancel_ns", "completion_ns"),
    "queue": ("queue_ahead", "queue_estimated", "rejections"),
    "fill": (
        *("status", "filled", "filled_passive", "maker_share", "filled_queue", "filled_through", "filled_crossed"),
        *("fill_ns", "passive_price", "completion_price", "exec_price", "target_price"),
    ),
    "cost": (),  # every other column in bps
}
"""What is compared, in this order; after the message set."""
_FLOATING = {"feature", "cost"}
_TOGETHER = 64  # orders that a policy decides on at once


@dataclass(frozen=True)
class Reconciled:
    """What came of it.

    `orders`: a row per order: asset, decision_ns, order_id, void (in both), identical, cause (the first, or ""),
    column, live, batch. `messages`: those that count on one side only: asset, channel, local_ns, live, batch (how many
    rows of each). `stale`: how many decisions stood on a book older than `live.max_book_age_s`.
    """

    orders: pd.DataFrame
    messages: pd.DataFrame
    stale: int

    @property
    def different(self) -> pd.DataFrame:
        """The orders that differ."""
        return self.orders[~self.orders["identical"]]

    def text(self) -> str:
        """A table by asset, the first differences, and the verdict."""
        lines = ["asset   orders  void  identical  messages judged otherwise"]
        for asset, rows in self.orders.groupby("asset"):
            otherwise = int((self.messages["asset"] == asset).sum())
            lines.append(f"{asset:<7} {len(rows):6} {rows['void'].sum():5} {rows['identical'].sum():10} {otherwise:26}")
        for row in self.different.head(20).itertuples():
            lines.append(
                f"{row.asset} order {row.order_id} at {row.decision_ns}: {row.cause}: {row.column} was {row.live} "
                f"live, is {row.batch} in the replay"
            )
        for row in self.messages.head(10).itertuples():
            lines.append(
                f"{row.asset} {row.channel} at {row.local_ns}: {row.live} counted live, {row.batch} in the replay"
            )
        lines.append(f"decisions on a book older than live.max_book_age_s: {self.stale}")
        if self.different.empty:
            return "\n".join([*lines, f"all {len(self.orders)} orders identical"])
        causes = ", ".join(f"{count} {cause}" for cause, count in self.different["cause"].value_counts().items())
        return "\n".join([*lines, f"{len(self.different)} of {len(self.orders)} orders differ: {causes}"])


def reconcile(session: Session, decider: Decider | None = None) -> Reconciled:
    """Hold every order of a session against the replay of its record, and write `reconcile.csv`.

    Raises
    ------
    DataError
        If the session has not ended, has no order, or its record holds no market.
    """
    if not (session.folder / "health.json").exists():
        raise DataError(f"session {session.name} was killed: go on with it: hyperdapo paper --session {session.name}")
    sent = [entry for entry in session.entries() if "action" in entry]
    if not sent:
        raise DataError(f"session {session.name} sent no order: see its decisions.jsonl for why each was refused")
    decider = decider or decider_of(session.asked)
    ended = (
        session.orders()
        if (session.folder / "orders.parquet").exists()
        else pd.DataFrame(columns=["asset", "decision_ns"])
    )
    parts, messages, stale = [], [], 0
    for asset in session.asked.assets:
        mine = [entry for entry in sent if entry["asset"] == asset]
        if mine:
            batch = Batch(session, asset)
            found = batch.against(mine, ended[ended["asset"] == asset], decider)
            parts.append(found)
            messages.append(batch.messages)
            stale += batch.stale(mine)
    result = Reconciled(pd.concat(parts, ignore_index=True), pd.concat(messages, ignore_index=True), stale)
    with atomic(session.folder / "reconcile.csv") as temporary:
        result.orders.to_csv(temporary, index=False)
    return result


class Batch:
    """The batch route of one asset of a session: its record as a market, its features, and the messages that count."""

    def __init__(self, session: Session, asset: str) -> None:
        self.asset, self.asked = asset, session.asked
        self.parameters: Parameters = session.asked.parameters(asset)
        path = session.folder / f"{asset}.ndjson.gz"
        recording.mend(path)
        market = recorded(path, asset, self.parameters)
        if not len(market.book.local_ns):
            raise DataError(f"the record of session {session.name} holds no book of {asset}")
        self.market = replace(market, daily_volume=session.asked.daily_volume.get(asset))
        settings = self.parameters.features
        grid = decision_grid(market, settings.decision_interval_s)
        self.features = compute_features(market, grid, settings, None, self.parameters.clean.max_gap_s)
        self.messages, self._heard = _judged_otherwise(path, self.market, self.parameters)

    def against(self, sent: Sequence[Json], ended: pd.DataFrame, decider: Decider) -> pd.DataFrame:
        """A row for each order that was sent, see `Reconciled.orders`."""
        ns = [entry["decision_ns"] for entry in sent]
        known = self.features.set_index("decision_ns", drop=False)
        if missing := sorted(set(ns) - set(known.index)):
            raise DataError(f"{self.asset}: the record does not reach the decision at {missing[0]}: lines are missing")
        features = known.loc[ns].reset_index(drop=True)
        replayed = self._replayed(features, [entry["policy_ms"] for entry in sent], decider)
        live_ends = ended.set_index("decision_ns").to_dict("index")
        rows = []
        for place, entry in enumerate(sent):
            live, batch = _live(entry, live_ends.get(ns[place])), replayed[place]
            row = features.iloc[place].drop("asset").to_dict()
            rows.append(self._compared(entry, live, batch, row))
        return pd.DataFrame(rows)

    def stale(self, sent: Sequence[Json]) -> int:
        """How many decisions stood on a book older than is allowed."""
        ns = np.array([entry["decision_ns"] for entry in sent])
        age_ns = ns - self.market.book.local_ns[self.market.book_at(ns)]
        return int((age_ns > self.parameters.live.max_book_age_s * SECOND_NS).sum())

    def _replayed(self, features: pd.DataFrame, policy_ms: Sequence[float], decider: Decider) -> list[Json]:
        """What the batch route says of each order: the decision, the order, and what became of it unless it is void."""
        parents = ordering.parents_at(features, self.parameters, self.market)
        distinct = ordering.distinct_actions(parents, self.market, self.parameters.policy.actions)
        places, choices = parents.assign(order_id=range(len(parents))), []
        for begin in range(0, len(parents), _TOGETHER):
            part = slice(begin, begin + _TOGETHER)
            choices += decider.choose(features, places.iloc[part], distinct[part])
        actions = [choice.action for choice in choices]
        orders = ordering.orders_of(parents, self.market, self.parameters, actions).assign(policy_ms=policy_ms)
        void = ordering.voided(self.market, orders, self.parameters)
        whole = orders[~void].reset_index(drop=True)
        who = self.asked.strategy, self.asked.seed
        executed = ordering.execute(self.market, whole, self.parameters, *who) if len(whole) else whole
        ends, rows = iter(executed.to_dict("records")), orders.to_dict("records")
        return [
            row | {"prompt": choice.prompt, "void": bool(none)} | ({} if none else next(ends))
            for row, choice, none in zip(rows, choices, void, strict=True)
        ]

    def _compared(self, entry: Json, live: Json, batch: Json, features: Json) -> Json:
        row = {"asset": self.asset, "decision_ns": entry["decision_ns"], "order_id": entry["order_id"]}
        row |= {"void": batch["void"] and live["void"]}
        found = _first_difference(live, batch, entry["features"], features)
        if found is None:
            return row | {"identical": True, "cause": "", "column": "", "live": "", "batch": ""}
        cause, column, was, now = found
        if (message := self._other_message(entry)) is not None:
            cause = f"message set ({message})"
        return row | {"identical": False, "cause": cause, "column": column, "live": str(was), "batch": str(now)}

    def _other_message(self, entry: Json) -> str | None:
        """The first message that counts on one side only and may have led to this order or to its end, if any."""
        heard = self._heard_by(entry["decision_ns"])
        if heard != entry["kept"]:
            return f"heard live {entry['kept']}, recorded {heard}"
        reach_ns = ordering.LATE_NS + round(self.parameters.orders.longest_horizon_s * SECOND_NS) + ordering.BEFORE_NS
        before = self.messages[self.messages["local_ns"] <= entry["decision_ns"] + reach_ns]
        if before.empty:
            return None
        first = before.iloc[0]
        return f"{first['channel']} at {first['local_ns']}"

    def _heard_by(self, ns: int) -> dict[str, int]:
        """How many rows of each channel the record has that counted by an instant, as the session judged."""
        counts = {channel: int(np.searchsorted(times, ns, side="right")) for channel, times in self._heard.items()}
        return {channel: count for channel, count in counts.items() if count}


def _judged_otherwise(
    path: Path, market: Market, parameters: Parameters
) -> tuple[pd.DataFrame, dict[str, "np.ndarray[Any, Any]"]]:
    """Rows that count on one side only; and when each came that counts as a session judges, by channel."""
    desk, live = Desk(parameters, market.asset), Counter[tuple[str, int]]()
    times: dict[str, list[int]] = {channel: [] for channel in native.CHANNELS}
    for line in recording.read(path):
        if not line.text:
            desk.lose(line.ns)
            continue
        message, before = native.native(line.text), desk.stream.kept.copy()
        if message is not None and not desk.hear(message, line.ns):
            for channel, rows in (desk.stream.kept - before).items():
                times[channel] += [line.ns] * rows
                live[channel, line.ns] += rows
    tables = {
        "l2Book": market.book.local_ns,
        "bbo": market.bbo.local_ns,
        "trades": market.trades.local_ns,
        "activeAssetCtx": market.context.local_ns,
    }
    batch = Counter({(name, ns): count for name, table in tables.items() for ns, count in _counted(table)})
    keys = sorted((key for key in {*live, *batch} if live[key] != batch[key]), key=lambda key: key[1])
    found = [(market.asset, channel, ns, live[channel, ns], batch[channel, ns]) for channel, ns in keys]
    differing = pd.DataFrame(found, columns=["asset", "channel", "local_ns", "live", "batch"])
    return differing, {channel: np.array(ns, dtype=np.int64) for channel, ns in times.items()}


def _counted(ns: "np.ndarray[Any, Any]") -> list[tuple[int, int]]:
    times, counts = np.unique(ns, return_counts=True)
    return list(zip(times.tolist(), counts.tolist(), strict=True))


def _live(entry: Json, end: Json | None) -> Json:
    """What the session says of an order: as it was sent, and how it ended; void where it has no end."""
    return ({"void": True} if end is None else end | {"void": False}) | entry


def _first_difference(live: Json, batch: Json, live_features: Json, features: Json) -> tuple[str, str, Any, Any] | None:
    """Cause, column and both values of the first difference."""
    compared = {cause: (live, batch, columns) for cause, columns in CAUSES.items()}
    compared["feature"] = (live_features, features, tuple(name for name in live_features if name in features))
    named = {name for columns in CAUSES.values() for name in columns}
    costs = tuple(name for name in batch if name.endswith("_bps") and name not in named and name in live)
    compared["cost"] = (live, batch, costs)
    for cause, (was, now, columns) in compared.items():
        for column in columns:
            if column in was and column in now and not _same(was[column], now[column], cause in _FLOATING):
                return cause, column, was[column], now[column]
    if live["void"] != batch["void"]:
        return "void", "void", live["void"], batch["void"]
    return None


def _same(one: Any, other: Any, floating: bool) -> bool:
    """Whether two values are equal; of floating ones, but for what rounding may do."""
    if isinstance(one, float | np.floating) and isinstance(other, float | np.floating | int | np.integer):
        here, there = float(one), float(other)
        if math.isnan(here) or math.isnan(there):
            return math.isnan(here) and math.isnan(there)
        return abs(here - there) <= TOLERANCE * max(1.0, abs(here)) if floating else here == there
    return bool(one == other)
