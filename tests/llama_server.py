"""A small server that speaks as llama.cpp's does, for `test_llama_cpp.py`; one letter each has the share `share` gives.

Like the real one it has one slot, which keeps what it read and how strongly the adapter then acted, and reads of a
prompt only what it has not read. Its faults are those of a process: it dies, is silent, or answers nonsense.
"""

import json
import os
import sys
import time
from argparse import ArgumentParser
from hashlib import sha256
from http.server import HTTPServer
from typing import Any, ClassVar

from answering import Answering

FAULT = "HYPERDAPO_TEST_LLAMA_FAULT"


def share(read: list[list[float]], label: int) -> float:
    """Of a letter after tokens that were read, each with the strength of the adapter when it was; not normalised."""
    digest = sha256(json.dumps([read, label]).encode()).digest()
    return 0.1 + digest[0] / 256


class Handler(Answering):
    """The slot."""

    scale = 1.0
    read: ClassVar[list[list[float]]] = []

    def do_GET(self) -> None:
        self.answer({"status": "ok"}, 503 if os.environ.get(FAULT) == "never ready" else 200)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/lora-adapters":
            Handler.scale = asked[0]["scale"]
            return self.answer({"success": True})
        if asked["n_predict"] and self.fails(os.environ.get(FAULT)):
            return None
        known = 0
        while known < min(len(self.read), len(asked["prompt"]) - 1) and self.read[known][0] == asked["prompt"][known]:
            known += 1
        Handler.read = self.read[:known] + [[token, self.scale] for token in asked["prompt"][known:]]
        return self.answer({"completion_probabilities": [{"top_probs": self.told(asked)}][: asked["n_predict"]]})

    def told(self, asked: dict[str, Any]) -> list[dict[str, float]]:
        labels = [label for label, ahead in asked.get("logit_bias", []) if ahead > 0]
        shares = {label: share(self.read, label) for label in labels}
        told = [{"id": label, "prob": one / sum(shares.values())} for label, one in shares.items()]
        told.sort(key=lambda one: -one["prob"])
        return told[: asked.get("n_probs", 0) - (os.environ.get(FAULT) == "a letter is missing")]

    def fails(self, fault: str | None) -> bool:
        """Whether a fault took the place of an answer."""
        if fault == "dies when asked":
            print("out of memory", file=sys.stderr, flush=True)
            os._exit(1)
        if fault == "is silent":
            time.sleep(60)
        if fault == "refuses":
            self.answer({"error": {"message": "Prompt contains invalid tokens"}}, 400)
        if fault == "answers nonsense":
            self.answer({"content": "B"})
        return fault in ("refuses", "answers nonsense")


if __name__ == "__main__":
    parser = ArgumentParser()
    for name in ("--model", "--lora", "--host"):
        parser.add_argument(name)
    parser.add_argument("--port", type=int)
    options, _ = parser.parse_known_args()
    if os.environ.get(FAULT) == "dies at once":
        sys.exit(f"error loading model {options.model}")
    HTTPServer((options.host, options.port), Handler).serve_forever()
