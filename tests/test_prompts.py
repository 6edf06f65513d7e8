"""State and action as text: what the prompt says, what it hides, and what is refused."""

import re

import numpy as np
import pandas as pd
import pytest

from hyperdapo.actions import Action
from hyperdapo.errors import DataError
from hyperdapo.market.features import NAMES
from hyperdapo.policy.prompts import CUE, FEATURES, STYLES, check_lengths, digits, encode_states, instruction, letters
from hyperdapo.policy.rivals import inputs
from hyperdapo.sections import PromptStyle

ACTIONS = [Action.parse(word) for word in ("take", "join", "improve 1", "behind 2", "wait", "-5 bps")]


def features(count: int = 4) -> pd.DataFrame:
    """States in which every feature is neutral."""
    neutral = {name: 0.0 for name in (*NAMES, *(f"{name}_z" for name in NAMES))}
    neutral |= {"depth_ratio_10bps": 1.0, "volume_profile": 0.5}
    frame = pd.DataFrame([neutral] * count)
    return frame.assign(asset="BTC", decision_ns=np.arange(count), mid=117245.0)


def parents(sides: list[int]) -> pd.DataFrame:
    return pd.DataFrame({"order_id": range(len(sides)), "side": sides, "objective": "balanced", "horizon_s": 60.0})


def body(prompt: str) -> str:
    return prompt.removeprefix(instruction(ACTIONS)).removesuffix(CUE)


def test_prompt_is_constant_instruction_then_state_then_cue() -> None:
    prompts = encode_states(features(), parents([1, -1, 1, -1]), ACTIONS)
    assert all(prompt.startswith(instruction(ACTIONS)) and prompt.endswith(CUE) for prompt in prompts)
    assert body(prompts[0]).startswith("balanced buy BTC at 117245:")
    assert body(prompts[1]).startswith("balanced sell BTC at 117245:")


def test_all_fifteen_features_are_written() -> None:
    columns = {feature.column.removesuffix("_z") for feature in FEATURES}
    assert columns == set(NAMES) and len(FEATURES) == len(NAMES)
    text = body(encode_states(features(), parents([1]), ACTIONS)[0])
    assert all(f" {feature.word}5" in text for feature in FEATURES)


def test_a_direction_is_relative_to_the_side() -> None:
    states = features(2).assign(book_imbalance=0.5, volatility_5m_bps_z=1.6)
    buy, sell = (body(prompt) for prompt in encode_states(states, parents([1, -1]), ACTIONS))
    assert " imbalance7" in buy and " imbalance3" in sell
    assert " volatility7" in buy and " volatility7" in sell


def test_digits_end_at_one_and_nine() -> None:
    states = features(1).assign(trade_flow_5m_z=-80.0, depth_ratio_10bps=100.0)
    text = body(encode_states(states, parents([1]), ACTIONS)[0])
    assert " flow1" in text and " depth9" in text


def test_digits_are_those_of_the_prompt() -> None:
    states = features(2).assign(book_imbalance=0.5, momentum_5m_bps_z=-1.0)
    written = [
        [int(digit) for digit in text.partition(":")[2] if digit.isdigit()]
        for text in map(body, encode_states(states, parents([1, -1]), ACTIONS, "anonymous"))
    ]
    assert digits(states, parents([1, -1])).tolist() == written


def test_anonymous_hides_asset_and_price() -> None:
    text = body(encode_states(features(), parents([1]), ACTIONS, "anonymous")[0])
    assert "BTC" not in text and "117" not in text and text.startswith("balanced buy:")


def test_numbers_say_what_rivals_read_and_nothing_else() -> None:
    states, orders = features(2).assign(book_imbalance=0.5), parents([1, -1])
    texts = encode_states(states, orders, ACTIONS, "numbers")
    opening = instruction(ACTIONS, "numbers")
    read = [[float(word.strip(":")) for word in text[len(opening) : -len(CUE)].split()] for text in texts]
    np.testing.assert_array_equal(np.roll(read, -1, axis=1), inputs(states, orders))


def test_words_hold_no_digit_and_lose_no_grade() -> None:
    states = features(9).assign(book_imbalance=np.linspace(-1, 1, 9))
    texts = encode_states(states, parents([1] * 9), [Action("take"), Action("join"), Action("wait")], "words")
    assert len(set(texts)) == 9
    assert not any(character.isdigit() for text in texts for character in text)
    assert " imbalance lowest," in texts[0] and " imbalance neutral," in texts[4] and " imbalance highest," in texts[8]


def test_absolute_says_up_and_down_and_the_side_last() -> None:
    states = features(2).assign(book_imbalance=0.5)
    opening, prompts = instruction(ACTIONS, "absolute"), encode_states(states, parents([1, -1]), ACTIONS, "absolute")
    buy, sell = (prompt.removeprefix(opening).removesuffix(CUE) for prompt in prompts)
    assert buy.removesuffix(" buy") == sell.removesuffix(" sell") and " imbalance7" in buy
    assert "BTC" not in buy and buy.startswith("balanced: imbalance")
    assert "1 the price falls, 5 neutral, 9 it rises" in opening


def test_shuffled_names_are_all_wrong_and_lose_nothing() -> None:
    states = features(1).assign(book_imbalance=0.5)
    right, wrong = (body(encode_states(states, parents([1]), ACTIONS, style)[0]) for style in ("anonymous", "shuffled"))
    assert right.split()[:2] == wrong.split()[:2]
    named, misnamed = (dict(re.findall(r"([a-z]+)(\d)", text)) for text in (right, wrong))
    assert named.keys() == misnamed.keys() and list(named.values()) == list(misnamed.values())
    assert all(one != other for one, other in zip(named, misnamed, strict=True))


@pytest.mark.parametrize("style", STYLES)
def test_every_style_tells_states_and_notices_apart(style: PromptStyle) -> None:
    states = features(2).assign(book_imbalance=[0.0, 0.5])
    assert len(set(encode_states(states, parents([1, 1]), ACTIONS, style))) == 2
    same = features(2).assign(notice=["A bug was found.", ""], notice_age_s=[20.0, np.nan])
    heard, silent = encode_states(same, parents([1, 1]), ACTIONS, style)
    assert ("A bug was found." in heard) == (style != "numbers") and "otice" not in silent
    assert silent == encode_states(features(2), parents([1, 1]), ACTIONS, style)[1]
    assert heard.startswith(instruction(ACTIONS, style)) and heard.endswith(CUE)


def test_a_notice_stands_behind_the_signals_with_its_age() -> None:
    states = features(1).assign(notice="A bug was found.", notice_age_s=19.6)
    assert body(encode_states(states, parents([1]), ACTIONS)[0]).endswith(" size5 Notice 20 s ago: A bug was found.")


def test_news_stand_in_place_of_the_signals_and_end_with_what_they_mean_for_the_side() -> None:
    states = features(3).assign(notice=["A bug was found.", "A bug was found.", ""], notice_age_s=[20.0, 20.0, np.nan])
    opening = instruction(ACTIONS, "news")
    prompts = encode_states(states, parents([1, -1, 1]), ACTIONS, "news")
    buy, sell, silent = (prompt.removeprefix(opening).removesuffix(CUE) for prompt in prompts)
    assert opening == "Order A, B, C, D, E or F.\n"
    assert buy == "balanced buy: News: A bug was found. I am buying. For me this news is"
    assert sell == "balanced sell: News: A bug was found. I am selling. For me this news is"
    assert silent == body(encode_states(features(1), parents([1]), ACTIONS, "anonymous")[0])


@pytest.mark.parametrize(
    ("mid", "written"), [(117245.4, "117245"), (3750.0, "3750.0"), (25.1, "25.100"), (0.5, "0.50000")]
)
def test_price_level_has_five_figures(mid: float, written: str) -> None:
    assert f" at {written}:" in encode_states(features().assign(mid=mid), parents([1]), ACTIONS)[0]


def test_a_prompt_depends_on_its_state_alone() -> None:
    states = features().assign(book_imbalance=[-0.9, -0.3, 0.3, 0.9])
    orders = parents([1, -1, 1, -1])
    alone = [encode_states(states, orders.iloc[[row]], ACTIONS)[0] for row in range(4)]
    assert encode_states(states, orders, ACTIONS) == alone


def test_a_feature_that_is_not_finite_is_refused() -> None:
    states = features().assign(trade_flow_5m_z=[0.0, np.nan, 0.0, 0.0])
    with pytest.raises(DataError, match=r"trade_flow_5m_z of the state at 1 .*hyperdapo run --until 03"):
        encode_states(states, parents([1, 1, 1, 1]), ACTIONS)


def test_letters_follow_the_actions() -> None:
    assert letters(ACTIONS) == list("ABCDEF")
    assert ": A take, B join, C improve 1, D behind 2, E wait, F -5 bps." in instruction(ACTIONS)


def words(prompts: list[str]) -> dict[str, list[list[str]]]:
    """A tokenizer whose tokens are words."""
    return {"input_ids": [prompt.split() for prompt in prompts]}


def test_lengths_are_counted_in_tokens() -> None:
    orders = parents([1, -1]).assign(asset="BTC")
    assert check_lengths(["one two", "one two three"], orders, words, 3).tolist() == [2, 3]
    assert check_lengths([], orders.iloc[:0], words, 3).tolist() == []
    many = check_lengths(["one"] * 5000 + ["one two"], parents([1] * 5001), words, 3)
    assert len(many) == 5001 and many[-1] == 2


def test_a_prompt_beyond_the_limit_names_asset_order_and_parameter() -> None:
    orders = parents([1, -1, 1]).assign(asset="BTC", order_id=[7, 8, 9])
    with pytest.raises(DataError, match=r"BTC: the prompt of order 8 has 3 tokens, and policy\.max_length is 2"):
        check_lengths(["one", "one two three", "one two"], orders, words, 2)
