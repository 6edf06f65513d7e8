"""What a session looks like while it runs: the book, own orders and their queues, costs so far, latency, health.

In a terminal it is drawn anew in place; where the output is no terminal it is a line from time to time.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hyperdapo.live.desk import Desk
from hyperdapo.live.paper import Paper
from hyperdapo.market.book import Book
from hyperdapo.times import SECOND_NS

DRAWN_S, TOLD_S = 0.5, 5.0  # on the wall, between two pictures, and between two lines
_LEVELS = 5  # of the book, a side
_ORDERS = 6  # own orders an asset
_PARTS = ("features", "prompt", "forward", "decode", "order", "policy")
_ENDS = ("order_id", "kind", "status", "filled_passive", "total_cost_bps")

Show = Callable[[Paper], None]


@contextmanager
def shown(console: Console | None = None) -> Iterator[tuple[Show, float]]:
    """Yield what shows a session, and how often it is to be called (s)."""
    console = console or Console()
    if not console.is_terminal:
        yield tell, TOLD_S
        return
    with Live(console=console, auto_refresh=False, screen=False) as live:
        yield (lambda paper: live.update(picture(paper), refresh=True)), DRAWN_S


def tell(paper: Paper) -> None:
    """Health, costs and latency in one line."""
    costs = _costs(paper.orders())
    print(f"{_when(paper)} {paper.health.line()}, {costs}, decision {_latency(paper, 'policy')}", flush=True)
    sys.stdout.flush()


def picture(paper: Paper) -> Group:
    """All of it."""
    standing, ended = paper.standing(), paper.orders()
    desks = [_desk(desk, standing.get(asset), ended) for asset, desk in paper.desks.items()]
    head = Text(f"{paper.session.name} · {paper.asked.strategy} · {_when(paper)}", style="bold")
    return Group(head, *desks, _timing(paper), Text(paper.health.line()), *_causes(paper))


def _desk(desk: Desk, standing: pd.DataFrame | None, ended: pd.DataFrame) -> Panel:
    columns = Table.grid(padding=(0, 3))
    columns.add_row(_book(desk), _own(standing, ended[ended["asset"] == desk.asset] if len(ended) else ended))
    return Panel(columns, title=desk.asset, title_align="left")


def _book(desk: Desk) -> Table:
    table = Table("bid size", "bid", "ask", "ask size", box=None, header_style="dim")
    if not desk.stream.book_ns:
        return table
    market = desk.stream.market(desk.stream.book_ns - 10 * SECOND_NS)
    book = Book.at(market, [max(desk.stream.book_ns, int(market.top.local_ns[-1]))])
    sides = (book.bid_size, book.bid_price, book.ask_price, book.ask_size)
    for row in zip(*(side[0, :_LEVELS].tolist() for side in sides), strict=True):
        bid_size, bid, ask, ask_size = (f"{value:g}" if np.isfinite(value) else "" for value in row)
        table.add_row(bid_size, f"[green]{bid}", f"[red]{ask}", ask_size)
    return table


def _own(standing: pd.DataFrame | None, ended: pd.DataFrame) -> Table:
    table = Table("order", "", "limit", "phase", "ahead", "filled", "cost", box=None, header_style="dim")
    if standing is not None:
        for row in standing.tail(_ORDERS).itertuples():
            ahead = f"{row.ahead:g}" if np.isfinite(row.ahead) else ""
            side, limit = "buy" if row.side > 0 else "sell", f"{row.limit_price:g}"
            table.add_row(f"{side} {row.size:g}", row.kind, limit, row.phase, ahead, f"{row.filled_share:.0%}", "")
    for row in ended.tail(2).itertuples():
        cost = f"{row.total_cost_bps:+.2f} bps"
        side = "buy" if row.side > 0 else "sell"
        table.add_row(
            f"{side} {row.size:g}", row.kind, f"{row.target_price:g}", row.status, "", f"{row.filled_passive:.0%}", cost
        )
    table.caption, table.caption_justify = _costs(ended), "left"
    return table


def _costs(ended: pd.DataFrame) -> str:
    if ended.empty:
        return "no order has ended"
    costs, maker = ended["total_cost_bps"], ended["maker_share"].mean()
    return f"{len(ended)} ended, mean cost {costs.mean():+.3f} bps, made {maker:.0%}"


def _timing(paper: Paper) -> Text:
    known = [f"{part} {_latency(paper, part)}" for part in _PARTS if any(part in one for one in paper.policy_ms)]
    return Text("latency " + (", ".join(known) or "-"))


def _latency(paper: Paper, part: str) -> str:
    values = [one[part] for one in paper.policy_ms if part in one]
    if not values:
        return "-"
    median, late = np.quantile(values, [0.5, 0.99])
    return f"p50 {median:.1f} p99 {late:.1f} ms"


def _causes(paper: Paper) -> list[Text]:
    health = paper.health
    named = {"refused": health.refused, "not counted": health.dropped, "drops": health.drops, "void": health.voided}
    return [
        Text(f"{name}: " + ", ".join(f"{count} {cause}" for cause, count in counts.most_common(6)), style="dim")
        for name, counts in named.items()
        if counts
    ]


def _when(paper: Paper) -> str:
    if paper.clock is None:
        return "connecting"
    now = datetime.fromtimestamp(paper.clock.now() / SECOND_NS, UTC)
    return f"{now:%Y-%m-%d %H:%M:%S} UTC" + (f" x {paper.clock.speed:g}" if paper.clock.speed != 1 else "")
