"""What Chapter 5 says, made from the frames of 09: numbers are macros of `numbers.tex`, a null result reads as one."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from hyperdapo.evidence.chapter import names
from hyperdapo.evidence.chapter.book import Book, Source
from hyperdapo.evidence.chapter.designs import Frames
from hyperdapo.evidence.claims import STATUSES as CLAIM_STATUSES
from hyperdapo.evidence.gaps import DPOS
from hyperdapo.evidence.hypotheses.conditions import INTERACTION
from hyperdapo.evidence.hypotheses.registered import ESTABLISHED, FAILED, STATUSES
from hyperdapo.evidence.hypotheses.series import ORACLE
from hyperdapo.evidence.metrics import FEES, PRICE, TOGETHER, TOTAL
from hyperdapo.evidence.significance import overview
from hyperdapo.evidence.tables import listed, records

SECTIONS = ("training", "execution", "significance", "conditions", "limits")
Record = dict[str, Any]

_LEAST_P = 0.001  # that three decimals can show
_PASSIVE = {FAILED: "refuted (the policy is dearer)"}


def findings(frames: Frames, policy: str, reference: str, trials: int, book: Book) -> dict[str, str]:
    """The text of each of `SECTIONS`; the parameters of the policy were chosen among so many `trials`."""
    return {
        "training": training(frames, policy, book),
        "execution": execution(frames, policy, book),
        "significance": significance(frames, policy, book),
        "conditions": conditions(frames["conditions"], policy, reference, book),
        "limits": limits(frames, policy, trials, book),
    }


def training(frames: Frames, policy: str, book: Book) -> str:
    """How far the policy comes, beside its rival, and DPO."""
    gaps = frames["learning_gap_over_seeds"]
    own = records(gaps[gaps["algorithm"] == policy])
    name = names.strategy(policy)
    (better, worse), (ahead, behind), (over, under) = (
        ([row["asset"] for row in own if row[f"{of}_low"] > 0], [row["asset"] for row in own if row[f"{of}_high"] < 0])
        for of in ("gap_ci", "minus_boosting_ci", "minus_dpo_ci")
    )
    return _paragraphs(
        f"Of the way from the best fixed action to the oracle of each held-out state, {name} goes "
        f"{_each(own, lambda row: _gap(row, book))}. Beyond its interval it is better than that action on "
        f"{_of_assets(better, own)} "
        f"and worse on {_of_assets(worse, own)}.",
        f"Boosting reads the same numbers without a language model. On the same states {name} earns more than it on "
        f"{_of_assets(ahead, own)}, less on {_of_assets(behind, own)}, and cannot be told from it on the others. "
        "Against the better of two forms of DPO, whose "
        f"parameters were searched with as many trials, {name} earns more on {_of_assets(over, own)} and less on "
        f"{_of_assets(under, own)}: {_each(own, lambda row: _minus_dpo(row, book))}.",
        _arrivals(frames["convergence"], policy, book),
    )


def execution(frames: Frames, policy: str, book: Book) -> str:
    """What the policy costs beside the yardsticks, the cheapest, and where the difference comes from."""
    table, name = frames["main"], names.strategy(policy)
    rows = {(row["asset"], row["strategy"]): row for row in records(table)}
    assets = list(table["asset"].unique())

    def cost(asset: str, strategy: str) -> str:
        row = rows[asset, strategy]
        source = Source("main", f"{asset} {strategy}", TOTAL)
        return book.say(("main", asset, strategy, "cost"), row[TOTAL], 2, source)

    levels = listed(
        f"{cost(asset, policy)}\\,bps on {_place(asset)} (market orders {cost(asset, 'market')}, best fixed action "
        f"{cost(asset, 'best_fixed')})"
        for asset in assets
    )
    traded = table[table["strategy"] != ORACLE]
    cheapest = traded.loc[traded.groupby("asset", sort=False)[TOTAL].idxmin()]
    best = listed(
        f"{names.within(row['strategy'])} on {_place(row['asset'])} ({cost(row['asset'], row['strategy'])}\\,bps)"
        for row in records(cheapest)
    )
    return _paragraphs(
        f"In the mean {name} costs {levels}.",
        f"Cheapest of all that can be traded, chosen in hindsight, is {best}.",
        _origin(frames["decomposition"], policy, book),
        _fills(frames["fill_calibration"], book),
    )


def significance(frames: Frames, policy: str, book: Book) -> str:
    """The status of the registered hypotheses, then the secondary family and the best simple rule."""
    judged, name = frames["hypotheses"], names.strategy(policy)
    counted = {status: int((judged["status"] == status).sum()) for status in STATUSES}
    said = {
        status: book.say(("hypotheses", status), count, 0, Source("hypotheses", "", f"status {status}"))
        for status, count in counted.items()
    }
    total = book.say(("hypotheses", "registered"), len(judged), 0, Source("hypotheses", "", "rows"))
    opening = (
        f"Of {total} registered hypotheses "
        f"{listed(f'{number} are {_PASSIVE.get(status, status)}' for status, number in said.items())} "
        "(Table~\\ref{tab:hypotheses})."
    )
    none = f"No saving of {name} is established here." if not counted[ESTABLISHED] else ""
    return _paragraphs(
        f"{opening} {none}".strip(),
        _statuses(judged, ESTABLISHED, f"{name} is established to cost less than"),
        _statuses(judged, FAILED, f"{name} is dearer than"),
        _secondary(frames["significance"], book),
        _rule(frames["superiority"], book),
        "What is not established is not refuted: the column of detectable differences says what these data could "
        "have shown.",
    )


def conditions(table: pd.DataFrame, policy: str, reference: str, book: Book) -> str:
    """Whether the difference depends on volatility or spread."""
    name, rows = names.strategy(policy), records(table[table["level"] == INTERACTION])
    tested = [row for row in rows if row["p_holm"] == row["p_holm"]]
    opening = f"Whether the difference of {name} to {names.within(reference)} depends on the market was asked "
    source = Source("conditions", "", "p_holm")
    asked = book.say(("conditions", "asked"), len(rows), 0, source)
    if not tested:
        return _paragraphs(
            f"{opening}{asked} times, by volatility and by spread. None of the interactions can be tested on so few "
            "blocks of time "
            "or without variance; Table~\\ref{tab:conditions} gives the means alone."
        )
    kept = [row for row in tested if row["p_holm"] < 0.05]
    answered = book.say(("conditions", "tested"), len(tested), 0, source)
    said = book.say(("conditions", "significant"), len(kept), 0, source)
    where = listed(f"{_place(row['asset'])} by {row['regime']}" for row in kept)
    closing = f": {where}" if kept else ", so that no dependence on the market is shown"
    return _paragraphs(
        f"{opening}{asked} times, by volatility and by spread; {answered} interactions could be tested. Corrected "
        "for all of them, "
        f"{said} are significant at five per cent{closing} (Table~\\ref{{tab:conditions}})."
    )


def limits(frames: Frames, policy: str, trials: int, book: Book) -> str:
    """What bounds all of it."""
    claims, tests = frames["claims"], frames["hypotheses"]
    status = claims["status"].str.partition(":")[0]
    holds, unshown, fails, missing = (
        book.say(("claims", name), int((status == name).sum()), 0, Source("claims", "", f"status {name}"))
        for name in CLAIM_STATUSES
    )
    tried = book.say(("trials", policy), trials, 0, Source("search", policy, "trial"))
    blocks = tests.groupby("asset", sort=False).first()["blocks"]
    fewest = book.say(("blocks", "fewest"), int(blocks.min()), 0, Source("hypotheses", "", "blocks"))
    return _paragraphs(
        f"Of the rows of Table~\\ref{{tab:claims}}, {holds} hold, {fails} do not, {unshown} are not shown, and "
        f"{missing} are not available.",
        f"The independent unit is a block of time, of which an asset has {fewest} at the fewest; a regime that lasts "
        "longer than the test "
        "span does not show. The market does not answer: an order neither moves quotes nor makes others cancel.",
        f"The parameters of {names.strategy(policy)} were chosen among {tried} trials, on validation states. How "
        "often the test orders were "
        "opened is in the ledger of the run.",
        "Sharpe ratio and drawdown are given as the draft defines them and claim nothing: of costs they measure how "
        "evenly one pays, not "
        "what one earns; of a series that does not vary the ratio is not defined. The deflated Sharpe ratio and the "
        "probability of backtest "
        "overfitting correct a Sharpe ratio for the strategies tried, and none is claimed. Benjamini--Hochberg "
        "bounds the share of false "
        "claims among many; each of these hypotheses is a claim of its own. The draft's figure of the literature is "
        "made by no run.",
    )


def _gap(row: Record, book: Book) -> str:
    key = ("learning", row["asset"], row["algorithm"], "gap")
    source = Source("learning_gap_over_seeds", f"{row['asset']} {row['algorithm']}", "gap_closed")
    ends = Source(source.table, source.row, "gap_ci")
    value = book.say(key, 100 * row["gap_closed"], 1, source)
    interval = book.interval(key, (100 * row["gap_ci_low"], 100 * row["gap_ci_high"]), 1, ends)
    return f"{value}\\,\\% {interval}"


def _minus_dpo(row: Record, book: Book) -> str:
    key = ("learning", row["asset"], row["algorithm"], "minus dpo")
    source = Source("learning_gap_over_seeds", f"{row['asset']} {row['algorithm']}", "minus_dpo_bps")
    return f"{book.say(key, row['minus_dpo_bps'], 2, source)}\\,bps"


def _arrivals(runs: pd.DataFrame, policy: str, book: Book) -> str:
    """In how many runs the policy and each DPO came to the level, never averaged over those that did."""
    said = []
    for algorithm in (policy, *(name for name in DPOS if (runs["algorithm"] == name).any())):
        steps = runs[runs["algorithm"] == algorithm]["steps_to_level"]
        source = Source("convergence", algorithm, "steps_to_level")
        numbers = (
            book.say(("arrived", algorithm, word), count, 0, source)
            for word, count in (("runs", steps.count()), ("of", len(steps)))
        )
        said.append(f"{names.strategy(algorithm)} in {' of '.join(numbers)} runs")
    return (
        "To 90\\,\\% of the way to the best end of any run of the asset came "
        f"{listed(said)}; a run that never came is counted as later than all that did."
    )


def _origin(parts: pd.DataFrame, policy: str, book: Book) -> str:
    """Fees and price of the difference to market orders, of each asset."""
    own = parts[(parts["strategy"] == policy) & (parts["reference"] == "market")]
    cells = {(row["asset"], row["part"]): row["difference_bps"] for row in records(own)}

    def said(asset: str, part: str) -> str:
        source = Source("decomposition", f"{asset} {policy} market {part}", "difference_bps")
        return book.say((policy, "minus", "market", part, asset), cells[asset, part], 2, source)

    each = listed(
        f"{said(asset, FEES)}\\,bps of fees and {said(asset, PRICE)}\\,bps of price on {_place(asset)}"
        for asset in own["asset"].unique()
    )
    name = names.strategy(policy)
    return f"Minus market orders {name} differs by {each}; what only saves fees has not predicted anything."


def _fills(scores: pd.DataFrame, book: Book) -> str:
    first = scores.groupby("asset", sort=False).first().reset_index()
    each = listed(
        "{}\\,bps on {}".format(
            book.say(
                ("fills", row["asset"], row["queue_model"], "cost_bias_bps"),
                row["cost_bias_bps"],
                3,
                Source("fill_calibration", f"{row['asset']} {row['queue_model']}", "cost_bias_bps"),
            ),
            _place(row["asset"]),
        )
        for row in records(first)
    )
    truth = "Held against the truth of the matching engine"
    return f"{truth}, the simulator's costs are biased by {each} (Table~\\ref{{tab:fills}})."


def _statuses(judged: pd.DataFrame, status: str, opening: str) -> str:
    """A sentence on the hypotheses of one status, by asset; nothing where there is none."""
    rows = judged[judged["status"] == status]
    if rows.empty:
        return ""
    each = (
        f"{listed(names.within(key) for key in own['reference'])} on {_place(str(asset))}"
        for asset, own in rows.groupby("asset", sort=False)
    )
    return f"{opening} {'; '.join(each)}."


def _secondary(tests: pd.DataFrame, book: Book) -> str:
    _, every = records(overview(tests, []))
    counts = {"tested": every["comparisons"], "cheaper": every["cheaper"], "dearer": every["more_expensive"]}
    counts["not testable"] = every["not_testable"]
    said = {
        word: book.say(("comparisons", word), count, 0, Source("significance", "", word))
        for word, count in counts.items()
    }
    return (
        f"In the secondary family every strategy is held against the best fixed action: {said['tested']} "
        "comparisons, of which "
        f"{said['cheaper']} are significantly cheaper and {said['dearer']} dearer; {said['not testable']} could not "
        "be tested."
    )


def _rule(superiority: pd.DataFrame, book: Book) -> str:
    tested = superiority[superiority["note"].fillna("") == ""]
    if tested.empty:
        return "Whether any policy is better than the best simple rule cannot be tested on so few blocks of time."
    each = listed(
        f"{names.within(row['rule'])} on {_place(row['asset'])} ({_spa(row, book)})" for row in records(tested)
    )
    better = [row["asset"] for row in records(tested) if row["better"] == row["better"] and row["better"]]
    closing = (
        f"A policy is better than it on {_of_assets(better, [])}." if better else "None is shown to be better than it."
    )
    return (
        f"The simple rule that turned out cheapest, in hindsight, is {each}; the $p$ of Hansen's test is of the "
        "hypothesis that no policy "
        f"is better. {closing}"
    )


def _spa(row: Record, book: Book) -> str:
    """Of resamples none may be beyond: then p is below what is printed."""
    source, sign = Source("superiority", row["asset"], "p_spa"), "=" if row["p_spa"] >= _LEAST_P else "<"
    return f"$p {sign}$ {book.say(('superiority', row['asset']), max(row['p_spa'], _LEAST_P), 3, source)}"


def _place(asset: str) -> str:
    return "all assets together" if asset == TOGETHER else names.asset(asset)


def _of_assets(assets: Sequence[str], rows: Sequence[Record]) -> str:
    """`BTC and ETH`, `no asset`, `every asset`."""
    if not assets:
        return "no asset"
    return "every asset" if rows and len(assets) == len(rows) > 1 else listed(_place(asset) for asset in assets)


def _each(rows: Sequence[Record], phrase: Callable[[Record], str]) -> str:
    return listed(f"{phrase(row)} on {_place(row['asset'])}" for row in rows)


def _paragraphs(*texts: str) -> str:
    return "% Generated; do not edit.\n" + "\n\n".join(text for text in texts if text) + "\n"
