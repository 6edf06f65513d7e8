"""State and action as text (§4.8.1, Listing 4.8; docs/design.md, State and action).

A prompt is the constant instruction first and the changing numbers last, so that a model can keep the keys and values
of the instruction. Each feature is a word and a digit from 1 to 9, two tokens; 5 is neutral. A feature that predicts
the direction of the price is relative to the order's side: above 5 where it drives the price away from the order (a buy
sees it rise), below 5 where it brings the price to it. A notice, where there is one, stands behind them.

A letter stands for each candidate order, so that an action is one token.

The styles differ in what they let a model make of what it knows. `thesis` keeps the asset and the real price level
(§4.8.1); `anonymous` hides both. `absolute` says which way the market goes, up or down, and the order's side last, so
that one text serves buys and sells. Three more say what `anonymous` says: `shuffled` under the name of another feature,
`numbers` in digits alone (the horizon in seconds stands for the objective; side and notice are left out, so that it
says what `rivals` read), and `words` without a digit. In `news` a notice, where one was heard, stands in place of the
signals, the order's side in words behind it and the question what it means for it; the instruction names the letters
alone.
"""

import hashlib
import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo.actions import Action
from hyperdapo.errors import DataError
from hyperdapo.market.columns import Floats
from hyperdapo.sections import PromptStyle

STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)

CUE = " ->"

_NEUTRAL, _MOST = 5, 4  # digits lie in 5 - 4 to 5 + 4
_BATCH = 4096  # prompts that are tokenised at once
_SHIFT = 7  # in style `shuffled` a feature has the name of the one so many places behind it
_GRADES = ("lowest", "very low", "low", "lowish", "neutral", "highish", "high", "very high", "highest")


@dataclass(frozen=True)
class _Feature:
    """One feature in the text: its word, its column, and the map from the column to [-4, 4]."""

    word: str
    column: str
    scale: Callable[[Floats], Floats]
    pushes_price: bool = True


def _deviations(z: Floats) -> Floats:
    return _MOST / 3 * z


def _shares(balance: Floats) -> Floats:
    return _MOST * balance


# The eight that predict a direction, positive when they push the price up, then the seven that have none.
FEATURES = (
    _Feature("imbalance", "book_imbalance", _shares),
    _Feature("depth", "depth_ratio_10bps", lambda ratio: _shares((ratio - 1) / (ratio + 1))),
    _Feature("pressure", "book_pressure_50bps", _shares),
    _Feature("flow", "trade_flow_5m_z", _deviations),
    _Feature("minute", "momentum_1m_bps_z", _deviations),
    _Feature("trend", "momentum_5m_bps_z", _deviations),
    _Feature("average", "vwap_distance_bps_z", _deviations),
    _Feature("profile", "volume_profile", lambda above: _shares(1 - 2 * above)),
    _Feature("spread", "bid_ask_spread_bps_z", _deviations, pushes_price=False),
    _Feature("volatility", "volatility_5m_bps_z", _deviations, pushes_price=False),
    _Feature("volume", "trade_volume_5m_z", _deviations, pushes_price=False),
    _Feature("intensity", "order_intensity_per_min_z", _deviations, pushes_price=False),
    _Feature("liquidity", "liquidity_score_50bps_z", _deviations, pushes_price=False),
    _Feature("large", "large_trade_ratio_z", _deviations, pushes_price=False),
    _Feature("size", "trade_size_ratio_z", _deviations, pushes_price=False),
)


def letters(actions: Sequence[Action]) -> list[str]:
    """The letter of each action: A for the first, and so on."""
    return list(string.ascii_uppercase[: len(actions)])


def instruction(actions: Sequence[Action], style: PromptStyle = "thesis") -> str:
    """The constant beginning of every prompt: what each letter means and how to read the signals."""
    if style == "numbers":
        return ", ".join(letters(actions)) + "\n"
    if style == "news":
        *others, last = letters(actions)
        return f"Order {', '.join(others)} or {last}.\n"
    options = ", ".join(f"{letter} {action}" for letter, action in zip(letters(actions), actions, strict=True))
    if style == "absolute":
        return f"Choose an order: {options}. Signals: 1 the price falls, 5 neutral, 9 it rises.\n"
    low, middle, high = (_GRADES[0], _GRADES[4], _GRADES[8]) if style == "words" else "159"
    return (
        f"Choose an order, in ticks from the best quote or bps from the mid: {options}. "
        f"Signals: {low} the price comes to the order, {middle} neutral, {high} it runs away.\n"
    )


def encode_states(
    features: pd.DataFrame, parents: pd.DataFrame, actions: Sequence[Action], style: PromptStyle = "thesis"
) -> list[str]:
    """The prompt of each parent order.

    Parameters
    ----------
    features : rows of `features.parquet`; `parents.order_id` is a position in it
    parents : (n, ...) with `order_id`, `side` (+1 buy, -1 sell), `objective`, and for style `numbers` `horizon_s`
    actions : (K,) of which one is to be chosen

    Raises
    ------
    DataError
        If a feature of one of the states is not finite.
    """
    states = features.iloc[parents["order_id"].to_numpy()]
    opening, sides = instruction(actions, style), _verbs(parents)
    rows = digits(features, parents.assign(side=1) if style == "absolute" else parents)
    signals = [_signals(row, style) for row in rows]
    if style == "news":
        bodies = [news or signal for news, signal in zip(_news(states, parents), signals, strict=True)]
    else:
        bodies = [signal + notice for signal, notice in zip(signals, _notices(states, style), strict=True)]
    if style == "absolute":
        bodies = [f"{body} {side}" for body, side in zip(bodies, sides, strict=True)]
    return [opening + head + body + CUE for head, body in zip(_heads(states, parents, style), bodies, strict=True)]


def version(actions: Sequence[Action], style: PromptStyle) -> str:
    """A hash of what is written of two orders with and without a notice, in states that show every digit: text that
    changes in whatever part has another."""
    states = np.linspace(-0.99, 0.99, 2 * _MOST + 1)
    features = pd.DataFrame({feature.column: states for feature in FEATURES}).assign(
        decision_ns=0, asset="BTC", mid=50_000.0, notice=[*["", "News."] * _MOST, ""], notice_age_s=20.0
    )
    parents = pd.DataFrame({"order_id": np.arange(len(states)), "objective": "balanced", "horizon_s": 60.0})
    written = [encode_states(features, parents.assign(side=side), actions, style) for side in (1, -1)]
    return hashlib.sha256("\0".join(map(str, written)).encode()).hexdigest()[:16]


def digits(features: pd.DataFrame, parents: pd.DataFrame) -> NDArray[np.int64]:
    """(n, 15) the digits of the `FEATURES` in the prompt of each parent order. Takes and raises as `encode_states`."""
    states = features.iloc[parents["order_id"].to_numpy()]
    side = parents["side"].to_numpy(dtype=float)
    return np.column_stack([_digits(feature, states, side) for feature in FEATURES])


def check_lengths(prompts: Sequence[str], parents: pd.DataFrame, tokenizer: Any, max_length: int) -> NDArray[np.int64]:
    """How many tokens each prompt has, none of them more than `max_length` (`policy.max_length`).

    Parameters
    ----------
    prompts : (n,) of the rows of `parents`, which has `order_id` and `asset`
    tokenizer : of the base model, as `models.load_tokenizer` returns it

    Returns
    -------
    (n,) tokens; a model would silently read only a part of a longer prompt

    Raises
    ------
    DataError
        If a prompt is longer: names the longest one's asset and order.
    """
    parts = [prompts[start : start + _BATCH] for start in range(0, len(prompts), _BATCH)]
    counts = np.array([len(ids) for part in parts for ids in tokenizer(list(part))["input_ids"]], dtype=np.int64)
    if len(counts) and counts.max() > max_length:
        longest = parents.iloc[int(counts.argmax())]
        raise DataError(
            f"{longest['asset']}: the prompt of order {longest['order_id']} has {counts.max()} tokens, and "
            f"policy.max_length is {max_length}: raise it, or give fewer policy.actions"
        )
    return counts


def _digits(feature: _Feature, states: pd.DataFrame, side: Floats) -> NDArray[np.int64]:
    """(n,) digits from 1 to 9; of what pushes the price, those above 5 push it away from the order."""
    scaled = feature.scale(states[feature.column].to_numpy(dtype=float))
    if not np.isfinite(scaled).all():
        position = int(np.flatnonzero(~np.isfinite(scaled))[0])
        raise DataError(
            f"{feature.column} of the state at {states['decision_ns'].iloc[position]} is not finite: "
            "select only rows with `warm`, or make the features again with: hyperdapo run --until 03"
        )
    signed = scaled * side if feature.pushes_price else scaled
    return _NEUTRAL + np.clip(np.rint(signed), -_MOST, _MOST).astype(np.int64)


def _heads(states: pd.DataFrame, parents: pd.DataFrame, style: PromptStyle) -> list[str]:
    """Objective and side of each order, but for `absolute` without the side; in `thesis` also asset and price level."""
    if style == "numbers":
        return [f"{horizon_s:g}:" for horizon_s in parents["horizon_s"]]
    if style == "absolute":
        return [f"{objective}:" for objective in parents["objective"]]
    verbs = _verbs(parents)
    if style != "thesis":
        return [f"{objective} {verb}:" for objective, verb in zip(parents["objective"], verbs, strict=True)]
    rows = zip(parents["objective"], verbs, states["asset"], states["mid"], strict=True)
    return [f"{objective} {verb} {asset} at {_five_figures(mid)}:" for objective, verb, asset, mid in rows]


def _verbs(parents: pd.DataFrame) -> list[str]:
    return ["buy" if side > 0 else "sell" for side in parents["side"]]


def _five_figures(price: float) -> str:
    """The price to five significant figures, never fewer: prompts of one asset are then of one length."""
    return f"{price:.{max(0, 4 - math.floor(math.log10(price)))}f}"


def _signals(digits: NDArray[np.int64], style: PromptStyle) -> str:
    values = digits.tolist()
    if style == "numbers":
        return "".join(f" {digit}" for digit in values)
    words = [feature.word for feature in FEATURES]
    if style == "words":
        return ",".join(f" {word} {_GRADES[digit - 1]}" for word, digit in zip(words, values, strict=True))
    if style == "shuffled":
        words = words[_SHIFT:] + words[:_SHIFT]
    return "".join(f" {word}{digit}" for word, digit in zip(words, values, strict=True))


def _notices(states: pd.DataFrame, style: PromptStyle) -> list[str]:
    """A sentence for each state in which one was heard; the text, not what it does to the price."""
    if style == "numbers" or "notice" not in states:
        return [""] * len(states)
    spoken = zip(states["notice"], states["notice_age_s"], strict=True)
    if style == "words":
        return [f" Notice: {text}" if text else "" for text, _ in spoken]
    return [f" Notice {age_s:.0f} s ago: {text}" if text else "" for text, age_s in spoken]


def _news(states: pd.DataFrame, parents: pd.DataFrame) -> list[str]:
    """For each state in which a notice was heard: the notice, the order's side, and what the one means for the other.

    The side comes behind the sentence, close to the cue, where an activated adapter can still turn the one by the
    other.
    """
    if "notice" not in states:
        return [""] * len(states)
    doing = ["buying" if side > 0 else "selling" for side in parents["side"]]
    heard = zip(states["notice"], doing, strict=True)
    return [f" News: {text} I am {verb}. For me this news is" if text else "" for text, verb in heard]
