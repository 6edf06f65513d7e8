"""The command `hyperdapo`: argument parsing only."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from time import monotonic
from typing import Any

from hyperdapo.errors import HyperdapoError, ParameterError
from hyperdapo.live import arguments
from hyperdapo.params import Parameters, load, overrides_of, portable, read, recall

# jsonschema, with which papermill comes, would build a grammar of web addresses at each start: a second of every job,
# for a format that no notebook has. It does without where this package is not installed.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


DEFAULT = "sample"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and call what it names; a user's mistake ends in one line, never in a traceback."""
    options = _parser().parse_args(arguments)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for kernels that nothing here needs
    try:
        options.call(options)
    except HyperdapoError as error:
        print(f"hyperdapo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print("hyperdapo: stopped; run the same command again to go on where it was", file=sys.stderr)
        return 128 + getattr(stopped, "number", signal.SIGINT)
    return 0


def _chosen(options: argparse.Namespace) -> tuple[Parameters, dict[str, Any]]:
    """The run that a user means: by its name alone where it was made before, else by profile and what is laid on it."""
    if options.name and not (options.profile or options.params or options.asset):
        parameters = recall(options.name)
        return parameters, overrides_of(parameters)
    overrides = portable(read(options.params), Path.cwd()) if options.params else {}
    overrides |= {"assets": options.asset} if options.asset else {}
    overrides |= {"name": options.name} if options.name else {}
    return load(options.profile or DEFAULT, overrides), overrides


def _run(options: argparse.Namespace) -> None:
    from hyperdapo import plan
    from hyperdapo.paths import Paths
    from hyperdapo.workflow import preflight, run

    parameters, overrides = _chosen(options)
    preflight.check(parameters, plan.wanted(options.until, options.only))
    begun = monotonic()
    more = (options.only, options.force, options.dry_run, options.workflow_profile)
    run.run(parameters, overrides, options.until, options.cores, *more)
    if not options.dry_run:
        print(run.summary(Paths(parameters.name), monotonic() - begun))


def _stage(options: argparse.Namespace) -> None:
    from hyperdapo import gpus, plan
    from hyperdapo.paths import Paths
    from hyperdapo.stages import compute

    stage, parameters = plan.named(options.stage), load(options.profile, options.overrides, options.asset)
    wanted = {"07_inference": 1} | dict.fromkeys(["05_train", "06_convergence"], parameters.training.processes)
    label, watch = plan.unit(stage, options.asset or ""), None
    if stage == "05_train":
        from hyperdapo.evidence.figures.convergence import Watch

        watch = Watch(parameters, Paths(parameters.name, options.asset))
    with (
        _as_job(parameters.name, label, label.replace(" ", "_")) as bar,
        gpus.reserved(wanted.get(stage, 0)),
        redirect_stderr(bar or sys.stderr),
    ):
        compute(stage, parameters, options.asset or "", options.again in (stage, stage[:2]), watch)


def _render(options: argparse.Namespace) -> None:
    from hyperdapo import plan
    from hyperdapo.evidence import provenance
    from hyperdapo.paths import NOTEBOOKS, Paths
    from hyperdapo.workflow import locks, rendering, stale

    parameters = load(options.profile, options.overrides)
    if options.text:
        with locks.run_lock():
            changed = rendering.refresh(Paths(parameters.name))
        print(f"{len(changed)} renders reworded: {', '.join(changed)}" if changed else "no wording has changed")
        return
    if not (options.stage and options.output):
        raise ParameterError("render: name a stage and where its render goes, or --text for the prose of all renders")
    stage, paths = plan.named(options.stage), Paths(parameters.name, options.asset or "")
    given = {"profile": options.profile, "overrides": options.overrides}
    given |= {"asset": options.asset} if options.asset else {}
    label = plan.unit(f"{stage[:2]}_render", paths.asset)
    with _as_job(parameters.name, label, options.output.stem) as bar:
        rendering.render(NOTEBOOKS / f"{stage}.ipynb", options.output, given, bar)
        provenance.record_render(paths, stage, options.output, stale.shown_with(stage, parameters))
        provenance.write(parameters, paths, plan.units(parameters.assets))


def _train(options: argparse.Namespace) -> None:
    from hyperdapo import gpus
    from hyperdapo.evidence.figures.convergence import Watch
    from hyperdapo.paths import Paths
    from hyperdapo.policy import runs, training

    parameters = load(options.profile, options.overrides)
    chosen = training.runs_of(parameters, options.asset, options.algorithm, options.seed)
    parts = [str(part) for part in (options.asset, options.algorithm, options.seed) if part is not None]
    label, paths = " ".join(["05_run", *parts]), Paths(parameters.name, options.asset)
    with (
        _as_job(parameters.name, label, label.replace(" ", "_")) as bar,
        gpus.reserved(parameters.training.processes),
        redirect_stderr(bar or sys.stderr),
    ):
        training.train_asset(parameters, options.asset, chosen, Watch(parameters, paths))
    for algorithm, seed in chosen:
        os.utime(paths.adapter(algorithm, seed) / runs.MANIFEST)  # as new as what it stands on


def _compare(options: argparse.Namespace) -> None:
    from hyperdapo.evidence import comparison
    from hyperdapo.paths import outputs_root

    tables = comparison.compare(options.first, options.second)
    folder = outputs_root() / f"{options.first}_vs_{options.second}"
    comparison.write(options.first, options.second, tables, folder)
    print(comparison.text(options.first, options.second, tables))
    print(f"the same as CSV, and a figure, in {folder}")


def _study(options: argparse.Namespace) -> None:
    from hyperdapo.studies import language

    parameters, _ = _chosen(options)
    print(language.study(parameters))


def _plan(options: argparse.Namespace) -> None:
    from hyperdapo.workflow import estimate, probe

    parameters, _ = _chosen(options)
    sheet = estimate.gpu(options.gpu) if options.gpu else None
    machine = estimate.Machine(options.gpu, sheet.memory_gb, sheet.dollars_per_hour, 2) if sheet else probe.here()
    shape, text = probe.shape_of(parameters), probe.text_of(parameters)
    if options.calibrate:
        rates = probe.measure(parameters)
    elif sheet:
        rates = estimate.rates_of(sheet, parameters, shape, text)
    else:
        raise ParameterError(f"which machine? --gpu {next(iter(estimate.GPUS))}, or --calibrate to measure this one")
    print(estimate.report(parameters, shape, text, machine, rates))


def _judge(options: argparse.Namespace) -> None:
    from hyperdapo.evidence.hypotheses import ledger, registered
    from hyperdapo.paths import Paths
    from hyperdapo.studies.judgement import judge

    overrides = portable(read(options.params), Path.cwd()) | ({"name": options.name} if options.name else {})
    parameters, judged = judge(options.run, overrides)
    print(registered.verdict(judged))
    print(f"{ledger.summary(Paths(options.run))}; table: {Paths(parameters.name).tables / 'hypotheses.csv'}")


@contextmanager
def _as_job(run_name: str, label: str, name: str) -> Iterator[Any]:
    """End with the workflow that called, yield where to write a progress bar for it, and leave it the own error."""
    from hyperdapo import processes
    from hyperdapo.workflow import progress, rendering, run

    bar = None
    if processes.MARK in os.environ:
        processes.die_with_parent()
        bar = rendering.Bar(progress.bar_file(run_name, name), sys.stderr)
    try:
        yield bar
    except HyperdapoError as error:
        note = run.failures(run_name) / f"{name}.txt"
        with suppress(OSError):  # a full disk must not hide the error itself
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(f"{label}: {error}\n")
        raise


def _serve_recordings(options: argparse.Namespace) -> None:
    from hyperdapo.synthetic.replay_server import serve_recordings

    serve_recordings(options.folder, options.port)


def _serve(options: argparse.Namespace) -> None:
    from hyperdapo.serving.server import serve

    serve(recall(options.run), options.asset, options.host, options.port, options.upstream)


def _remote(options: argparse.Namespace) -> None:
    from hyperdapo.evidence.provenance import commit
    from hyperdapo.remote import remote
    from hyperdapo.remote.connection import Host

    host = Host(options.host, options.folder, options.port, options.ssh)
    parameters, overrides = _chosen(options)
    request = remote.Request.of(options.stage, parameters.profile, overrides, commit()) if options.stage else None
    if options.status:
        print(remote.status(host))
    elif options.stop:
        print(remote.stop(host))
    elif options.fetch:
        print(remote.fetch(host, request))
    elif request:
        remote.run(host, request)
    else:
        raise ParameterError("which stage? For example: hyperdapo remote HOST 05_train --asset BTC")


def _report(options: argparse.Namespace) -> None:
    from hyperdapo.paths import Paths
    from hyperdapo.report import site

    parameters = recall(options.profile)
    paths = Paths(parameters.name)
    folder = site.folder_of(paths)
    print(f"{site.build(paths, parameters.assets, folder)} pages: open {folder / 'index.html'}")


def _verify(options: argparse.Namespace) -> None:
    from hyperdapo.evidence import verification
    from hyperdapo.paths import Paths
    from hyperdapo.workflow import run

    parameters, paths = load(options.profile), Paths(options.profile)
    verification.check_folders(options.run_folder, options.reference)
    reference = options.reference or verification.keep_reference(paths)
    if not options.no_run and not options.run_folder:
        run.run(parameters, {}, None, options.cores)
    try:
        verification.verify(reference, options.run_folder or paths.outputs, None if options.run_folder else parameters)
    finally:
        verification.forget_reference(paths)  # it has been compared with; the next run is held against the HEAD of then


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port (1 to 65535)")
    return int(text)


def _mapping(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise argparse.ArgumentTypeError("give a JSON object of parameters")
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hyperdapo", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--profile", help=f"params/PROFILE.yaml (default: {DEFAULT})")
    chosen.add_argument("--params", type=Path, help="one more YAML file of parameters, laid on top of the profile")
    chosen.add_argument("--asset", nargs="+", metavar="A", help="only these assets")
    chosen.add_argument(
        "--name", help="of the run's folders (default: the profile's, or one after a hash where it differs)"
    )
    _add_run(commands, chosen)
    _add_stage(commands)
    _add_train(commands)
    _add_render(commands)
    _add_compare(commands)
    _add_study(commands, chosen)
    _add_plan(commands, chosen)
    _add_judge(commands)
    _add_serve_recordings(commands)
    arguments.add(commands, DEFAULT)
    _add_serve(commands)
    _add_remote(commands, chosen)
    _add_report(commands)
    _add_verify(commands)
    return parser


def _add_run(commands: Any, chosen: argparse.ArgumentParser) -> None:
    run = commands.add_parser("run", parents=[chosen], help="bring a profile's notebooks up to date")
    run.set_defaults(call=_run)
    which = run.add_mutually_exclusive_group()
    which.add_argument("--until", metavar="NN", help="stop after this notebook, for example 03")
    which.add_argument("--only", metavar="NN", help="this notebook alone; what it reads must be there")
    run.add_argument("--force", metavar="NN", help="run this notebook again, and what depends on it")
    run.add_argument("--dry-run", action="store_true", help="only say what would run, and why")
    run.add_argument(
        "--cores", type=_count, default=os.cpu_count() or 1, help="stages side by side (default: all cores)"
    )
    run.add_argument(
        "--workflow-profile", metavar="NAME", help="have a cluster run the jobs: slurm, or a folder (docs/cluster.md)"
    )


def _add_stage(commands: Any) -> None:
    stage = commands.add_parser("stage", help="compute one stage, and draw nothing (what the workflow calls)")
    stage.set_defaults(call=_stage)
    stage.add_argument("stage", help="for example 03")
    stage.add_argument("--profile", default=DEFAULT)
    stage.add_argument("--asset", help="where the stage is made for one")
    stage.add_argument("--again", metavar="NN", default="", help="compute it though it stands, if it is this one")
    stage.add_argument("--overrides", type=_mapping, default={}, help="JSON of parameters laid on top of the profile")


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser("compare", help="lay two runs side by side: parameters, main table, differences")
    compare.set_defaults(call=_compare)
    compare.add_argument("first", metavar="A", help="name of a run: a profile's, or that of --name")
    compare.add_argument("second", metavar="B")


def _add_study(commands: Any, chosen: argparse.ArgumentParser) -> None:
    study = commands.add_parser(
        "study", parents=[chosen], help="what is language for? Train the same policy on other words (after --until 04)"
    )
    study.set_defaults(call=_study)


def _add_plan(commands: Any, chosen: argparse.ArgumentParser) -> None:
    plan = commands.add_parser(
        "plan", parents=[chosen], help="say what a run asks of a machine: states, tokens, memory, hours, dollars"
    )
    plan.set_defaults(call=_plan)
    plan.add_argument("--gpu", metavar="NAME", help="a device to rent, for example a100-40")
    plan.add_argument("--calibrate", action="store_true", help="measure the rates of this machine (a minute or two)")


def _add_judge(commands: Any) -> None:
    judge = commands.add_parser(
        "judge", help="test the registered hypotheses on a new span, with what a finished run learned"
    )
    judge.set_defaults(call=_judge)
    judge.add_argument(
        "--run", required=True, metavar="NAME", help="of the finished run: a profile's, or that of --name"
    )
    judge.add_argument(
        "--params", required=True, type=Path, help="YAML with the source of the span: from, to, endpoint"
    )
    judge.add_argument("--name", help="of the folders of the span (default: the profile's after a hash)")


def _add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train runs of one asset (what the workflow calls on a cluster)")
    train.set_defaults(call=_train)
    train.add_argument("--profile", default=DEFAULT)
    train.add_argument("--asset", required=True, help="or 'all': the generalist of 06")
    train.add_argument("--algorithm", help="this one only (default: all)")
    train.add_argument("--seed", type=int, help="this one only (default: all)")
    train.add_argument("--overrides", type=_mapping, default={}, help="JSON of parameters laid on top of the profile")


def _add_render(commands: Any) -> None:
    render = commands.add_parser(
        "render", help="execute one notebook (what the workflow calls), or refresh the prose of all renders (--text)"
    )
    render.set_defaults(call=_render)
    render.add_argument("stage", nargs="?", help="for example 03_features")
    render.add_argument("output", type=Path, nargs="?", help="where the rendered notebook goes")
    render.add_argument(
        "--text", action="store_true", help="put the notebooks' present Markdown into the renders of the finished run"
    )
    render.add_argument("--profile", default=DEFAULT)
    render.add_argument("--asset")
    render.add_argument("--overrides", type=_mapping, default={}, help="JSON of parameters laid on top of the profile")


def _add_serve_recordings(commands: Any) -> None:
    serve = commands.add_parser("serve-recordings", help="serve recorded *.ndjson.gz files as a Tardis endpoint")
    serve.set_defaults(call=_serve_recordings)
    serve.add_argument("folder", type=Path)
    serve.add_argument("--port", type=_port, default=8911)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="decide over HTTP by the adapters of a run (docs/deploy.md)")
    serve.set_defaults(call=_serve)
    serve.add_argument("--run", "--profile", default=DEFAULT, metavar="NAME", help="profile or --name of the run")
    serve.add_argument("--asset", nargs="+", metavar="A", help="only these assets")
    serve.add_argument("--host", default="127.0.0.1", help="any but this machine's own needs HYPERDAPO_TOKEN")
    serve.add_argument("--port", type=_port, default=8000)
    serve.add_argument(
        "--upstream",
        action="append",
        default=[],
        metavar="URL",
        help="have it read the prompts: vLLM, SGLang, hyperdapo",
    )


def _add_remote(commands: Any, chosen: argparse.ArgumentParser) -> None:
    remote = commands.add_parser(
        "remote", parents=[chosen], help="run one notebook on a rented host, over ssh (docs/a100.md)"
    )
    remote.set_defaults(call=_remote)
    remote.add_argument("host", metavar="HOST", help="what ssh accepts: user@host, or a name of ~/.ssh/config")
    remote.add_argument("stage", metavar="STAGE", nargs="?", help="for example 05_train")
    remote.add_argument("--port", type=_port, help="of ssh (default: as ~/.ssh/config says)")
    remote.add_argument("--folder", default="hyperdapo", help="where the repository goes there (default: hyperdapo)")
    remote.add_argument("--ssh", default="ssh", metavar="COMMAND", help="how to call ssh, for example 'ssh -i key'")
    instead = remote.add_mutually_exclusive_group()
    instead.add_argument("--status", action="store_true", help="say how it stands there")
    instead.add_argument("--fetch", action="store_true", help="bring what is there, checkpoints of a running stage too")
    instead.add_argument("--stop", action="store_true", help="end what runs there")


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="make a site of what a finished run shows, to read in a browser")
    report.set_defaults(call=_report)
    report.add_argument("--profile", default=DEFAULT, metavar="NAME", help="or the --name of a run")


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser("verify", help="say, number by number, what came back the same")
    verify.set_defaults(call=_verify)
    verify.add_argument("--profile", default=DEFAULT)
    verify.add_argument("--run", dest="run_folder", type=Path, help="a finished run's outputs (default: this one's)")
    verify.add_argument("--reference", type=Path, help="outputs to compare with (default: the committed ones)")
    verify.add_argument("--no-run", action="store_true", help="compare what is there, bring nothing up to date")
    verify.add_argument("--cores", type=_count, default=os.cpu_count() or 1)


if __name__ == "__main__":
    sys.exit(main())
