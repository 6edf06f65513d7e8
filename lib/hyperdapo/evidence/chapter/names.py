"""What readers call the things that tables know by keys."""

import re

from hyperdapo.evidence.figures.style import STRATEGY_COLOURS
from hyperdapo.evidence.metrics import FEES, PRICE, TOGETHER, TOTAL
from hyperdapo.evidence.tables import escape_latex, heading

_WITHIN = {
    "market": "market orders",
    "twap_post_only": "post-only TWAP",
    "vwap_post_only": "post-only VWAP",
    "touch_requoted": "the requoted touch",
    "threshold_requoted": "the requoted threshold",
    "mid_peg": "the mid peg",
    "avellaneda_stoikov": "Avellaneda-Stoikov",
    "best_fixed": "the best fixed action",
    "untrained": "the untrained model",
    "sign_momentum_10s": "the sign of momentum over 10 s",
    "sign_momentum_60s": "the sign of momentum over 60 s",
    "dapo_sampled": "sampled DAPO",
    "dapo_sequential": "DAPO that decides again",
    "dpo_one_pair": "DPO of one pair",
    "boosting_sequential": "boosting that decides again",
}
_PARTS = {
    FEES: "Fees",
    "funding_bps": "Funding",
    "spread_bps": "Spread",
    "timing_bps": "Timing",
    "opportunity_bps": "Opportunity",
    PRICE: "Price: spread, timing, opportunity",
    TOTAL: "Total",
}


def strategy(key: str) -> str:
    """`touch_requoted` -> `Touch, requoted`."""
    return escape_latex(heading(key))


def within(key: str) -> str:
    """The same inside a sentence: `the best fixed action`, `DAPO`."""
    name = strategy(key)
    spoken_as = name if name[:2].isupper() or key.startswith("listing") else f"{name[0].lower()}{name[1:]}"
    return _WITHIN.get(key, spoken_as)


def asset(key: str) -> str:
    """A coin, or all together."""
    return "All" if key == TOGETHER else escape_latex(key)


def part(key: str) -> str:
    """Of a cost."""
    return _PARTS[key]


def spoken(text: str) -> str:
    """A reason from a table with the names of strategies instead of their keys."""
    keys = sorted(STRATEGY_COLOURS, key=len, reverse=True)
    return re.sub(rf"\b({'|'.join(keys)})\b", lambda match: within(match[1]), text)
