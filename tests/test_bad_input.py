"""What users get wrong, on the command line and in YAML: one line that says what and where, before anything runs."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPOSITORY
from hyperdapo import plan, stages
from hyperdapo.cli import main
from hyperdapo.errors import MissingInputError
from hyperdapo.params import load, portable, profiles, read
from hyperdapo.workflow import run

ARCHIVE = "source: {kind: archive, channels: [l2Book], endpoint: "


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that gets so far as to run has let the mistake pass."""
    monkeypatch.setattr(run, "run", lambda *_, **__: pytest.fail("the run began"))
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("run --cores 0", "'0' is no whole number above 0"),
        ("run --cores -1", "'-1' is no whole number above 0"),
        ("run --cores two", "'two' is no whole number"),
        ("run --cores 1.5", "'1.5' is no whole number"),
        ("run --until 01 --only 02", "not allowed with argument --until"),
        ("run --profil", "expected one argument"),
        ("run extra", "unrecognized arguments: extra"),
        ("", "COMMAND"),
        ("rum", "invalid choice: 'rum'"),
        ("serve-recordings . --port 99999", "'99999' is no port"),
        ("serve-recordings . --port -1", "'-1' is no port"),
        ("remote h --port 0", "'0' is no port"),
        ("render 03 out.ipynb --overrides {", "not valid JSON"),
        ("render 03 out.ipynb --overrides [1]", "give a JSON object"),
        ("render 03 out.ipynb --overrides 3", "give a JSON object"),
    ],
)
def test_an_argument_that_cannot_be_is_refused(arguments: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("run --profile nosuch", "unknown profile 'nosuch'"),
        ("run --profile ../params/smoke", "unknown profile"),
        ("run --profile base", "unknown profile 'base'"),
        ("run --until 10", "no stage '10'"),
        ("run --until 05_trian", "did you mean '05_train'"),
        ("run --only", "expected one argument"),
        ("run --profile smoke --asset BTC BTC", "assets: 'BTC' stands there twice"),
        ("run --profile smoke --asset DOGE", "contracts: {DOGE: {sz_decimals: N}}"),
        ("run --profile smoke --asset @107", "'@107' is a spot market"),
        ("run --profile smoke --asset PURR/USDC", "'PURR/USDC' is a spot market"),
        ("run --profile smoke --asset ../x", "is a spot market"),
        ("run --profile smoke --asset ..", "'..' is no name of a perpetual"),
        ("run --params nosuch.yaml", "there is no parameter file nosuch.yaml"),
        ("render 3 out.ipynb", "no stage '3'"),
        ("render nosuch out.ipynb", "no stage 'nosuch'"),
        ("remote -oProxyCommand=touch%20pwned 05", "'-oProxyCommand=touch%20pwned' is no host"),
        ("serve-recordings nosuch", "nosuch"),
        ("verify --no-run --run /nope", "/nope"),
    ],
)
def test_a_name_that_is_not_known_is_one_line(arguments: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments.split()
    words = [*words[:1], "--", *words[1:]] if words[1].startswith("-o") else words
    try:
        assert main(words) == 1
    except SystemExit as ended:
        assert ended.code == 2
    told = capsys.readouterr().err
    assert says in told and "Traceback" not in told


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        # not a mapping of parameters
        ("- 1", "must hold a mapping of parameters, not list"),
        ("hello", "must hold a mapping of parameters, not str"),
        ("a: [1", "is not valid YAML"),
        ("seed: 1\nseed: 2", "the key 'seed' stands there twice"),
        ("training: {steps: 4, steps: 5}", "the key 'steps' stands there twice"),
        ("[1]: 2", "unhashable"),
        ("seed: *other", "undefined alias 'other'"),
        ("source: {to: 2025-13-41}", "is not valid YAML"),
        ("seed: !!python/object/apply:os.system ['touch pwned']", "could not determine a constructor"),
        ("profile: thesis", "the profile is chosen by --profile"),
        # names
        ('assets: ["BTC;touch pwned;echo "]', "is no name of a perpetual"),
        ('assets: ["$(touch pwned)"]', "is no name of a perpetual"),
        ('assets: ["../../etc"]', "is a spot market"),
        ('assets: ["BTC\\n"]', "is no name of a perpetual"),
        ('assets: [""]', "is no name of a perpetual"),
        ('assets: ["a:b:c"]', "is no name of a perpetual"),
        ("assets: BTC", "assets: Input should be a valid list"),
        ("assets: []", "assets: List should have at least 1 item"),
        ("assets: [BTC, BTC]", "'BTC' stands there twice"),
        ("assets: [1]", "assets.0: Input should be a valid string"),
        ('contracts: {"x;y": {sz_decimals: 2}}', "is no name of a perpetual"),
        # whole numbers
        ("seed: -1", "seed: Input should be greater than or equal to 0"),
        ("seed: 1.5", "seed: Input should be a valid integer"),
        ("seed: yes", "seed: Input should be a valid integer"),
        ("seed: true", "seed: Input should be a valid integer"),
        ("seed: '7'", "seed: Input should be a valid integer"),
        ("seed: 010", "seed: Input should be a valid integer"),
        ("seed: null", "seed: Input should be a valid integer"),
        ("training: {steps: 0}", "training.steps"),
        ("training: {steps: 1:30}", "training.steps: Input should be a valid integer"),
        ("training: {seeds: [0, 0]}", "0 stands there twice"),
        ("training: {seeds: [-1]}", "training.seeds.0"),
        ("training: {seeds: []}", "training.seeds"),
        ("training: {algorithms: [dapo, dapo]}", "'dapo' stands there twice"),
        ("training: {algorithms: [ppo]}", "training.algorithms.0"),
        ("training: {algorithms: []}", "training.algorithms"),
        ("training: {states_per_update: 15, gradient_accumulation: 2}", "must be a multiple of"),
        ("training: {checkpoint_every: 3}", "must be a multiple of"),
        ("contracts: {BTC: {sz_decimals: 7}}", "contracts.BTC.sz_decimals"),
        ("execution: {fees: {tier: 9}}", "execution.fees.tier"),
        # numbers
        ("orders: {notional_usd: .inf}", "orders.notional_usd: Input should be a finite number"),
        ("orders: {notional_usd: .nan}", "orders.notional_usd"),
        ("orders: {notional_usd: 9}", "orders.notional_usd"),
        ("orders: {notional_usd: lots}", "orders.notional_usd: Input should be a valid number"),
        ("orders: {buy_share: 1.1}", "orders.buy_share"),
        ("orders: {drawdown_threshold_bps: .inf}", "orders.drawdown_threshold_bps: Input should be a finite number"),
        ("orders: {markouts_s: [1, 1]}", "stands there twice"),
        ("orders: {markouts_s: []}", "orders.markouts_s"),
        ("orders: {objectives: [calm]}", "orders.objectives.0"),
        ("orders: {objectives: [balanced, balanced]}", "'balanced' stands there twice"),
        ("orders: {rules: {balanced: {weights: {execution: 0, risk: 0, cost: 0}}}}", "must be above 0"),
        ("features: {window_s: -300}", "features.window_s: Input should be greater than 0"),
        ("features: {decision_interval_s: 0}", "features.decision_interval_s"),
        ("features: {warmup_s: on}", "features.warmup_s: Input should be a valid number"),
        ("features: {warmup_s: true}", "features.warmup_s: Input should be a valid number"),
        ("clean: {max_gap_s: .nan}", "clean.max_gap_s"),
        ("split: {train: 0.9, validation: 0.2}", "must leave a share for the test"),
        ("split: 0.6", "split: Input should be a valid dictionary"),
        ("evidence: {confidence: 95}", "evidence.confidence"),
        ("evidence: {block_s: 0}", "evidence.block_s"),
        ("synthetic: {predictability: 2}", "synthetic.predictability"),
        ("execution: {latency: {preset: fast}}", "execution.latency.preset"),
        ("execution: {latency: {empirical_ms: []}}", "execution.latency.empirical_ms"),
        ("execution: {latency: {empirical_ms: [.inf]}}", "execution.latency.empirical_ms.0"),
        # actions and the model
        ("policy: {actions: [join, take, join]}", "policy.actions: 'join' stands there twice"),
        ("policy: {actions: [-0 bps, +0.0 bps]}", "stands there twice"),
        ("policy: {actions: [take, jion]}", "policy.actions.1: 'jion' is no action (did you mean 'join'?)"),
        ("policy: {actions: [take, improve]}", "'improve' is no action (did you mean 'improve 1'?)"),
        ("policy: {actions: [take, behind 0]}", "'behind 0' is no action (did you mean 'behind 1'?)"),
        ("policy: {actions: [take, improv 3]}", "'improv 3' is no action (did you mean 'improve 3'?)"),
        ("policy: {actions: [-50, 5 bps]}", "-50 is no action (did you mean '-50 bps'?)"),
        ("policy: {actions: [.nan, take]}", "policy.actions.0: nan is no action; there are take, mid, improve N, join"),
        ("policy: {actions: [null, take]}", "policy.actions.0: None is no action; there are take"),
        ("policy: {actions: [-10001 bps, take]}", "'-10001 bps' is no action"),
        ("policy: {actions: [take]}", "policy.actions: List should have at least 2 items"),
        ("policy: {actions: []}", "policy.actions: List should have at least 2 items"),
        ("policy: {actions: take}", "policy.actions: Input should be a valid list"),
        ("policy: {lora: {targets: []}}", "policy.lora.targets"),
        ("policy: {lora: {targets: [q_proj, q_proj]}}", "'q_proj' stands there twice"),
        ("policy: {lora: {targets: [q_porj]}}", "has no layer 'q_porj' (did you mean 'q_proj'?)"),
        ("policy: {lora: {rank: 0}}", "policy.lora.rank"),
        ("policy: {prompt_style: haiku}", "policy.prompt_style"),
        ("policy: {base_model: nobody/nothing-at-all}", "hf download nobody/nothing-at-all"),
        # the source and its span
        ("source: {to: 2025-08-01T00:40:30Z}", "is not a whole minute"),
        ("source: {from: 2025-08-01T00:00:00.5Z}", "is not a whole minute"),
        ("source: {to: 2025-07-01T00:00:00Z}", "empty time span"),
        ("source: {to: soon}", "source.to: Input should be a valid datetime"),
        ("source: {to: 2025-08-01T00:10:00Z}", "lengthen the span, or lower features.warmup_s"),
        ("features: {warmup_s: 7200}", "lengthen the span, or lower features.warmup_s"),
        ("features: {window_s: 3600}", "lengthen the span, or lower features.warmup_s"),
        ("orders: {rules: {balanced: {horizon_s: 3600}}}", "lengthen the span, or lower features.warmup_s"),
        ("source: {kind: tardis, to: 2999-01-01T00:00:00Z}", "has not come yet"),
        ("source: {kind: ftp}", "source.kind"),
        ("source: {channels: []}", "source.channels"),
        ("source: {channels: [l2Book, l2Book]}", "'l2Book' stands there twice"),
        ("source: {channels: [l2book]}", "source.channels.0"),
        ("source: {chanels: [l2Book]}", "did you mean 'channels'"),
        (ARCHIVE + "nosuch}", "nosuch; copy the archive's days into it"),
        ("source: {kind: recordings, endpoint: nosuch}", "nosuch; copy recordings ASSET.ndjson.gz into it"),
        ("source: {kind: recordings}", "set endpoint to it"),
        ("source: {kind: archive, channels: [l2Book]}", "set endpoint to it"),
        ("source: {endpoint: 5}", "source.endpoint: Input should be a valid string"),
        ("truth: {account: nosuch}", "truth.account: there is no file"),
        ("truth: {node_fills: nosuch.jsonl.gz}", "truth.node_fills: there is no file"),
        ("truth: {level3: nosuch}", "truth.level3: there is no folder"),
        ("truth: {hours: -1}", "truth.hours"),
    ],
)
def test_a_parameter_that_cannot_be_is_one_line(
    yaml: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "my.yaml").write_text(yaml)
    assert main(["run", "--profile", "smoke", "--params", "my.yaml"]) == 1
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1, told
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "data").exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"seed: 7  # caf\xe9")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for name, says in (("latin.yaml", "not UTF-8"), ("folder", "cannot be read"), ("socket", "cannot be read")):
            assert main(["run", "--params", name]) == 1
            told = capsys.readouterr().err
            assert name in told and says in told and told.count("\n") == 1


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("a: 5e-5\nb: -3\nc: .5\nd: 1.5e+3\ne: yes\nf: 1:30\ng: true\nh: 0")
    values = {"a": 5e-5, "b": -3, "c": 0.5, "d": 1500.0, "e": "yes", "f": "1:30", "g": True, "h": 0}
    assert read(tmp_path / "my.yaml") == values


def test_a_relative_file_of_the_command_line_is_where_the_user_stands(tmp_path: Path) -> None:
    values = {"source": {"endpoint": "mirror", "kind": "archive"}, "truth": {"account": "/abs", "node_fills": None}}
    made = portable(values, tmp_path)
    assert (REPOSITORY / made["source"]["endpoint"]).resolve() == (tmp_path / "mirror").resolve()
    assert made["truth"] == {"account": "/abs", "node_fills": None}
    assert (
        portable({"source": {"endpoint": "https://api.tardis.dev/v1"}}, tmp_path)["source"]["endpoint"][:5] == "https"
    )
    assert values["source"]["endpoint"] == "mirror", "what was given stays as it was"
    archive = {"source": {"kind": "archive", "channels": ["l2Book"], "endpoint": "mirror"}}
    assert load("smoke", archive).source.folder == REPOSITORY / "mirror"


def test_the_readme_s_archive_recipe_finds_the_folder_beside_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(run, "run", lambda parameters, *_, **__: seen.append(parameters.source.folder))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "my.yaml").write_text(
        ARCHIVE + 'mirror, from: "2024-01-01T12:00:00Z", to: "2024-01-01T13:00:00Z"}\nassets: [BTC]'
    )
    assert main(["run", "--profile", "smoke", "--params", "my.yaml", "--until", "02"]) == 0
    assert seen[0].resolve() == (tmp_path / "mirror").resolve()


def test_an_archive_cannot_be_traded_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "my.yaml").write_text(ARCHIVE + "mirror}")
    assert main(["run", "--profile", "smoke", "--params", "my.yaml"]) == 1
    assert "an order cannot be replayed without trades: run --until 02" in capsys.readouterr().err


def test_a_relative_parameter_of_a_profile_is_of_the_repository() -> None:
    for name in profiles():
        folder = load(name).source.folder
        assert folder is None or folder.is_absolute()


@pytest.mark.parametrize("name", ["kPEPE", "xyz:NVDA"])
def test_a_perpetual_of_any_name_is_accepted(name: str) -> None:
    described = load("smoke").synthetic.assets["ETH"].model_dump()
    added = {"assets": [name], "contracts": {name: {"sz_decimals": 3}}, "synthetic": {"assets": {name: described}}}
    assert load("smoke", added, name).assets == [name]


@pytest.mark.slow
def test_a_name_with_a_colon_goes_through_the_workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """01 as a command: paths, wildcards, shell words and the endpoint's address carry the name; then 02 and 03."""
    described = load("smoke").synthetic.assets["ETH"].model_dump()
    changes = {
        "name": "colon",
        "assets": ["xyz:NVDA"],
        "contracts": {"xyz:NVDA": {"sz_decimals": 3}},
        "synthetic": {"assets": {"xyz:NVDA": described}},
        "source": {"to": "2025-08-01T00:15:00Z"},
        "features": {"warmup_s": 60, "window_s": 60},
    }
    (tmp_path / "my.yaml").write_text(json.dumps(changes))
    for name in ("data", "outputs"):
        monkeypatch.setenv(f"HYPERDAPO_{name.upper()}", str(tmp_path / name))
    command = [sys.executable, "-m", "hyperdapo.cli", "run", "--profile", "smoke", "--params", "my.yaml"]
    subprocess.run([*command, "--until", "01"], check=True, capture_output=True, timeout=300)
    tables = tmp_path / "outputs" / "colon" / "tables"
    assert {"download_xyz:NVDA.csv", "download_xyz:NVDA.tex"} <= {path.name for path in tables.iterdir()}
    for stage in ("02_preprocess", "03_features"):
        stages.compute(stage, load("smoke", changes), "xyz:NVDA")
    assert (tmp_path / "data" / "colon" / "xyz:NVDA" / "features.parquet").is_file()


def test_what_is_missing_is_a_missing_input(tmp_path: Path) -> None:
    from hyperdapo.workflow import preflight

    with pytest.raises(MissingInputError, match=r"userFills|historicalOrders"):
        preflight.check(load("smoke", {"truth": {"account": str(tmp_path)}}), plan.STAGES)
