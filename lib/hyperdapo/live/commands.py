"""What the commands `hyperdapo paper`, `replay-live` and `demo` do."""

import asyncio
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hyperdapo.errors import DataError, EndpointError, MissingInputError, ParameterError
from hyperdapo.live.deciding import Fixed, decider_of
from hyperdapo.live.figure import draw
from hyperdapo.live.paper import Paper
from hyperdapo.live.reconcile import reconcile
from hyperdapo.live.rehearsal import rehearse
from hyperdapo.live.replay.faults import Faults
from hyperdapo.live.replay.server import replay
from hyperdapo.live.replay.source import Source
from hyperdapo.live.session import Session
from hyperdapo.live.view import shown
from hyperdapo.params import Parameters, load, merge, overrides_of, portable, read, recall
from hyperdapo.paths import Paths

UNTRAINED = "untrained"
_DEMO = "smoke"
"""The profile of the demonstration: a short market, and a tiny model."""
_DEMO_FAULTS = ("--drop-at", "900,1500", "--garbage-every", "500", "--slow-at", "1950", "--slow-for", "60")


def paper(options: Namespace) -> None:
    """Trade on paper, or hold a session against its record.

    Raises
    ------
    DataError
        If an order of the session differs from its replay.
    And what the session raises.
    """
    if options.reconcile:
        held_against_record(Session.find(options.reconcile, options.run), draws=options.figure)
        return
    parameters = _parameters(options)
    session = Session.begin(
        parameters, options.asset or parameters.assets[:1], options.session, **_who(options, parameters)
    )
    trade(session, options.minutes)
    print(f"to hold them against the record: hyperdapo paper --reconcile {session.name}", flush=True)


def trade(session: Session, minutes: float) -> None:
    """Run a session for so many minutes of the market, and say where it lies; raises as `Paper.run`."""
    print(f"session {session.name} in {session.folder}", flush=True)
    decider = decider_of(session.asked)
    for asset in session.asked.assets:
        rehearse(session.asked.parameters(asset), asset, decider)
    trader = Paper(session, decider)
    with shown() as (show, every_s):
        asyncio.run(trader.run(minutes, show, every_s))
    health = trader.health
    named = {"refused": health.refused, "void": health.voided, "not counted": health.dropped, "drops": health.drops}
    for what, causes in named.items():
        print(f"{what}: " + (", ".join(f"{count} {cause}" for cause, count in causes.most_common()) or "none"))
    print(f"{len(trader.orders())} orders have ended: {session.folder}", flush=True)


def demo(options: Namespace) -> None:
    """Play the synthetic exchange, trade on it (by a policy if one is trained), reconcile, draw; raises as `paper`."""
    parameters = load(_DEMO)
    print("playing the synthetic exchange (the first time, it is compiled: a minute) ...", flush=True)
    with _replayed(options.speed) as address:
        chosen = _at(parameters, address)
        trained = Paths(_DEMO, chosen.assets[0]).adapter(chosen.hypotheses.policy, chosen.training.seeds[0]).exists()
        policy = options.policy or (chosen.hypotheses.policy if trained else "")
        who = {"policy": policy, "seed": chosen.training.seeds[0]} if policy else {"action": "join"}
        session = Session.begin(chosen, chosen.assets, None, **who)
        trade(session, options.minutes)
    held_against_record(session, draws=True)


@contextmanager
def _replayed(speed: float) -> Iterator[str]:
    """A process that plays the synthetic exchange with faults: its address."""
    command = [sys.executable, "-m", "hyperdapo.cli", "replay-live", "--profile", _DEMO, "--speed", f"{speed:g}"]
    with subprocess.Popen([*command, "--port", "0", *_DEMO_FAULTS], stdout=subprocess.PIPE, text=True) as playing:
        try:
            assert playing.stdout is not None
            first = playing.stdout.readline()
            if not first:
                raise EndpointError("the synthetic exchange did not begin: see above")
            yield first.split()[0]
        finally:
            playing.terminate()


def held_against_record(session: Session, draws: bool) -> None:
    """Reconcile a session, print the table, and draw it if asked; raises DataError where an order differs."""
    result = reconcile(session)
    print(result.text())
    if draws:
        print(f"figure: {draw(session, session.asked.assets[0])}")
    if len(result.different):
        raise DataError(f"{len(result.different)} orders differ from their replay: {session.folder / 'reconcile.csv'}")


def replay_live(options: Namespace) -> None:
    """Play recordings, or the synthetic exchange of a profile; raises as `Source` and `server.Exchange.serve`."""
    coins: Sequence[str] = options.asset or ()
    if options.folder is not None:
        source = Source.recordings(options.folder, coins)
    else:
        source = Source.synthetic(load(options.profile), coins)
    faults = Faults(
        drop_at_s=tuple(options.drop_at),
        garbage_every=options.garbage_every,
        slow_s=((options.slow_at, options.slow_at + options.slow_for),) if options.slow_at is not None else (),
    )
    replay(source, options.speed, options.port, faults)


def _parameters(options: Namespace) -> Parameters:
    """Those of a run or a profile, with the address to listen to where one is given."""
    laid = portable(read(options.params), Path.cwd()) if options.params else {}
    parameters = recall(options.run) if options.run else load(options.profile, laid)
    return _at(parameters, options.endpoint) if options.endpoint else parameters


def _at(parameters: Parameters, endpoint: str) -> Parameters:
    """The same with another address; the run keeps its name, for what it has learnt is the same.

    Raises
    ------
    ParameterError
        If it is no address.
    """
    changed = merge(overrides_of(parameters), {"live": {"endpoint": endpoint}})
    return load(parameters.profile, changed).model_copy(update={"name": parameters.name})


def _who(options: Namespace, parameters: Parameters) -> dict[str, object]:
    """Who decides: the action that is asked for, or the policy, which must be trained."""
    if options.action:
        Fixed(parameters.policy.actions, options.action)
        return {"action": options.action}
    algorithm = options.policy or parameters.hypotheses.policy
    seed = parameters.training.seeds[0] if options.training_seed is None else options.training_seed
    if algorithm != UNTRAINED and algorithm not in parameters.training.algorithms:
        raise ParameterError(f"--policy {algorithm!r}: the run trains {', '.join(parameters.training.algorithms)}")
    for asset in options.asset or parameters.assets[:1]:
        if algorithm != UNTRAINED and not Paths(parameters.name, asset).adapter(algorithm, seed).exists():
            raise MissingInputError(
                f"{algorithm} is not trained for {asset} in the run {parameters.name!r}: hyperdapo run --until 05, or "
                "choose --action join, or --policy untrained"
            )
    return {"policy": algorithm, "seed": seed}
