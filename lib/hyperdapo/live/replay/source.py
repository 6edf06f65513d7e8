"""The messages that a replay sends, in the order in which they were received: of recordings, or of the synthetic
exchange."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

from hyperdapo.errors import DataError
from hyperdapo.market.native import STAMP_LENGTH, channel_of, local_time, local_times
from hyperdapo.params import Parameters
from hyperdapo.synthetic.exchange import World
from hyperdapo.synthetic.replay_server import RecordedSlices, Slices, SyntheticSlices
from hyperdapo.times import MINUTE_NS, Span

_COIN = re.compile(rb'"coin"\s*:\s*"([^"]+)"')


class Sent(NamedTuple):
    """One message: when it was received, its channel and coin, and its text. A disconnect has neither."""

    ns: int
    channel: str
    coin: str
    text: bytes


class Source(NamedTuple):
    """Lines to be replayed: where they are, which coins they are of, and from when to when (whole minutes, ns)."""

    slices: Sequence[Slices]
    coins: tuple[str, ...]
    span: Span

    @classmethod
    def recordings(cls, folder: Path, coins: Sequence[str] = ()) -> "Source":
        """Files `ASSET.ndjson.gz` under a folder; only these coins, or all.

        Raises
        ------
        DataError
            If there is none, one of the coins is missing, or a file is damaged.
        """
        slices = RecordedSlices(folder)
        spans = {coin: span for coin, span in slices.spans().items() if not coins or coin in coins}
        if missing := sorted(set(coins) - set(spans)):
            raise DataError(f"{folder} holds no recording of {', '.join(missing)}; it has {sorted(slices.spans())}")
        minutes = [local_time(f"{stamp[:16]}:00.0000000Z".encode()) for span in spans.values() for stamp in span]
        return cls([slices], tuple(spans), (min(minutes), max(minutes)))

    @classmethod
    def synthetic(cls, parameters: Parameters, coins: Sequence[str] = ()) -> "Source":
        """The synthetic exchange over the span of `parameters.source`; only these coins, or all of the run.

        Raises
        ------
        ParameterError
            If the run does not cover one of the coins.
        """
        chosen = tuple(coins or parameters.assets)
        worlds = [World.of(parameters.for_asset(coin), coin) for coin in chosen]
        span = parameters.source.start_ns, parameters.source.end_ns
        return cls([SyntheticSlices(partial(world.play, *span)) for world in worlds], chosen, span)

    def minutes(self) -> Iterator[list[Sent]]:
        """The messages of each minute. The first minute of a synthetic market is long in coming: it is played then."""
        filters: Mapping[str, frozenset[str] | None] = dict.fromkeys(
            ("l2Book", "bbo", "trades", "activeAssetCtx"), frozenset(self.coins)
        )
        for minute in pairwise(range(self.span[0], self.span[1] + 1, MINUTE_NS)):
            parts = [_read(slices.lines(filters, *minute), minute[0]) for slices in self.slices]
            yield parts[0] if len(parts) == 1 else sorted(chain(*parts), key=lambda sent: sent.ns)


def _read(lines: bytes, begin_ns: int) -> list[Sent]:
    """The messages of lines with stamps; a blank line has the time of the line before it."""
    texts = lines.splitlines()
    stamps, sent, latest = iter(local_times([text for text in texts if text]).tolist()), list[Sent](), begin_ns
    for text in texts:
        if not text:
            sent.append(Sent(latest, "", "", b""))
            continue
        latest = max(next(stamps), latest)
        coin = _COIN.search(text)
        if coin is not None:
            sent.append(Sent(latest, channel_of(text), coin[1].decode(), text[STAMP_LENGTH + 1 :]))
    return sent
