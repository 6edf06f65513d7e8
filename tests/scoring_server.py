"""A small server that speaks as vLLM or SGLang do: adapters of a run as PEFT loads them, whole prompts, no scorer.

    python tests/scoring_server.py vllm PORT RUN

It knows nothing of `hyperdapo.serving`. What it has read once it keeps, as their prefix caches do.
"""

import json
import sys
import threading
from functools import lru_cache
from http.server import ThreadingHTTPServer
from typing import Any

import torch
from peft import PeftModel

from answering import Answering
from hyperdapo.params import Parameters, recall
from hyperdapo.paths import Paths
from hyperdapo.policy.models import load_base

_ONE_READS = threading.Lock()


def models(parameters: Parameters) -> dict[str, Any]:
    """For each asset what gives the log-probabilities (vocabulary) of the token after some tokens."""

    def reader(asset: str) -> Any:
        folder = Paths(parameters.name, asset).adapter(parameters.hypotheses.policy, parameters.training.seeds[0])
        model = PeftModel.from_pretrained(load_base(parameters.policy)[0], str(folder)).eval()

        @lru_cache(maxsize=4096)
        def read(tokens: tuple[int, ...]) -> torch.Tensor:
            with _ONE_READS, torch.no_grad():
                return torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1].float(), dim=-1)

        return read

    return {asset: reader(asset) for asset in parameters.assets}


def answer(kind: str, read: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """What either of them answers to the request."""
    prompts = [tuple(asked["query"]) + tuple(item) for item in asked["items"]]
    labels, usage = asked["label_token_ids"], {"prompt_tokens": sum(map(len, prompts)), "total_tokens": 0}
    rows = [read(prompt)[labels] for prompt in prompts]
    softmax = asked.get("apply_softmax", kind == "vllm")
    rows = [torch.softmax(row, 0) if softmax else row.exp() for row in rows]
    if kind == "vllm":
        data = [{"index": place, "object": "score", "score": float(row[0])} for place, row in enumerate(rows)]
        return {"id": "1", "object": "list", "created": 1, "model": asked["model"], "data": data, "usage": usage}
    return {"scores": [row.tolist() for row in rows], "model": asked["model"], "usage": usage, "object": "scoring"}


def handler(kind: str, readers: dict[str, Any]) -> type[Answering]:
    """Of one of the two kinds."""
    path = {"vllm": "/generative_scoring", "sglang": "/v1/score"}[kind]

    class Handler(Answering):
        def do_GET(self) -> None:
            cards = [{"id": name, "object": "model", "created": 1, "owned_by": kind} for name in readers]
            known = self.path == "/v1/models"
            self.answer({"object": "list", "data": cards}) if known else self.answer({}, 404)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = self.path == path and asked["model"] in readers
            self.answer(answer(kind, readers[asked["model"]], asked)) if known else self.answer({}, 404)

    return Handler


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ThreadingHTTPServer(
        ("127.0.0.1", int(sys.argv[2])), handler(sys.argv[1], models(recall(sys.argv[3])))
    ) as server:
        print("ready", flush=True)
        server.serve_forever()
