"""A decision of SmolLM2-135M in float32 on one core, from a stream to an action, against text (Listing 4.10).

Ours is what a live session does at a decision time: the row of features, its prompt, one forward pass over the K
letters with a LoRA adapter, and the most probable. The peers are the base without an adapter as transformers generates
with it, and all of them have read the instruction before: its keys and values are kept.

- `decision_50_tokens`: 50 tokens, an order as text with its reasons (the draft).
- `decision_1_token`: a single token, chosen over the whole vocabulary.
- `decision_around_the_model_p99`: features, prompt and decoding of ours together, at the 99th percentile, against the
  5 ms that we allow them.

They take turns, so that other work on the machine falls on all alike. `--decisions N` of ours, a quarter as many single
tokens, a fiftieth as many texts; seconds are medians.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from _synthetic import ASSET, CHANNELS, PARAMETERS, tape
from _timing import one_core

from hyperdapo.feed.stream import Stream
from hyperdapo.market.native import local_times, native, stamp_length
from hyperdapo.policy.language import calibration
from hyperdapo.policy.models import add_adapter, load_base, save_adapter
from hyperdapo.policy.path import DecisionPath
from hyperdapo.policy.path.latency import Writer
from hyperdapo.policy.prompts import encode_states, instruction
from hyperdapo.times import SECOND_NS

TOKENS_TARGET, TOKEN_TARGET = 10.0, 2.0
AROUND_S = 5e-3
PARTS = ("features", "prompt", "forward", "decode")

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--decisions", type=int, default=100)
decisions = parser.parse_args().decisions
one_core()
torch.set_num_threads(1)
base, tokenizer = load_base(PARAMETERS.policy)
opening = instruction(PARAMETERS.policy.actions, PARAMETERS.policy.prompt_style)
writer = Writer(base, tokenizer, opening)


def generate(prompt: str, tokens: int) -> float:
    """Seconds of a text behind the instruction."""
    begun = perf_counter()
    writer.write(prompt, tokens)
    return perf_counter() - begun


def with_adapter() -> DecisionPath:
    """The path with an adapter as one is before it has learnt; reading and deciding cost what they cost after."""
    with TemporaryDirectory() as place:
        folder = Path(place) / "sample" / "models" / ASSET / "dapo" / "seed_0"
        fresh, words = load_base(PARAMETERS.policy)
        save_adapter(add_adapter(fresh, PARAMETERS.policy, seed=0), words, PARAMETERS, folder)
        calibration.write(folder, 1.0, 0)
        return DecisionPath(PARAMETERS, folder)


def stream_of(lines: list[bytes]) -> tuple[Stream, Callable[[int], dict]]:
    """A stream, and what brings it to a decision time and asks for its features there."""
    messages = ((native(line[stamp_length(line) :]), ns) for line, ns in zip(lines, local_times(lines), strict=True))
    stream, ahead = Stream(PARAMETERS, ASSET), [next(messages)]

    def ask(ns: int) -> dict:
        while ahead[0][1] <= ns:
            stream.receive(ahead[0][0], int(ahead[0][1]))
            ahead[0] = next(messages)
        begun = perf_counter()
        row = stream.features(ns)
        seconds["features"].append(perf_counter() - begun)
        return row

    return stream, ask


seconds: dict[str, list[float]] = {part: [] for part in (*PARTS, "one", "many")}
path, recorded = with_adapter(), tape(hours=1)
start_ns, end_ns = recorded.covers
_, ask = stream_of(recorded.lines(CHANNELS, start_ns, end_ns).splitlines())
step_ns = round(PARAMETERS.features.decision_interval_s * SECOND_NS)
grid = range(-(-start_ns // step_ns) * step_ns + 400 * SECOND_NS, end_ns - step_ns, step_ns)
parents = pd.DataFrame({"order_id": [0], "side": [1], "objective": ["balanced"], "horizon_s": [60.0]})
for turn in range(decisions + 1):  # the first warms up
    if turn == 1:
        seconds = {name: [] for name in seconds}
    row = ask(grid[turn]) if turn < len(grid) else sys.exit(f"at most {len(grid) - 1} decisions")
    state = pd.DataFrame([row])
    (decided,) = path.decide(state, parents)
    for part, taken_ms in decided.timing_ms.items():
        seconds[part].append(taken_ms / 1e3)
    (prompt,) = encode_states(state, parents, PARAMETERS.policy.actions, PARAMETERS.policy.prompt_style)
    if turn % 4 == 1 or turn == 0:
        seconds["one"].append(generate(prompt, 1))
    if turn % 50 == 1:
        seconds["many"].append(generate(prompt, 50))

whole = np.sum([seconds[part] for part in PARTS], axis=0)
around = np.sum([seconds[part] for part in PARTS if part != "forward"], axis=0)
for name, taken in [*((part, seconds[part]) for part in PARTS), ("around the model", around), ("decision", whole)]:
    p50, p90, p99 = np.quantile(taken, [0.5, 0.9, 0.99]) * 1e3
    print(f"{name}: p50 {p50:.2f} ms, p90 {p90:.2f} ms, p99 {p99:.2f} ms of {len(taken)}", file=sys.stderr)
ours, one, many = (float(np.median(taken)) for taken in (whole, seconds["one"], seconds["many"]))
print(f"BENCH decision_50_tokens {ours:.4f} {many:.4f} {many / ours:.1f} {TOKENS_TARGET:g}")
print(f"BENCH decision_1_token {ours:.4f} {one:.4f} {one / ours:.2f} {TOKEN_TARGET:g}")
p99 = float(np.quantile(around, 0.99))
print(f"BENCH decision_around_the_model_p99 {p99:.5f} {AROUND_S:.5f} {AROUND_S / p99:.2f} 1")
