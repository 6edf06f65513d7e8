"""What the commands `hyperdapo paper` and `hyperdapo replay-live` do."""

import asyncio
from argparse import Namespace
from collections.abc import Sequence

from hyperdapo.errors import DataError, MissingInputError, ParameterError
from hyperdapo.live.deciding import decider_of
from hyperdapo.live.figure import draw
from hyperdapo.live.paper import Paper
from hyperdapo.live.reconcile import reconcile
from hyperdapo.live.rehearsal import rehearse
from hyperdapo.live.replay.faults import Faults
from hyperdapo.live.replay.server import replay
from hyperdapo.live.replay.source import Source
from hyperdapo.live.session import Session
from hyperdapo.live.view import shown
from hyperdapo.params import Parameters, load, recall
from hyperdapo.paths import Paths

UNTRAINED = "untrained"


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
    print(f"session {session.name} in {session.folder}", flush=True)
    for asset in session.asked.assets:
        rehearse(session.asked.parameters(asset), asset)
    trader = Paper(session, decider_of(session.asked))
    with shown() as (show, every_s):
        asyncio.run(trader.run(options.minutes, show, every_s))
    print(f"{len(trader.orders())} orders have ended: {session.folder / 'orders.parquet'}", flush=True)
    print(f"to hold them against the record: hyperdapo paper --reconcile {session.name}", flush=True)


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
    parameters = recall(options.run) if options.run else load(options.profile)
    if not options.endpoint:
        return parameters
    live = parameters.live.model_copy(update={"endpoint": options.endpoint})
    return parameters.model_copy(update={"live": type(live).model_validate(live.model_dump())})


def _who(options: Namespace, parameters: Parameters) -> dict[str, object]:
    """Who decides: the action that is asked for, or the policy, which must be trained."""
    if options.action:
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
