"""The synthetic exchange, compiled: individual orders matched by price and time, and the participants who send them.

Participants: liquidity providers who centre on the efficient price, and takers. All compiled code is in this module,
because numba's cache watches only the file of the function that is called. Prices are levels of a ladder, sizes lots.

Each draw is a function of the seed, the block and what it is for, not of the draws before it: where two runs differ by
an order of ours, they meet the same news, takers and quotes, and differ by what that order does.
"""

from math import ceil, cos, exp, floor, log, pi, sqrt

import numpy as np
from numba import njit

from hyperdapo.market.columns import Integers
from hyperdapo.synthetic.order_book import ASK, BID, FREE, NOBODY, Messages, OrderBook, Probes, Rules, State
from hyperdapo.times import MS_NS, SECOND_NS

BOOK_EVERY_NS = SECOND_NS // 2  # at the first block after it: one snapshot every 0.54 s
REGIME_S, REGIME_SD = 120.0, 0.6  # of the logarithm of the volatility multiplier, which stays within [0.25, 4]
EXCITEMENT_S = 2.0  # for how long a market order brings about others (Hawkes)
PARTS, MOST_PARTS, PARTS_TAIL = 10.0, 1000.0, 1.5  # orders for which a large one is worked: least, most, exponent
IMPACT_EXPONENT = 0.25  # of the size of a single order (Lillo, Farmer, Mantegna, Nature 421, 2003)
AT_ONCE = 0.5  # share of it that the quotes take in at once, the rest with their next revision
TOUCH_ORDERS, LEVEL_ORDERS = 20.0, 1.5  # resting orders at the best level, one level behind it
LEVEL_SD = 1.1  # of the logarithm of an order's size behind the best level
LIFE_S = 60.0  # mean life of an order
FILLING_S, EMPTYING_S = 0.4, 1.2  # in which a level with too few orders, or too many, nears those that are wanted
STALE_S = 0.1  # life of an order that the efficient price has passed
FEWEST = 1.0  # orders of a level, however little is wanted there: they are smaller then
AGAINST, FAVOUR = 2.5, 0.5  # at most so many deviations of the signal thin a level, or fill it
SLIPPAGE = 6  # levels beyond the touch that a market order accepts
CLOCK, QUOTES, TAKERS, SNIPERS = 0, 1, 2, 3  # what a block draws for
Key = np.uint64
GAMMA, MIX_1, MIX_2 = Key(0x9E3779B97F4A7C15), Key(0xBF58476D1CE4E5B9), Key(0x94D049BB133111EB)
S_30, S_27, S_31, S_11, ONE = Key(30), Key(27), Key(31), Key(11), Key(1)


@njit(cache=True)
def child(key: Key, number: int) -> Key:
    """The draw of that number, from 0 on, of the SplitMix64 generator with that seed: a key for others, or 64 bits.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014: any draw costs the same.
    """
    bits = key + GAMMA * (Key(number) + ONE)
    bits = (bits ^ (bits >> S_30)) * MIX_1
    bits = (bits ^ (bits >> S_27)) * MIX_2
    return bits ^ (bits >> S_31)


@njit(cache=True)
def stream(block: Key, purpose: int, side: int, number: int) -> Key:
    """The key of what a block draws for one purpose, a side and a number: a level, or which order it is."""
    return child(block, 8 * number + 2 * purpose + side)


@njit(cache=True)
def uniform(key: Key, number: int) -> float:
    """In [0, 1), in steps of 2 ** -53."""
    return float(child(key, number) >> S_11) * 2.0**-53


@njit(cache=True)
def exponential(key: Key, number: int) -> float:
    """Of mean 1; never less than the uniform of that number."""
    return -log(1.0 - uniform(key, number))


@njit(cache=True)
def normal(key: Key, number: int) -> float:
    """Standard normal, from that number and the next (Box and Muller 1958)."""
    return sqrt(2 * exponential(key, number)) * cos(2 * pi * uniform(key, number + 1))


@njit(cache=True)
def poisson(key: Key, mean: float) -> int:
    """How many exponentials of the key, from 0 on, pass before `mean`; with a greater mean never fewer."""
    count, passed = 0, exponential(key, 0)
    while passed < mean:
        count += 1
        passed += exponential(key, count)
    return count


@njit(cache=True)
def run(
    book: OrderBook,
    state: State,
    rules: Rules,
    prices: Integers,
    until_ns: int,
    messages: Messages,
    seed: Key,
    probes: Probes,
) -> State:
    """Play blocks until `until_ns` or until the messages are full; within a block post-only, cancels, takers."""
    while state.exchange_ns < until_ns and _has_room(messages):
        before, block = state, child(seed, state.block)
        state = _evolve(state, rules, prices, block)
        dt, revised = (state.exchange_ns - before.exchange_ns) * 1e-9, state.log_price != before.log_price
        below, above = prices[state.level], prices[state.level + 1]
        position = state.level + (exp(state.log_price) - below) / (above - below)
        half_spread = rules.half_spread * volatility_multiplier(state.regime)
        bid, ask = floor(position - half_spread), ceil(position + half_spread)
        arrived = _arrived(probes, state.exchange_ns)
        comes = arrived > probes.passed[0]  # a call that does nothing costs as much as a side's quotes
        if comes:
            _admit(book, probes, arrived, state, True, True, messages)
        for side, quote in ((BID, bid), (ASK, ask)):
            _quote(book, side, quote, dt, state.signal, rules, block)
        if comes:
            _admit(book, probes, arrived, state, True, False, messages)
        for side, quote in ((BID, bid), (ASK, ask)):
            _withdraw(book, side, quote, dt, state.signal, rules)
        if probes.passed[1] < probes.passed[0]:
            _recall(book, probes, state.exchange_ns)
        if comes:
            _admit(book, probes, arrived, state, False, True, messages)
        if revised:
            _snipe(book, bid, ask, state, rules, messages, block)
        log_price, news, excitement, worked, parts = _trade(book, dt, state, rules, messages, block)
        if comes:
            _admit(book, probes, arrived, state, False, False, messages)
        probes.passed[0], due = arrived, _publish(book, state, messages)
        number, now, local, _, _, level, signal, _, regime, _, _, _ = state
        state = State(number, now, local, due, log_price, level, signal, news, regime, excitement, worked, parts)
    return state


@njit(cache=True)
def _evolve(state: State, rules: Rules, prices: Integers, block: Key) -> State:
    """The next block: its time, the latent signal, the volatility regime, the efficient price, the excitement."""
    key = stream(block, CLOCK, 0, 0)
    step_ns = (70 + int(31 * uniform(key, 0))) * MS_NS
    dt = step_ns * 1e-9
    delay_ns = int((0.30 + 0.11 * exp(0.6 * normal(key, 1))) * 1e7) * 100
    keep = exp(-dt / REGIME_S)
    regime = keep * state.regime + REGIME_SD * sqrt(1 - keep * keep) * normal(key, 3)
    step = volatility_multiplier(regime) * sqrt(dt)
    signal = state.signal + step * sqrt((2 - rules.revised) / rules.signal_s) * normal(key, 5)
    news = state.news + step * rules.noise * normal(key, 7) + dt * _push(rules, state.exchange_ns)
    log_price, excitement = state.log_price, state.excitement * exp(-dt / EXCITEMENT_S)
    if exponential(key, 9) < dt * rules.revision_rate:
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
    due, worked, parts = state.next_book_ns, state.worked, state.parts
    return State(state.block + 1, now, local, due, log_price, level, signal, news, regime, excitement, worked, parts)


@njit(cache=True)
def _push(rules: Rules, now: int) -> float:
    """Drift of the log price per second that follows a notice."""
    last = np.searchsorted(rules.pushes["begins_ns"], now, side="right") - 1
    return rules.pushes["drift"][last] if last >= 0 and now < rules.pushes["ends_ns"][last] else 0.0


@njit(cache=True)
def volatility_multiplier(regime: float) -> float:
    """Multiplier of volatility, mean square about 1, within [0.25, 4]."""
    return min(max(exp(regime - REGIME_SD * REGIME_SD), 0.25), 4.0)


@njit(cache=True)
def _quote(book: OrderBook, side: int, quote: int, dt: float, signal: float, rules: Rules, block: Key) -> None:
    """Post-only orders of one side: each level is in balance at the tilted depth, and thin levels fill faster."""
    outward = -1 if side == BID else 1
    tilts = _tilts(-outward * signal, rules)
    for behind in range(len(rules.depth)):
        level, tilt, depth = quote + outward * behind, tilts[1 if behind > 0 else 0], rules.depth[behind]
        if level < 0 or level >= len(book.queues):
            break
        wanted = max(depth.orders * tilt, FEWEST)
        missing = max(wanted - (book.queues[level].count - book.queues[level].probes), 0.0)
        mean, key = dt * (wanted / LIFE_S + missing / FILLING_S), stream(block, QUOTES, side, level)
        if uniform(key, 0) >= mean:  # an exponential is no less, so that most need no logarithm
            continue
        median = depth.lots * tilt / wanted * exp(-depth.spread * depth.spread / 2)
        count, arrived = 0, exponential(key, 0)
        while arrived < mean:
            lots = max(int(median * exp(depth.spread * normal(key, 4 * count + 1))), rules.minimum_lots)
            post(book, side, level, lots, NOBODY, exponential(key, 4 * count + 3))
            count += 1
            arrived += exponential(key, 4 * count)


@njit(cache=True)
def _tilts(favour: float, rules: Rules) -> tuple[float, float]:
    """What the signal makes of depth at the touch and behind it; `favour` is below 0 where the price comes."""
    favour = min(max(favour, -AGAINST), FAVOUR)
    return exp(rules.touch_tilt * favour), exp(rules.depth_tilt * favour)


@njit(cache=True)
def _withdraw(book: OrderBook, side: int, quote: int, dt: float, signal: float, rules: Rules) -> None:
    """Cancels of one side: every order ends by itself, at the rate of where it stands, faster where too many do."""
    outward, best, deepest = -1 if side == BID else 1, book.top[side], len(rules.depth) - 1
    tilts = _tilts(-outward * signal, rules)
    for level in range(best, best + outward * 4 * len(rules.depth), outward):
        if level < 0 or level >= len(book.queues):
            break
        queue = book.queues[level]
        others = queue.count - queue.probes
        if others == 0:
            continue
        behind = outward * (level - quote)
        wanted = max(rules.depth[min(max(behind, 0), deepest)].orders * tilts[1 if behind > 0 else 0], FEWEST)
        crowd = max(1 - wanted / others, 0.0)
        queue.hazard += dt / STALE_S if behind < 0 else dt * (1 / LIFE_S + crowd / EMPTYING_S)
        if queue.hazard >= queue.soonest:
            _end(book, level)


@njit(cache=True)
def _end(book: OrderBook, level: int) -> None:
    """Cancel those orders of a level whose time has come, and note when the next one's does."""
    order, soonest = book.queues[level].first, np.inf
    while order >= 0:
        after, ends = book.orders[order].following, book.orders[order].ends
        if ends <= book.queues[level].hazard:
            cancel(book, order)
        else:
            soonest = min(soonest, ends)
        order = after
    book.queues[level].soonest = soonest


@njit(cache=True)
def _snipe(book: OrderBook, bid: int, ask: int, state: State, rules: Rules, messages: Messages, block: Key) -> None:
    """Market orders (IOC) of those who see the stale quotes of a revision, before their owners cancel."""
    for order in range(poisson(stream(block, SNIPERS, 0, 0), rules.sniping)):
        lots = _market_lots(stream(block, SNIPERS, 1, order), rules)
        if book.top[ASK] < bid:
            _match(book, BID, ask - 1, lots, state, messages)
        elif book.top[BID] > ask:
            _match(book, ASK, bid + 1, lots, state, messages)


@njit(cache=True)
def _trade(
    book: OrderBook, dt: float, state: State, rules: Rules, messages: Messages, block: Key
) -> tuple[float, float, float, int, int]:
    """All other market orders: they follow the signal and move the price, whatever book they meet.

    Some are parts of a large order that is worked for a while, so that signs are remembered for long (Lillo, Mike and
    Farmer, 2005). An order moves the price by what its side has surprised those who know that (Madhavan, Richardson and
    Roomans, 1997): the price remembers nothing, though it takes in a part with the next revision only. Returns the log
    price, what is not in it yet, the excitement, and the large order.
    """
    rate = rules.market_order_rate * (1 - rules.branching) * sqrt(volatility_multiplier(state.regime))
    buys, log_price, news = 1 / (1 + exp(-rules.flow_tilt * state.signal)), state.log_price, state.news
    worked, parts = state.worked, state.parts
    orders = poisson(stream(block, TAKERS, 0, 0), (rate + state.excitement) * dt)
    for order in range(orders):
        key = stream(block, TAKERS, 1, order)
        bought = buys if parts == 0 else rules.splitting * (worked == BID) + (1 - rules.splitting) * buys
        lots, taker = _market_lots(key, rules), BID if uniform(key, 2) < bought else ASK
        if parts == 0:
            worked, parts = taker, int(min(PARTS * (1 - uniform(key, 3)) ** (-1 / PARTS_TAIL), MOST_PARTS))
        else:
            parts -= 1
        limit = book.top[ASK] + SLIPPAGE if taker == BID else book.top[BID] - SLIPPAGE
        surprise = (1 - bought) if taker == BID else -bought
        moved = 2 * surprise * rules.impact * (lots / rules.market_lots) ** IMPACT_EXPONENT
        log_price, news = log_price + AT_ONCE * moved, news + (1 - AT_ONCE) * moved
        _match(book, taker, limit, lots, state, messages)
    return log_price, news, state.excitement + orders * rules.branching / EXCITEMENT_S, worked, parts


@njit(cache=True)
def _market_lots(key: Key, rules: Rules) -> int:
    """The lognormal size of a market order, at least the exchange's minimum."""
    return max(int(rules.market_lots * exp(rules.market_sd * normal(key, 0))), rules.minimum_lots)


@njit(cache=True)
def _match(
    book: OrderBook, taker: int, limit: int, lots: int, state: State, messages: Messages, owner: int = NOBODY
) -> int:
    """Match an IOC order in this block; returns what is left of it."""
    start = messages.used[2]
    end = take(book, taker, limit, lots, messages.print, start, owner)
    for row in range(start, end):
        messages.print_ns[row, 0], messages.print_ns[row, 1] = state.exchange_ns, state.local_ns
        lots -= messages.print[row, 1]
    messages.used[2] = end
    return lots


@njit(cache=True)
def _arrived(probes: Probes, now: int) -> int:
    """How many probes have arrived by now."""
    arrived = int(probes.passed[0])
    while arrived < len(probes.each) and probes.each[arrived].arrival_ns <= now:
        arrived += 1
    return arrived


@njit(cache=True)
def _admit(
    book: OrderBook, probes: Probes, last: int, state: State, post_only: bool, early: bool, messages: Messages
) -> None:
    """The probes of a block that are of one kind: a post-only one rests or is rejected, another takes, then rests."""
    for position in range(probes.passed[0], last):
        probe = probes.each[position]
        if probe.post_only != post_only or probe.early != early:
            continue
        side, left = probe.side, probe.lots
        level = book.top[side] + (-probe.steps if side == BID else probe.steps)
        if not post_only:
            left = _match(book, side, level, left, state, messages, position)
        probe.placed_ns, probe.level, probe.ahead = state.exchange_ns, level, book.queues[level].lots
        probe.rejected = left > 0 and not post(book, side, level, left, position)
        if left > 0 and not probe.rejected:
            probe.order = book.queues[level].last


@njit(cache=True)
def _recall(book: OrderBook, probes: Probes, now: int) -> None:
    """Cancel the probes whose time is over; those that were filled have left the book."""
    for position in range(probes.passed[1], probes.passed[0]):
        probe = probes.each[position]
        lives = probe.order != NOBODY and book.orders[probe.order].owner == position
        if lives and probe.cancel_ns <= now:
            cancel(book, probe.order)
            probe.ended_ns, lives = now, False
        if not lives and position == probes.passed[1]:
            probes.passed[1] += 1


@njit(cache=True)
def _publish(book: OrderBook, state: State, messages: Messages) -> int:
    """The top of the book if it changed, and the snapshot if it is due; returns when the next one is due."""
    row, changed = messages.used[1], messages.used[1] == 0
    for side in (BID, ASK):
        _describe(book, side, messages.top[row, side : side + 1])
        for column in range(3):
            changed |= messages.top[row, side, column] != messages.top[row - 1, side, column]
    if changed:
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
    while row < len(rows) and 0 <= level < len(book.queues):
        queue = book.queues[level]
        if queue.count:
            rows[row, 0], rows[row, 1], rows[row, 2] = level, queue.lots, queue.count
            row += 1
        level += outward


@njit(cache=True)
def _has_room(messages: Messages) -> bool:
    """Whether one more block fits: at most one snapshot, one best quote and every resting order printed."""
    books, tops, prints = messages.used
    return bool(books < len(messages.book) and tops < len(messages.top) and prints < len(messages.print) // 2)


@njit(cache=True)
def post(book: OrderBook, side: int, level: int, lots: int, owner: int = NOBODY, life: float = np.inf) -> bool:
    """Rest a post-only order behind its level's queue; False when it would cross and is rejected.

    Its owner cancels it when its level's hazard has grown by `life`.
    """
    top = book.top
    if (side == BID and level >= top[ASK]) or (side == ASK and level <= top[BID]):
        return False
    if top[FREE] == 0:
        raise ValueError("too many orders rest; lower volatility_bps")
    top[FREE] -= 1
    number = book.free[top[FREE]]
    order, queue = book.orders[number], book.queues[level]
    order.lots, order.level, order.owner, order.ends = lots, level, owner, queue.hazard + life
    order.preceding, order.following = queue.last, NOBODY
    if queue.count == 0:
        queue.first, queue.soonest = number, order.ends
    else:
        book.orders[queue.last].following = number
        queue.soonest = min(queue.soonest, order.ends)
    queue.last = number
    queue.count += 1
    queue.probes += owner != NOBODY
    queue.lots += lots
    if side == BID:
        top[BID] = max(top[BID], level)
    else:
        top[ASK] = min(top[ASK], level)
    return True


@njit(cache=True)
def cancel(book: OrderBook, number: int) -> None:
    """Remove an order from its queue, with what is left of it."""
    order, queue, top = book.orders[number], book.queues[book.orders[number].level], book.top
    if order.preceding < 0:
        queue.first = order.following
    else:
        book.orders[order.preceding].following = order.following
    if order.following < 0:
        queue.last = order.preceding
    else:
        book.orders[order.following].preceding = order.preceding
    queue.count -= 1
    queue.probes -= order.owner != NOBODY
    queue.lots -= order.lots
    order.owner = NOBODY
    book.free[top[FREE]] = number
    top[FREE] += 1
    while top[BID] >= 0 and book.queues[top[BID]].count == 0:
        top[BID] -= 1
    while top[ASK] < len(book.queues) and book.queues[top[ASK]].count == 0:
        top[ASK] += 1


@njit(cache=True)
def take(book: OrderBook, taker: int, limit: int, lots: int, prints: Integers, used: int, owner: int = NOBODY) -> int:
    """Match an IOC order up to the level `limit`; each maker met is one row of `prints`. Returns the rows used."""
    maker = ASK if taker == BID else BID
    while lots > 0:
        level = book.top[maker]
        beyond = level > min(limit, len(book.queues) - 1) if taker == BID else level < max(limit, 0)
        if beyond:
            break
        queue = book.queues[level]
        order = book.orders[queue.first]
        traded = min(lots, order.lots)
        prints[used, 0], prints[used, 1], prints[used, 2] = level, traded, taker
        prints[used, 3], prints[used, 4] = order.owner, owner
        used += 1
        lots -= traded
        order.lots -= traded
        queue.lots -= traded
        if order.lots == 0:
            cancel(book, queue.first)
    return used
