"""One decision of SmolLM2: scoring the K letters in one pass, against generating the order as text (Listing 4.10)."""

from hyperdapo.params import load
from hyperdapo.policy.decisions import measure_latency
from hyperdapo.policy.models import load_base
from hyperdapo.policy.prompts import CUE, instruction
from hyperdapo.policy.scoring import make_scorer

TARGET = 2.0
DECISIONS = 20

parameters = load("sample")
model, tokenizer = load_base(parameters.policy)
opening = instruction(parameters.policy.actions)
prompts = [f"{opening}balanced buy ETH at 37{number}.1: imbalance7{CUE}" for number in range(10, 10 + DECISIONS)]
table = measure_latency(make_scorer(model, tokenizer, parameters), model, tokenizer, prompts)
ours, peer = (table["median_measured_ms"] / 1e3).tolist()
print(f"BENCH decision {ours:.4f} {peer:.4f} {peer / ours:.1f} {TARGET:g}")
