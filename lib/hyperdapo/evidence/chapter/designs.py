"""The eight tables of Chapter 5, from the frames of 09; costs and differences in bps, positive when worse."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from hyperdapo.evidence.chapter import names
from hyperdapo.evidence.chapter.book import NONE, Book, Source
from hyperdapo.evidence.chapter.layout import Group, Row, Table, bold, small
from hyperdapo.evidence.claims import NOT_AVAILABLE as CLAIM_NOT_AVAILABLE
from hyperdapo.evidence.figures.style import STRATEGY_COLOURS
from hyperdapo.evidence.gaps import RIVALS
from hyperdapo.evidence.hypotheses.conditions import INTERACTION
from hyperdapo.evidence.hypotheses.registered import NOT_AVAILABLE
from hyperdapo.evidence.hypotheses.series import ORACLE
from hyperdapo.evidence.metrics import PARTS, TOGETHER, TOTAL
from hyperdapo.evidence.tables import escape_latex, heading, records

Frames = Mapping[str, pd.DataFrame]
Record = dict[str, Any]

_HOUR_NS = 3_600_000_000_000
_DATASET = (  # column, its name, decimals, divisor
    ("rows_kept", "Rows of the feed kept (thousands)", 1, 1e3),
    ("rows_dropped", "Rows dropped", 0, 1),
    ("gaps", "Gaps in the feed", 0, 1),
    ("usable", "Decision times that can be used", 0, 1),
    ("train", "Training states", 0, 1),
    ("validation", "Validation states", 0, 1),
    ("test", "Test states", 0, 1),
    ("buy_share", "Buy orders (\\%)", 1, 0.01),
    ("spread_bps", "Median spread (bps)", 3, 1),
    ("depth_usd", "Median size of both best levels (thousand USD)", 0, 1e3),
)
_SPAN_NOTE = (
    "States of a split lie apart from those of the next by a horizon and a window of features; medians are over minutes"
)


def designed(frames: Frames, policy: str, reference: str, book: Book, world: str) -> list[Table]:
    """All eight, in the order of the chapter; their numbers go into the book.

    Parameters
    ----------
    frames : of 09 by name, and `convergence`
    policy : the one that is claimed to be better, against `reference` where a table has room for one
    world : what the market is, for the note of the data set
    """
    return [
        data_set(frames["dataset"], book, world),
        learning(frames["learning_gap_over_seeds"], frames["convergence"], book),
        main(frames["main"], book),
        hypotheses(frames["hypotheses"], book),
        decomposition(frames["decomposition"], policy, book),
        fills(frames["fill_calibration"], book),
        conditions(frames["conditions"], policy, reference, book),
        claims(frames["claims"], book),
    ]


def data_set(table: pd.DataFrame, book: Book, world: str) -> Table:
    """A column per asset."""
    table = table.assign(hours=(table["ends_ns"] - table["begins_ns"]) / _HOUR_NS)
    assets, rows = list(table["asset"]), list[Row]()
    for column, name, decimals, divisor in (("hours", "Hours of data", 1, 1), *_DATASET):
        cells = [
            book.cell(("data", row["asset"], column), row[column] / divisor, decimals, _source("dataset", row, column))
            for row in records(table)
        ]
        rows.append([name, *cells])
    columns = [("", "l"), *((names.asset(asset), "S") for asset in assets)]
    return Table("dataset", "The data, asset by asset", columns, rows, f"{world} {_SPAN_NOTE}.")


def learning(gaps: pd.DataFrame, runs: pd.DataFrame, book: Book) -> Table:
    """A group per asset: trained policies, then what they are read against."""
    rows = list[Row]()
    for asset, own in gaps.groupby("asset", sort=False):
        rows.append(Group(names.asset(str(asset))))
        trained = runs[runs["asset"] == asset].groupby("algorithm")["steps_to_level"]
        rows += [_trained(row, trained.get_group(row["algorithm"]), book) for row in records(own)]
        rows += list(_yardsticks(records(own)[0], book))
    columns = [("Policy", "l"), ("Reward", "S"), ("Gap closed", "S"), ("Interval", "c"), ("Minus DPO", "S")]
    columns += [("Interval", "c"), ("Arrived", "c"), ("Updates", "S")]
    note = (
        "Mean reward (bps) on held-out states, averaged over training seeds; gap closed (\\%): the share of the way "
        "from the best "
        "fixed action to the oracle of each state; intervals by a bootstrap of whole blocks of time, of one comparison "
        "each. Minus DPO: less the better of its two forms. Arrived: seeds that came "
        "to 90\\,\\% of the way from the beginning to the best end of any run of the "
        "asset; updates: when the median seed did, a dash where it did not."
    )
    return Table("learning", "Learning: rewards on held-out states", columns, rows, note)


def _trained(row: Record, steps: pd.Series, book: Book) -> list[str]:
    key, source = ("learning", row["asset"], row["algorithm"]), _row_of("learning_gap_over_seeds", row, "algorithm")
    arrived = steps.fillna(float("inf")).median()
    count = Source("convergence", source.row, "steps_to_level")
    return [
        names.strategy(row["algorithm"]),
        book.cell((*key, "reward"), row["trained_bps"], 2, _at(source, "trained_bps")),
        book.cell((*key, "gap"), 100 * row["gap_closed"], 1, _at(source, "gap_closed")),
        book.interval((*key, "gap"), (100 * row["gap_ci_low"], 100 * row["gap_ci_high"]), 1, _at(source, "gap_ci")),
        book.cell((*key, "minus dpo"), row["minus_dpo_bps"], 2, _at(source, "minus_dpo_bps")),
        book.interval(
            (*key, "minus dpo"), (row["minus_dpo_ci_low"], row["minus_dpo_ci_high"]), 2, _at(source, "minus_dpo_ci")
        ),
        book.words((*key, "arrived"), f"{steps.count()} of {len(steps)}", count),
        book.cell((*key, "updates"), arrived if arrived < float("inf") else float("nan"), 0, count),
    ]


def _yardsticks(first: Record, book: Book) -> Iterator[Row]:
    """What needs no seed: the model before training, the best fixed action, the rivals, the oracle."""
    for name in ("untrained", "best_fixed", *RIVALS, ORACLE):
        key, row = ("learning", first["asset"], name), first["asset"]
        reward = Source("learning_gap_over_seeds", row, f"{name}_bps")
        closed = Source("learning_gap_over_seeds", row, f"{name}_gap_closed")
        gap = first.get(f"{name}_gap_closed")
        share = NONE if gap is None else book.cell((*key, "gap"), 100 * gap, 1, closed)
        cells = [names.strategy(name), book.cell((*key, "reward"), first[f"{name}_bps"], 2, reward)]
        yield [*cells, "{}" if gap is None else share, "", "{}", "", "", "{}"]


def main(table: pd.DataFrame, book: Book) -> Table:
    """Strategy by asset: the mean, and its interval below."""
    assets, rows = list(table["asset"].unique()), list[Row]()
    cells = {(row["asset"], row["strategy"]): row for row in records(table)}
    traded = table[table["strategy"] != ORACLE]
    best = traded.loc[traded.groupby("asset")[TOTAL].idxmin()].set_index("asset")["strategy"].to_dict()
    known = [name for name in STRATEGY_COLOURS if name in set(table["strategy"])]
    for strategy in known:
        means, intervals = [names.strategy(strategy)], [""]
        for asset in assets:
            row = cells.get((asset, strategy))
            mean, interval = _mean(row, ("main", asset, strategy), "main", book) if row else ("{}", "{}")
            means.append(bold(mean) if best[asset] == strategy else mean)
            intervals.append(interval)
        rows += [means, intervals]
    columns = [("Strategy", "l"), *((names.asset(asset), "S") for asset in assets)]
    note = (
        "Mean total cost (bps of the arrival mid, fees included) on the same parent orders of the test split, below "
        "it the "
        "interval of each mean alone (bootstrap of whole blocks of time). Bold: the cheapest of an asset that can be "
        "traded, in "
        "hindsight; the oracle knows each outcome. Whether two strategies differ is in Table~\\ref{tab:hypotheses}."
    )
    return Table("main", "What each strategy costs", columns, rows, note)


def _mean(row: Record, key: tuple[str, ...], table: str, book: Book) -> tuple[str, str]:
    """A mean total cost and, for the line below, its interval."""
    source = _row_of(table, row, "strategy")
    mean = book.cell((*key, "cost"), row[TOTAL], 2, _at(source, TOTAL))
    return mean, small(book.interval((*key, "cost"), (row["ci_low"], row["ci_high"]), 2, _at(source, "ci")))


def hypotheses(judged: pd.DataFrame, book: Book) -> Table:
    """A group per asset, a row per reference; what could not be tested says why in the note."""
    rows, reasons = list[Row](), dict[str, str]()
    for asset, own in judged.groupby("asset", sort=False):
        rows.append(Group("All assets together" if asset == TOGETHER else names.asset(str(asset))))
        for row in records(own):
            rows.append(_hypothesis(row, reasons, book))
    policy = names.strategy(str(judged["strategy"].iloc[0]))
    columns = [(f"{policy} minus", "l"), ("bps", "S"), ("Interval", "c"), ("USD per million", "S"), ("$p$", "S")]
    columns += [("Detectable", "S"), ("Status", "l")]
    note = (
        "Total cost on the same test orders; below zero the policy is cheaper, as claimed. Intervals and $p$ hold "
        "for all rows at "
        "once (stationary bootstrap of the greatest studentised difference, fixed-b errors). Established: the "
        "interval lies "
        "below zero under both extreme queues too. Detectable (bps): seen with power 0.8."
    )
    said = "; ".join(f"$^{{{mark}}}$ {why}" for why, mark in reasons.items())
    caption = "The registered hypotheses: total cost against each reference"
    return Table("hypotheses", caption, columns, rows, f"{note} {said}.".strip() if said else note)


def _hypothesis(row: Record, reasons: dict[str, str], book: Book) -> list[str]:
    key, source = ("hypothesis", row["asset"], row["reference"]), _row_of("hypotheses", row, "reference")
    status = row["status"]
    if status == NOT_AVAILABLE:
        why = book.words((*key, "because"), names.spoken(row["because"]), _at(source, "because"))
        known = {_unnamed(why, book): why for why in reasons}
        why = known.get(_unnamed(why, book), why)
        status += rf"$^{{{reasons.setdefault(why, chr(ord('a') + len(reasons)))}}}$"
    return [
        names.strategy(row["reference"]),
        book.cell(key, row["difference_bps"], 2, _at(source, "difference_bps")),
        book.interval(key, (row["joint_low"], row["joint_high"]), 2, _at(source, "joint")),
        book.cell((*key, "usd"), row["usd_per_million"], 0, _at(source, "usd_per_million")),
        book.cell((*key, "p"), row["p_simultaneous"], 3, _at(source, "p_simultaneous")),
        book.cell((*key, "detectable"), row["detectable_bps"], 2, _at(source, "detectable_bps")),
        status,
    ]


def _unnamed(text: str, book: Book) -> str:
    """A text with the digits of its macros, to tell whether two say the same."""
    for name, (shown, _) in book.entries.items():
        text = text.replace(f"{name}{{}}", shown)
    return text


def decomposition(parts: pd.DataFrame, policy: str, book: Book) -> Table:
    """A group per reference, a row per part, a column per asset."""
    own, rows = parts[parts["strategy"] == policy], list[Row]()
    assets = list(own["asset"].unique())
    for reference, group in own.groupby("reference", sort=False):
        rows.append(Group(f"Minus {names.within(str(reference))}"))
        cells = {(row["asset"], row["part"]): row for row in records(group)}
        for part in (part for part in PARTS if part in set(group["part"])):
            pairs = [
                _difference(cells[asset, part], (policy, "minus", str(reference), part), "decomposition", book)
                for asset in assets
            ]
            rows += [[names.part(part), *(mean for mean, _ in pairs)], ["", *(interval for _, interval in pairs)]]
    columns = [("Part", "l"), *((names.asset(asset), "S") for asset in assets)]
    note = (
        "Differences (bps) on the same test orders, below each its interval alone (bootstrap of whole blocks of "
        "time); fees, funding "
        "and price add up to the total. What only saves fees has not predicted anything."
    )
    return Table("decomposition", f"Where the differences of {names.strategy(policy)} come from", columns, rows, note)


def _difference(row: Record, key: tuple[str, ...], table: str, book: Book) -> tuple[str, str]:
    source = Source(table, " ".join(map(str, (row["asset"], key[0], *key[2:]))), "difference_bps")
    full = (*key, row["asset"])
    mean = book.cell(full, row["difference_bps"], 2, source)
    return mean, small(book.interval(full, (row["ci_low"], row["ci_high"]), 2, _at(source, "ci")))


def fills(scores: pd.DataFrame, book: Book) -> Table:
    """A group per asset, a row per queue model."""
    rows, first = list[Row](), str(scores["queue_model"].iloc[0])
    for asset, own in scores.groupby("asset", sort=False):
        rows.append(Group(names.asset(str(asset))))
        for row in records(own):
            key, source = ("fills", row["asset"], row["queue_model"]), _row_of("fill_calibration", row, "queue_model")
            cells = [
                book.cell((*key, column), row[column], decimals, _at(source, column))
                for column, decimals in (("orders", 0), ("brier", 4), ("auc", 3), ("fill_time_error_s", 2))
            ]
            cells += [
                book.cell((*key, column), row[column], 3, _at(source, column))
                for column in ("cost_error_bps", "cost_bias_bps")
            ]
            ends = (1e3 * row["ci_low"], 1e3 * row["ci_high"])
            cells.append(book.interval((*key, "excess"), ends, 2, _at(source, "brier_excess, thousandths")))
            rows.append([heading(row["queue_model"]), *cells])
    columns = [("Queue model", "l"), ("Probes", "S"), ("Brier", "S"), ("AUC", "S"), ("Time (s)", "S")]
    columns += [("Cost error", "S"), ("Bias", "S"), (f"Minus {heading(first).lower()} ($10^{{-3}}$)", "c")]
    note = (
        "Probe orders played both in the matching engine and in the simulator. Brier score of the share filled (0 is "
        "perfect); mean "
        "absolute error of the fill time; mean absolute error and bias of the cost (bps); the interval is of the "
        "Brier score minus "
        "that of the model that is used (bootstrap of whole blocks of time)."
    )
    return Table("fills", "Simulated fills against the truth of the exchange", columns, rows, note)


def conditions(table: pd.DataFrame, policy: str, reference: str, book: Book) -> Table:
    """A group per regime, a row per level and one for the interaction, a column per asset."""
    assets, rows = list(table["asset"].unique()), list[Row]()
    for regime, own in table.groupby("regime", sort=False):
        rows.append(Group(f"By {regime}"))
        cells = {(row["asset"], row["level"]): row for row in records(own)}
        for level in own["level"].unique():
            pairs = [
                _difference(cells[asset, level], (policy, "condition", str(regime), level), "conditions", book)
                if (asset, level) in cells
                else ("{}", "{}")
                for asset in assets
            ]
            name = "High minus low" if level == INTERACTION else str(level).capitalize()
            rows += [[name, *(mean for mean, _ in pairs)], ["", *(interval for _, interval in pairs)]]
        rows.append([r"$p$ of the interaction", *(_interaction(cells, asset, str(regime), book) for asset in assets)])
    columns = [("Tercile", "l"), *((names.asset(asset), "S") for asset in assets)]
    note = (
        f"Total cost of {names.strategy(policy)} minus {names.within(reference)} (bps) on the same test orders, by "
        "tercile of an asset's orders; below each its interval alone (fixed-b). The interaction asks whether the "
        "highest and the lowest "
        "tercile differ; its $p$ is corrected for all interactions of the table (Holm). A dash: too few blocks of "
        "time, or no variance."
    )
    return Table("conditions", "Does the difference depend on the market?", columns, rows, note)


def _interaction(cells: Mapping[tuple[str, str], Record], asset: str, regime: str, book: Book) -> str:
    row = cells.get((asset, INTERACTION))
    if row is None:
        return "{--}"
    source = Source("conditions", f"{asset} {regime} {INTERACTION}", "p_holm")
    return book.cell(("conditions", regime, "p", asset), row["p_holm"], 3, source)


def claims(table: pd.DataFrame, book: Book) -> Table:
    """A group per claim with the draft's words, a row per asset."""
    rows = list[Row]()
    for claim, own in table.groupby("claim", sort=False):
        first = records(own)[0]
        quoted = book.words(
            ("claim", str(claim), "draft"), first["claimed"], _row_of("claims", first, "claim", "claimed")
        )
        measure = book.words(
            ("claim", str(claim), "of"), first["measure"], _row_of("claims", first, "claim", "measure")
        )
        where = f"; notebook {first['where']}" if first["where"] else ""
        rows.append(Group(rf"{measure[:1].upper()}{measure[1:]} ({escape_latex(first['section'])}: {quoted}{where})"))
        rows += [_claim(row, book) for row in records(own)]
    columns = [("Asset", "l"), ("Measured", "S"), ("Interval", "c"), ("Unit", "l"), ("Status", r"p{6.5cm}")]
    note = (
        "In brackets what the draft states. Intervals: bootstrap of whole blocks of time; of accuracy and distance "
        "to the oracle, the "
        "lowest and the highest seed. A claim holds where the whole interval is beyond what the draft states. Limits "
        "of each stand in the "
        "full table."
    )
    return Table("claims", "The draft's claims, and what was measured", columns, rows, note)


def _claim(row: Record, book: Book) -> list[str]:
    key, source = ("claim", row["claim"], row["asset"]), _row_of("claims", row, "claim")
    status, _, why = row["status"].partition(": ")
    if status == CLAIM_NOT_AVAILABLE and why:
        status += f": {book.words((*key, 'status'), why, _at(source, 'status'))}"
    missing = row["measured"] != row["measured"]
    decimals = 3 if row["unit"] == "million" else 2 if row["unit"] == "bps" else 1
    return [
        names.asset(row["asset"]) if row["asset"] else "Model",
        "{}" if missing else book.cell(key, row["measured"], decimals, _at(source, "measured")),
        ""
        if missing
        else book.interval(key, (row["ci_low"], row["ci_high"]), decimals, _at(source, "ci")).replace(NONE, ""),
        "" if missing else escape_latex(row["unit"]),
        status,
    ]


def _row_of(table: str, row: Record, name: str, column: str = "") -> Source:
    return Source(table, " ".join(str(row[key]) for key in ("asset", name) if row[key]), column)


def _at(source: Source, column: str) -> Source:
    return Source(source.table, source.row, column)


def _source(table: str, row: Record, column: str) -> Source:
    return Source(table, str(row["asset"]), column)
