"""Micro-batches: what comes within a few milliseconds is decided together, and no more waits than is soon answered."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import Generic, TypeVar

from hyperdapo.errors import BusyError, HyperdapoError, RequestError
from hyperdapo.sections import Serving

_LOG = logging.getLogger("hyperdapo.serving")
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Waiting(Generic[Asked, Answer]):
    """One that waits for its answer, since `begun` (s)."""

    asked: Asked
    future: Future[Answer] = field(default_factory=Future)
    begun: float = field(default_factory=perf_counter)


class Batcher(Generic[Asked, Answer]):
    """A bounded queue and the workers that answer what is in it, up to `serving.batch` together.

    Parameters
    ----------
    answer : of n that were asked, and how long each has waited (s); an error of this package is raised for each of
        them, any other is logged, and each is told that there was one (`RequestError`, 500)
    workers : how many batches may be under way at once: one in this process, more where others compute
    """

    def __init__(
        self, answer: Callable[[Sequence[Asked], Sequence[float]], Sequence[Answer]], serving: Serving, workers: int = 1
    ) -> None:
        self._answer = answer
        self._batch, self._wait_s = serving.batch, serving.batch_wait_ms / 1e3
        self._queue: queue.Queue[Waiting[Asked, Answer] | None] = queue.Queue(serving.queue)
        self._workers = [threading.Thread(target=self._work, daemon=True, name="decisions") for _ in range(workers)]
        for worker in self._workers:
            worker.start()

    def __len__(self) -> int:
        return self._queue.qsize()

    def submit(self, asked: Asked) -> Future[Answer]:
        """The answer to come.

        Raises
        ------
        BusyError
            If as many wait as may.
        """
        waiting: Waiting[Asked, Answer] = Waiting(asked)
        try:
            self._queue.put_nowait(waiting)
        except queue.Full:
            raise BusyError(f"{self._queue.maxsize} requests wait already: ask again in a moment") from None
        return waiting.future

    def close(self) -> None:
        """Answer what waits, then end."""
        for _ in self._workers:
            self._queue.put(None)
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, ended = self._collected(first)
            begun = perf_counter()
            asked = [each for each in batch if each.future.set_running_or_notify_cancel()]
            if asked:
                self._settle(asked, [begun - each.begun for each in asked])
            if ended:
                return

    def _collected(self, first: Waiting[Asked, Answer]) -> tuple[list[Waiting[Asked, Answer]], bool]:
        """The first and those that come while it may wait; whether the end was among them."""
        batch, until = [first], perf_counter() + self._wait_s
        while len(batch) < self._batch:
            try:
                left_s = until - perf_counter()
                following = self._queue.get(timeout=left_s) if left_s > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return batch, True
            batch.append(following)
        return batch, False

    def _settle(self, batch: Sequence[Waiting[Asked, Answer]], waited_s: Sequence[float]) -> None:
        try:
            answers = self._answer([each.asked for each in batch], waited_s)
        except HyperdapoError as error:
            return self._fail(batch, error)
        except BaseException:  # whatever it is, those who wait must hear of it
            _LOG.exception("fault")
            return self._fail(batch, RequestError("a fault of the service: see its log", 500))
        for each, answer in zip(batch, answers, strict=True):
            each.future.set_result(answer)

    def _fail(self, batch: Sequence[Waiting[Asked, Answer]], error: HyperdapoError) -> None:
        for each in batch:
            each.future.set_exception(error)
