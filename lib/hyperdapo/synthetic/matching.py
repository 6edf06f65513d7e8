"""The synthetic exchange, compiled: individual orders matched by price and time, and the participants who send them.

Participants: liquidity providers who centre on the efficient price, and takers. All compiled code is in this module,
because numba's cache watches only the file of the function that is called. Prices are levels of a ladder, sizes lots.
"""

from math import ceil, exp, floor, sqrt
from typing import NamedTuple

import numpy as np
from numba import njit

from hyperdapo.market.columns import Floats, Integers, Mask
from hyperdapo.times import MS_NS, SECOND_NS

BID, ASK, FREE = 0, 1, 2
NOBODY = -1  # owner of an order that is not a probe
VISIBLE = 20  # levels of a snapshot, a side
Random = np.random.Generator
BOOK_EVERY_NS = SECOND_NS // 2  # at the first block after it: one snapshot every 0.54 s
REGIME_S, REGIME_SD = 120.0, 0.6  # of the logarithm of the volatility multiplier, which stays within [0.25, 4]
EXCITEMENT_S = 2.0  # for how long a market order brings about others (Hawkes)
IMPACT_EXPONENT = 0.25  # of the size of a single order (Lillo, Farmer, Mantegna, Nature 421, 2003)
TOUCH_ORDERS, LEVEL_ORDERS = 20.0, 1.5  # resting orders at the best level, one level behind it
LEVEL_SD = 1.1  # of the logarithm of an order's size behind the best level
LIFE_S = 60.0  # mean life of an order
FILLING_S, EMPTYING_S = 0.4, 1.2  # in which a level with too few orders, or too many, nears those that are wanted
STALE_S = 0.1  # life of an order that the efficient price has passed
FEWEST = 1.0  # orders of a level, however little is wanted there: they are smaller then
AGAINST, FAVOUR = 2.5, 0.5  # at most so many deviations of the signal thin a level, or fill it
SLIPPAGE = 6  # levels beyond the touch that a market order accepts


class OrderBook(NamedTuple):
    """Queues of orders: per level the resting lots, orders, first and last order; of each order what it is."""

    lots: Integers
    orders: Integers
    first: Integers
    last: Integers
    order_lots: Integers
    order_level: Integers
    owner: Integers  # of an order: position of a probe, or NOBODY
    following: Integers
    preceding: Integers
    free: Integers  # stack of unused orders
    top: Integers  # best bid level, best ask level, height of the stack


class Rules(NamedTuple):
    """One asset's process in natural units: seconds, log price, ladder levels, lots."""

    signal_s: float  # in which the quotes take in what the latent signal knows
    revision_rate: float  # per second
    revised: float  # share of the signal that a revision of the quotes takes in
    informed: float  # log price for each unit of signal
    noise: float  # deviation of the log price per root second that no signal knows
    half_spread: float  # levels between the quoted price and the quotes, before rounding outwards
    lots: Floats  # (n,) of a level, mean, by levels behind the quote
    orders: Floats  # (n,) likewise
    order_sd: Floats  # (n,) of the logarithm of an order's lots
    touch_tilt: float  # what one unit of signal does to log depth at the quote
    depth_tilt: float  # and behind it
    flow_tilt: float  # and to the log odds of a buy
    minimum_lots: int
    market_order_rate: float  # per second
    branching: float  # market orders that each one brings about
    market_lots: float  # of a market order, median
    market_sd: float  # of their logarithm
    impact: float  # of a median one on the log price
    sniping: float  # market orders at once, on average, that meet the stale quotes of a revision


class State(NamedTuple):
    """What one block hands to the next."""

    exchange_ns: int
    local_ns: int
    next_book_ns: int
    log_price: float  # around which the quotes stand
    level: int  # of the ladder, at or just below it
    signal: float  # what they have not taken in yet, in units of its deviation
    news: float  # likewise what no depth shows, log price
    regime: float
    excitement: float  # market orders per second beyond the base rate


class Messages(NamedTuple):
    """Messages of a stretch of time. `used` counts the rows of snapshots, of best quotes and of prints."""

    book_ns: Integers  # (rows, 2): exchange, local
    book: Integers  # (rows, 2 sides, 20, level | lots | orders), level -1 beyond the last
    top_ns: Integers
    top: Integers  # (rows, 2 sides, level | lots | orders)
    print_ns: Integers
    print: Integers  # (rows, level | lots | side of the taker | owner of the maker | owner of the taker)
    used: Integers


class Probes(NamedTuple):
    """n orders of one tagged owner among the others, by time of arrival, and what became of them.

    A probe stands `steps` levels behind the best of its side when it arrives, below 0 before it. `early`: it is the
    first of its kind in its block (post-only orders, cancels, takers), else the last.
    """

    arrival_ns: Integers
    cancel_ns: Integers
    side: Integers
    steps: Integers
    lots: Integers
    post_only: Mask
    early: Mask
    order: Integers  # its place in the book, NOBODY while it has none
    level: Integers
    ahead: Integers  # lots before it when it came to rest
    rejected: Mask
    placed_ns: Integers  # its block; 0 until then
    ended_ns: Integers  # the block of its cancel; 0 for none
    passed: Integers  # how many have arrived, how many of the first have ended


def probes(
    arrival_ns: Integers,
    cancel_ns: Integers,
    side: Integers,
    steps: Integers,
    lots: Integers,
    post_only: Mask,
    early: Mask,
) -> Probes:
    """Probes (n,) that have not arrived."""
    count = len(arrival_ns)
    return Probes(
        arrival_ns,
        cancel_ns,
        side,
        steps,
        lots,
        post_only,
        early,
        order=np.full(count, NOBODY),
        level=np.full(count, NOBODY),
        ahead=np.zeros(count, np.int64),
        rejected=np.zeros(count, np.bool_),
        placed_ns=np.zeros(count, np.int64),
        ended_ns=np.zeros(count, np.int64),
        passed=np.zeros(2, np.int64),
    )


def no_probes() -> Probes:
    """A market of others only."""
    none, never = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    return probes(none, none, none, none, none, never, never)


def empty_book(levels: int, orders: int) -> OrderBook:
    """A book over that many levels, with room for that many resting orders."""
    return OrderBook(
        lots=np.zeros(levels, np.int64),
        orders=np.zeros(levels, np.int64),
        first=np.full(levels, -1),
        last=np.full(levels, -1),
        order_lots=np.zeros(orders, np.int64),
        order_level=np.zeros(orders, np.int64),
        owner=np.full(orders, NOBODY),
        following=np.zeros(orders, np.int64),
        preceding=np.zeros(orders, np.int64),
        free=np.arange(orders),
        top=np.array([-1, levels, orders]),
    )


def empty_messages(books: int, tops: int, prints: int) -> Messages:
    """Room for that many snapshots, best quotes and prints."""
    return Messages(
        book_ns=np.empty((books, 2), np.int64),
        book=np.empty((books, 2, VISIBLE, 3), np.int64),
        top_ns=np.empty((tops, 2), np.int64),
        top=np.empty((tops, 2, 3), np.int64),
        print_ns=np.empty((prints, 2), np.int64),
        print=np.empty((prints, 5), np.int64),
        used=np.zeros(3, np.int64),
    )


@njit(cache=True)
def run(
    book: OrderBook,
    state: State,
    rules: Rules,
    prices: Integers,
    until_ns: int,
    messages: Messages,
    rng: Random,
    probes: Probes,
) -> State:
    """Play blocks until `until_ns` or until the messages are full; within a block post-only, cancels, takers."""
    while state.exchange_ns < until_ns and _has_room(messages):
        before = state
        state = _evolve(state, rules, prices, rng)
        dt, revised = (state.exchange_ns - before.exchange_ns) * 1e-9, state.log_price != before.log_price
        below, above = prices[state.level], prices[state.level + 1]
        position = state.level + (exp(state.log_price) - below) / (above - below)
        half_spread = rules.half_spread * volatility_multiplier(state.regime)
        bid, ask = floor(position - half_spread), ceil(position + half_spread)
        arrived = int(np.searchsorted(probes.arrival_ns, state.exchange_ns, side="right"))
        _admit(book, probes, arrived, state, True, True, messages)
        for side, quote in ((BID, bid), (ASK, ask)):
            _quote(book, side, quote, dt, state.signal, rules, rng)
        _admit(book, probes, arrived, state, True, False, messages)
        for side, quote in ((BID, bid), (ASK, ask)):
            _withdraw(book, side, quote, dt, state.signal, rules, rng)
        _recall(book, probes, state.exchange_ns)
        _admit(book, probes, arrived, state, False, True, messages)
        log_price, excitement = _trade(book, bid, ask, dt, revised, state, rules, messages, rng)
        _admit(book, probes, arrived, state, False, False, messages)
        probes.passed[0], due = arrived, _publish(book, state, messages)
        now, local, _, _, level, signal, news, regime, _ = state
        state = State(now, local, due, log_price, level, signal, news, regime, excitement)
    return state


@njit(cache=True)
def _evolve(state: State, rules: Rules, prices: Integers, rng: Random) -> State:
    """The next block: its time, the latent signal, the volatility regime, the efficient price, the excitement."""
    step_ns = int(rng.integers(70, 101)) * MS_NS
    dt = step_ns * 1e-9
    delay_ns = int((0.30 + 0.11 * exp(0.6 * rng.standard_normal())) * 1e7) * 100
    keep = exp(-dt / REGIME_S)
    regime = keep * state.regime + REGIME_SD * sqrt(1 - keep * keep) * rng.standard_normal()
    step = volatility_multiplier(regime) * sqrt(dt)
    signal = state.signal + step * sqrt((2 - rules.revised) / rules.signal_s) * rng.standard_normal()
    news = state.news + step * rules.noise * rng.standard_normal()
    log_price, excitement = state.log_price, state.excitement * exp(-dt / EXCITEMENT_S)
    if rng.random() < 1 - exp(-dt * rules.revision_rate):
        log_price += rules.informed * rules.revised * signal + news
        signal, news = signal * (1 - rules.revised), 0.0
    level, units = state.level, exp(log_price)
    if not prices[1] < units < prices[-2]:
        raise ValueError("the price left its ladder; shorten the span or lower volatility_bps")
    while prices[level + 1] <= units:
        level += 1
    while prices[level] > units:
        level -= 1
    now = state.exchange_ns + step_ns
    local = max(state.local_ns, now + delay_ns)
    return State(now, local, state.next_book_ns, log_price, level, signal, news, regime, excitement)


@njit(cache=True)
def volatility_multiplier(regime: float) -> float:
    """Multiplier of volatility, mean square about 1, within [0.25, 4]."""
    return min(max(exp(regime - REGIME_SD * REGIME_SD), 0.25), 4.0)


@njit(cache=True)
def _quote(book: OrderBook, side: int, quote: int, dt: float, signal: float, rules: Rules, rng: Random) -> None:
    """Post-only orders of one side: each level is in balance at the tilted depth, and thin levels fill faster."""
    outward, next_order = -1 if side == BID else 1, rng.standard_exponential()
    tilts = _tilts(-outward * signal, rules)
    for behind in range(len(rules.lots)):
        level, tilt = quote + outward * behind, tilts[1 if behind > 0 else 0]
        if level < 0 or level >= len(book.orders):
            break
        wanted = max(rules.orders[behind] * tilt, FEWEST)
        next_order -= dt * (wanted / LIFE_S + max(wanted - book.orders[level], 0.0) / FILLING_S)
        while next_order < 0:
            spread = rules.order_sd[behind]
            median = rules.lots[behind] * tilt / wanted * exp(-spread * spread / 2)
            post(book, side, level, _lots(median, spread, rules, rng))
            next_order += rng.standard_exponential()


@njit(cache=True)
def _tilts(favour: float, rules: Rules) -> tuple[float, float]:
    """What the signal makes of depth at the touch and behind it; `favour` is below 0 where the price comes."""
    favour = min(max(favour, -AGAINST), FAVOUR)
    return exp(rules.touch_tilt * favour), exp(rules.depth_tilt * favour)


@njit(cache=True)
def _withdraw(book: OrderBook, side: int, quote: int, dt: float, signal: float, rules: Rules, rng: Random) -> None:
    """Cancels of one side: every order ends by itself, at the rate of where it stands, faster where too many do."""
    outward, best, deepest = -1 if side == BID else 1, book.top[side], len(rules.lots) - 1
    tilts, next_cancel = _tilts(-outward * signal, rules), rng.standard_exponential()
    for level in range(best, best + outward * 4 * len(rules.lots), outward):
        if level < 0 or level >= len(book.orders):
            break
        if book.orders[level] == 0:
            continue
        behind = outward * (level - quote)
        wanted = max(rules.orders[min(max(behind, 0), deepest)] * tilts[1 if behind > 0 else 0], FEWEST)
        crowd = max(1 - wanted / book.orders[level], 0.0)
        hazard = dt / STALE_S if behind < 0 else dt * (1 / LIFE_S + crowd / EMPTYING_S)
        if next_cancel > hazard * book.orders[level]:
            next_cancel -= hazard * book.orders[level]
            continue
        order = book.first[level]
        while order >= 0:
            after = book.following[order]
            if book.owner[order] == NOBODY:
                next_cancel -= hazard
                if next_cancel < 0:
                    cancel(book, order)
                    next_cancel = rng.standard_exponential()
            order = after


@njit(cache=True)
def _lots(median: float, spread: float, rules: Rules, rng: Random) -> int:
    """A lognormal size, at least the exchange's minimum."""
    return max(int(median * exp(spread * rng.standard_normal())), rules.minimum_lots)


@njit(cache=True)
def _trade(
    book: OrderBook,
    bid: int,
    ask: int,
    dt: float,
    revised: bool,
    state: State,
    rules: Rules,
    messages: Messages,
    rng: Random,
) -> tuple[float, float]:
    """Market orders (IOC): those who see a stale quote hit it, the others follow the signal and move the price.

    An order moves it by what its side has surprised (Madhavan, Richardson and Roomans, 1997). Returns the log price and
    the excitement.
    """
    rate = rules.market_order_rate * (1 - rules.branching) * sqrt(volatility_multiplier(state.regime))
    buys, log_price = 1 / (1 + exp(-rules.flow_tilt * state.signal)), state.log_price
    stale = book.top[ASK] < bid or book.top[BID] > ask
    orders = rng.poisson((rate + state.excitement) * dt + rules.sniping * (stale and revised))
    for _ in range(orders):
        lots = _lots(rules.market_lots, rules.market_sd, rules, rng)
        if book.top[ASK] < bid:
            taker, limit = BID, ask - 1
        elif book.top[BID] > ask:
            taker, limit = ASK, bid + 1
        else:
            taker = BID if rng.random() < buys else ASK
            limit = book.top[ASK] + SLIPPAGE if taker == BID else book.top[BID] - SLIPPAGE
            surprise = (1 - buys) if taker == BID else -buys
            log_price += 2 * surprise * rules.impact * (lots / rules.market_lots) ** IMPACT_EXPONENT
        start = messages.used[2]
        end = take(book, taker, limit, lots, messages.print, start)
        messages.print_ns[start:end, 0], messages.print_ns[start:end, 1] = state.exchange_ns, state.local_ns
        messages.used[2] = end
    return log_price, state.excitement + orders * rules.branching / EXCITEMENT_S


@njit(cache=True)
def _admit(
    book: OrderBook, probes: Probes, last: int, state: State, post_only: bool, early: bool, messages: Messages
) -> None:
    """The probes of a block that are of one kind: a post-only one rests or is rejected, another takes, then rests."""
    for probe in range(probes.passed[0], last):
        if probes.post_only[probe] != post_only or probes.early[probe] != early:
            continue
        side, left, start = probes.side[probe], probes.lots[probe], messages.used[2]
        level = book.top[side] + (-probes.steps[probe] if side == BID else probes.steps[probe])
        if not post_only:
            end = take(book, side, level, left, messages.print, start, probe)
            messages.print_ns[start:end, 0], messages.print_ns[start:end, 1] = state.exchange_ns, state.local_ns
            left, messages.used[2] = left - messages.print[start:end, 1].sum(), end
        probes.placed_ns[probe], probes.level[probe], probes.ahead[probe] = state.exchange_ns, level, book.lots[level]
        probes.rejected[probe] = left > 0 and not post(book, side, level, left, probe)
        if left > 0 and not probes.rejected[probe]:
            probes.order[probe] = book.last[level]


@njit(cache=True)
def _recall(book: OrderBook, probes: Probes, now: int) -> None:
    """Cancel the probes whose time is over; those that were filled have left the book."""
    for probe in range(probes.passed[1], probes.passed[0]):
        order = probes.order[probe]
        lives = order != NOBODY and book.owner[order] == probe
        if lives and probes.cancel_ns[probe] <= now:
            cancel(book, order)
            probes.ended_ns[probe], lives = now, False
        if not lives and probe == probes.passed[1]:
            probes.passed[1] += 1


@njit(cache=True)
def _publish(book: OrderBook, state: State, messages: Messages) -> int:
    """The top of the book if it changed, and the snapshot if it is due; returns when the next one is due."""
    row = messages.used[1]
    for side in (BID, ASK):
        _describe(book, side, messages.top[row, side : side + 1])
    if row == 0 or np.any(messages.top[row] != messages.top[row - 1]):
        messages.top_ns[row, 0], messages.top_ns[row, 1] = state.exchange_ns, state.local_ns
        messages.used[1] += 1
    if state.exchange_ns < state.next_book_ns:
        return state.next_book_ns
    row = messages.used[0]
    for side in (BID, ASK):
        _describe(book, side, messages.book[row, side])
    messages.book_ns[row, 0], messages.book_ns[row, 1] = state.exchange_ns, state.local_ns
    messages.used[0] += 1
    return state.exchange_ns + BOOK_EVERY_NS


@njit(cache=True)
def _describe(book: OrderBook, side: int, rows: Integers) -> None:
    """Fill (n, level | lots | orders) with the n best levels of a side, level -1 where there are no more."""
    outward, level, row = -1 if side == BID else 1, book.top[side], 0
    rows[:] = -1
    while row < len(rows) and 0 <= level < len(book.orders):
        if book.orders[level]:
            rows[row, 0], rows[row, 1], rows[row, 2] = level, book.lots[level], book.orders[level]
            row += 1
        level += outward


@njit(cache=True)
def _has_room(messages: Messages) -> bool:
    """Whether one more block fits: at most one snapshot, one best quote and every resting order printed."""
    books, tops, prints = messages.used
    return bool(books < len(messages.book) and tops < len(messages.top) and prints < len(messages.print) // 2)


@njit(cache=True)
def post(book: OrderBook, side: int, level: int, lots: int, owner: int = NOBODY) -> bool:
    """Rest a post-only order behind its level's queue; False when it would cross and is rejected."""
    top = book.top
    if (side == BID and level >= top[ASK]) or (side == ASK and level <= top[BID]):
        return False
    if top[FREE] == 0:
        raise ValueError("too many orders rest; lower volatility_bps")
    top[FREE] -= 1
    order = book.free[top[FREE]]
    book.order_lots[order], book.order_level[order], book.owner[order] = lots, level, owner
    book.preceding[order], book.following[order] = book.last[level], -1
    if book.orders[level] == 0:
        book.first[level] = order
    else:
        book.following[book.last[level]] = order
    book.last[level] = order
    book.orders[level] += 1
    book.lots[level] += lots
    if side == BID:
        top[BID] = max(top[BID], level)
    else:
        top[ASK] = min(top[ASK], level)
    return True


@njit(cache=True)
def cancel(book: OrderBook, order: int) -> None:
    """Remove an order from its queue, with what is left of it."""
    level, before, after = book.order_level[order], book.preceding[order], book.following[order]
    if before < 0:
        book.first[level] = after
    else:
        book.following[before] = after
    if after < 0:
        book.last[level] = before
    else:
        book.preceding[after] = before
    book.orders[level] -= 1
    book.lots[level] -= book.order_lots[order]
    book.owner[order] = NOBODY
    top = book.top
    book.free[top[FREE]] = order
    top[FREE] += 1
    while top[BID] >= 0 and book.orders[top[BID]] == 0:
        top[BID] -= 1
    while top[ASK] < len(book.orders) and book.orders[top[ASK]] == 0:
        top[ASK] += 1


@njit(cache=True)
def take(book: OrderBook, taker: int, limit: int, lots: int, prints: Integers, used: int, owner: int = NOBODY) -> int:
    """Match an IOC order up to the level `limit`; each maker met is one row of `prints`. Returns the rows used."""
    maker = ASK if taker == BID else BID
    while lots > 0:
        level = book.top[maker]
        beyond = level > min(limit, len(book.orders) - 1) if taker == BID else level < max(limit, 0)
        if beyond:
            break
        order = book.first[level]
        traded = min(lots, book.order_lots[order])
        prints[used, 0], prints[used, 1], prints[used, 2] = level, traded, taker
        prints[used, 3], prints[used, 4] = book.owner[order], owner
        used += 1
        lots -= traded
        book.order_lots[order] -= traded
        book.lots[level] -= traded
        if book.order_lots[order] == 0:
            cancel(book, order)
    return used
