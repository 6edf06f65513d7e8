"""Notices in words, after which the price of a synthetic asset drifts: what a book does not show.

A notice says something that is good for the price, bad, or neither (`wordings`). Some time after it, when whoever reads
notices has read it, the price drifts up, down, or as always. Nothing else in the market changes, so that until then no
feature of the book knows of it. A notice is no message of the exchange: it comes from a news wire beside the feed, and
is made here from the same seed whenever it is asked for.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo.params import Parameters
from hyperdapo.sections import Notices
from hyperdapo.synthetic.wordings import KNOWN, NEW
from hyperdapo.times import SECOND_NS

PUSH = np.dtype([("begins_ns", np.int64), ("ends_ns", np.int64), ("drift", np.float64)])
"""Of the log price per second, while a notice moves it."""

DIRECTIONS = {"up": 1, "down": -1, "calm": 0}
_PURPOSE = zlib.crc32(b"notices")
_DRAWS = 4  # a notice: when it comes, what kind it is, how it is worded


def schedule(notices: Notices, asset: str, seed: int, start_ns: int, end_ns: int) -> pd.DataFrame:
    """The notices of an asset that come in a span; another end gives the same ones up to the earlier end.

    Returns
    -------
    `local_ns`, `kind` (up, down, calm), and the draws `is_new` and `wording`, uniform in [0, 1)
    """
    if notices.per_hour == 0:
        return pd.DataFrame({"local_ns": np.zeros(0, np.int64), "kind": [], "is_new": [], "wording": []})
    least_s, mean_s = notices.after_s + notices.lasts_s, 3600 / notices.per_hour
    most = int((end_ns - start_ns) / SECOND_NS / least_s) + 1
    draws = np.random.default_rng([seed, zlib.crc32(asset.encode()), _PURPOSE]).random((most, _DRAWS))
    waits_s = least_s - (mean_s - least_s) * np.log1p(-draws[:, 0])
    local_ns = start_ns + np.rint(np.cumsum(waits_s) * SECOND_NS).astype(np.int64)
    kind = np.array(list(DIRECTIONS), dtype=object)[(draws[:, 1] * len(DIRECTIONS)).astype(int)]
    table = pd.DataFrame({"local_ns": local_ns, "kind": kind, "is_new": draws[:, 2], "wording": draws[:, 3]})
    return table[table["local_ns"] < end_ns]


def pushes(notices: Notices, asset: str, seed: int, start_ns: int, end_ns: int) -> NDArray[Any]:
    """(n,) of `PUSH`, in the order of time and never two at once: what the notices of a span do to the price."""
    table = schedule(notices, asset, seed, start_ns, end_ns)
    rows = np.zeros(len(table), PUSH)
    rows["begins_ns"] = table["local_ns"] + round(notices.after_s * SECOND_NS)
    rows["ends_ns"] = rows["begins_ns"] + round(notices.lasts_s * SECOND_NS)
    rows["drift"] = table["kind"].map(DIRECTIONS).to_numpy(float) * notices.drift_bps * 1e-4 / notices.lasts_s
    return rows


def wire(parameters: Parameters, asset: str) -> pd.DataFrame:
    """What the news wire of a run says: `local_ns, kind, wording` (`known` or `new`), `text`.

    In the test split half of the notices are worded as none was before it.
    """
    source, split = parameters.source, parameters.split
    table = schedule(parameters.synthetic.notices, asset, parameters.seed, source.start_ns, source.end_ns)
    tested_ns = source.start_ns + round((split.train + split.validation) * (source.end_ns - source.start_ns))
    is_new = (table["local_ns"] >= tested_ns) & (table["is_new"] < 0.5)
    rows = zip(table["kind"], is_new, table["wording"], strict=True)
    texts = [_worded((NEW if new else KNOWN)[kind], draw) for kind, new, draw in rows]
    return table.assign(wording=np.where(is_new, "new", "known"), text=texts)[["local_ns", "kind", "wording", "text"]]


def with_notices(parts: Iterator[pd.DataFrame], parameters: Parameters, asset: str) -> Iterator[pd.DataFrame]:
    """Features with the newest notice that the price has not followed yet: `notice, notice_kind, notice_wording` (""
    where there is none) and `notice_age_s` (NaN)."""
    said = wire(parameters, asset)
    heard = said.rename(columns={"text": "notice", "kind": "notice_kind", "wording": "notice_wording"})
    for part in parts:
        within = pd.Timedelta(parameters.synthetic.notices.after_s, "s").value
        joined = pd.merge_asof(
            part, heard, left_on="decision_ns", right_on="local_ns", tolerance=within, allow_exact_matches=False
        )
        age_s = (joined["decision_ns"] - joined["local_ns"]) / SECOND_NS
        texts = {name: joined[name].fillna("") for name in ("notice", "notice_kind", "notice_wording")}
        yield joined.drop(columns="local_ns").assign(**texts, notice_age_s=age_s).set_index(part.index)


def _worded(texts: tuple[str, ...], draw: float) -> str:
    return texts[int(draw * len(texts))]
