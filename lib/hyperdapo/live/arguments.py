"""What the commands `paper`, `replay-live` and `demo` can be told; nothing is imported before one of them runs."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any, profile: str) -> None:
    """Add them to a parser's commands; `profile` is that of a session where none is named."""
    _add_paper(commands, profile)
    _add_replay(commands)
    _add_demo(commands)


def _paper(options: argparse.Namespace) -> None:
    from hyperdapo.live import commands

    commands.paper(options)


def _replay(options: argparse.Namespace) -> None:
    from hyperdapo.live import commands

    commands.replay_live(options)


def _demo(options: argparse.Namespace) -> None:
    from hyperdapo.live import commands

    commands.demo(options)


def _add_paper(commands: Any, profile: str) -> None:
    paper = commands.add_parser("paper", help="trade on paper on live messages, and hold a session against its record")
    paper.set_defaults(call=_paper)
    paper.add_argument("--profile", default=profile)
    paper.add_argument("--params", type=Path, help="one more YAML file of parameters, laid on top of the profile")
    paper.add_argument("--run", metavar="NAME", help="a run that was made before, in place of a profile")
    paper.add_argument("--asset", nargs="+", metavar="A", help="one or more (default: the first of the run)")
    paper.add_argument(
        "--minutes", type=_positive, default=30.0, help="of the market in which orders are sent (default: 30)"
    )
    paper.add_argument("--endpoint", metavar="ADDRESS", help="in place of live.endpoint")
    paper.add_argument("--action", metavar="WORD", help="take this one action always, such as join; no model is read")
    paper.add_argument("--policy", metavar="NAME", help="an algorithm that the run has trained, or untrained")
    paper.add_argument("--training-seed", type=int, metavar="N", help="of the policy (default: the run's first)")
    paper.add_argument("--session", metavar="NAME", help="of its folder; one that was begun goes on")
    paper.add_argument("--reconcile", metavar="SESSION", help="hold a session, by name or folder, against its record")
    paper.add_argument("--figure", action="store_true", help="with --reconcile: draw it too")


def _add_replay(commands: Any) -> None:
    replay = commands.add_parser(
        "replay-live", help="play recordings or the synthetic exchange as a WebSocket of the exchange (docs/live.md)"
    )
    replay.set_defaults(call=_replay)
    replay.add_argument(
        "folder", type=Path, nargs="?", help="of files ASSET.ndjson.gz (default: the synthetic exchange)"
    )
    replay.add_argument("--profile", default="smoke", help="of the synthetic exchange (default: smoke)")
    replay.add_argument("--asset", nargs="+", metavar="A", help="only these")
    replay.add_argument("--speed", type=_positive, default=1.0, help="so many times as fast (default: 1)")
    replay.add_argument("--port", type=int, default=8912, help="on this machine (default: 8912; 0: a free one)")
    faults = replay.add_argument_group("what goes wrong, in seconds of the market")
    faults.add_argument("--drop-at", type=_seconds, default=[], metavar="S,S", help="the connections are lost then")
    faults.add_argument("--garbage-every", type=int, default=0, metavar="N", help="nonsense after so many messages")
    faults.add_argument("--slow-at", type=float, metavar="S", help="from then on books come every 5 s ...")
    faults.add_argument("--slow-for", type=_positive, default=60.0, metavar="S", help="... for so long (default: 60)")


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="two minutes of paper trading on the synthetic exchange, without network")
    demo.set_defaults(call=_demo)
    demo.add_argument("--speed", type=_positive, default=20.0, help="so many times as fast (default: 20)")
    demo.add_argument("--minutes", type=_positive, default=36.0, help="of the market (default: 36)")
    demo.add_argument("--policy", metavar="NAME", help="as of paper (default: the trained one, or to join always)")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _seconds(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seconds such as 30,60") from None
