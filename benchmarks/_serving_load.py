"""What locust sends: orders of random sides in random states, each client one after the other without pause."""

import random

from locust import FastHttpUser, constant, task
from serving import request


class Client(FastHttpUser):
    """Waits for each answer, and asks again."""

    wait_time = constant(0)

    @task
    def decide(self) -> None:
        """One decision."""
        self.client.post("/decide", json=request(random.uniform(-0.9, 0.9)))
