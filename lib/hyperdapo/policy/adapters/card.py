"""The card (README.md) of a trained adapter: what it was trained on, what it earned, what it cannot do, how to load it.

It takes the place of the blank form that PEFT leaves.
"""

from pathlib import Path

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hyperdapo.params import Parameters
from hyperdapo.paths import GENERALIST
from hyperdapo.policy.adapters.manifest import Manifest, training_command
from hyperdapo.policy.prompts import CUE, FEATURES, instruction, letters

_TEXT = """# {name}

A LoRA adapter of `{manifest.base}` ({manifest.revision}) that chooses how to place an order on Hyperliquid. A prompt
describes the market and the order; the next token is the letter of an order.

## Data

{data}

## Prompt and actions

    {opening}...{cue}

The state stands between the two, in the style `{manifest.prompt_style}`: objective, side and, for each of
{count} features, a word and a digit ({words}). What is chosen is the most probable of these letters:

{actions}

## Results

On {states} held-out states (validation split), the mean reward of the greedy action in bps, 0 being the arrival mid:

{results}

The test split is judged in the run's notebook 09, with intervals and rivals. One curve of one seed is no evidence.

## Limits

- It knows these {actions_count} orders alone; under another list its letters mean something else.
- Rewards come from a replay, in which our own orders move nobody and queues are estimates.
- Held-out states are of the same span and source as those it was trained on.
- `policy.json` says what must be the same where it decides, and `hyperdapo` checks it.
- The base computed in {manifest.dtype}{bits}.{copy}

## How to load it

{loading}

Trained again by `{command}`.
"""
_PEFT = """    base = AutoModelForCausalLM.from_pretrained("{base}")
    model = PeftModel.from_pretrained(base, FOLDER)"""
_MADE_HERE = (
    "Its base has random weights and is on no hub: `hyperdapo.policy.models.load_base` makes it, for tests only."
)
_COPY = """
- Its weights were 4 bits, written out ({manifest.revision}). The hub's own are finer, and some decisions are others."""
_ACTIVATED = """It is an activated LoRA (arXiv:2504.12397), which acts from the cue on: PEFT serves it, and llama.cpp
where its scale is zero before the cue (docs/deploy.md). vLLM refuses it, and it cannot be merged, since both would have
it act on text that it never saw. For these, train with `policy.lora.activated: false`."""
_PLAIN = """It is a plain LoRA on the whole prompt. PEFT and llama.cpp serve it, `merge_and_unload` puts it into the
base, and vLLM takes it with `--enable-lora --max-lora-rank {rank} --lora-modules {name}=FOLDER`."""


def write(folder: Path, parameters: Parameters, asset: str, algorithm: str, seed: int, log: pd.DataFrame) -> None:
    """Leave the card in the folder of an adapter, whose training left `log`; `folder` is where it will be used from."""
    manifest, lora = Manifest.read(folder), parameters.policy.lora
    name = f"{parameters.name}-{asset}-{algorithm}-{seed}".lower()
    looks = log.dropna(subset="heldout_reward")
    on_hub = "/" in manifest.base
    loading = [_PEFT.format(base=manifest.base) if on_hub else _MADE_HERE]
    loading.append(_ACTIVATED if manifest.activated else _PLAIN.format(rank=lora.rank, name=name))
    text = _TEXT.format(
        name=name,
        manifest=manifest,
        data=_data(parameters, asset, algorithm, seed),
        opening=instruction(parameters.policy.actions, parameters.policy.prompt_style).replace("\n", "\n    "),
        cue=CUE,
        count=len(FEATURES),
        words=", ".join(feature.word for feature in FEATURES),
        actions="\n".join(f"- {letter}: {word}" for letter, word in _choices(parameters)),
        states=parameters.training.evaluation_states,
        results=_results(looks),
        actions_count=len(manifest.actions),
        bits=" on weights of 4 bits (NF4)" if manifest.four_bit else "",
        copy=_COPY.format(manifest=manifest) if manifest.revision.endswith(".gguf") else "",
        loading="\n\n".join(loading),
        command=training_command(folder),
    )
    earned = EvalResult(
        task_type="order-placement",
        dataset_type=parameters.source.kind,
        dataset_name=f"{parameters.name} {asset}, validation split",
        metric_type="reward_bps",
        metric_value=round(float(looks["heldout_reward"].iloc[-1]), 4),
    )
    header = ModelCardData(
        base_model=manifest.base if on_hub else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "hyperliquid", "execution"],
        model_name=name,
        eval_results=[earned],
    )
    ModelCard(f"---\n{header.to_yaml()}\n---\n\n{text}").save(folder / "README.md")


def _data(parameters: Parameters, asset: str, algorithm: str, seed: int) -> str:
    source, training = parameters.source, parameters.training
    world = f", predictability {parameters.synthetic.predictability:g}" if source.kind == "synthetic" else ""
    traded = ", ".join(parameters.assets) if asset == GENERALIST else asset
    return (
        f"{traded}, {source.start:%Y-%m-%d %H:%M} to {source.end:%Y-%m-%d %H:%M} UTC, source `{source.kind}`{world}; "
        f"objectives {', '.join(parameters.orders.objectives)}; orders of {parameters.orders.notional_usd:g} USD. "
        f"Trained by `{algorithm}`, seed {seed}: {training.steps} updates of {training.states_per_update} states of "
        f"the training split (the first {parameters.split.train:.0%} of the span)."
    )


def _choices(parameters: Parameters) -> list[tuple[str, str]]:
    actions = parameters.policy.actions
    return [(letter, str(action)) for letter, action in zip(letters(actions), actions, strict=True)]


def _results(looks: pd.DataFrame) -> str:
    """A table in Markdown: the first and the last look at held-out states."""
    columns = {"step": "updates", "heldout_reward": "this policy", "heldout_best_fixed": "best fixed action"}
    columns |= {"heldout_oracle": "oracle in hindsight"}
    rows = [f"| {' | '.join(columns.values())} |", "|---|---|---|---|"]
    for _, row in looks.iloc[[0, -1]].iterrows():
        rows.append(f"| {row['step']:.0f} | " + " | ".join(f"{row[name]:.2f}" for name in list(columns)[1:]) + " |")
    return "\n".join(rows)
