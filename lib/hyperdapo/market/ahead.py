"""Work on one slice after another by several threads, with the results in the order of the slices."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def threads() -> int:
    """How many threads a stage may use: OMP_NUM_THREADS, as for NumPy and torch; without it, the cores we may run on.

    The workflow sets it: one where stages run side by side, so that they do not take each other's cores.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """`work` on each item, in their order; with more than one of `threads`, the next ones are worked on meanwhile.

    What `work` does must not depend on the other items, and pays only where it releases the interpreter's lock, as
    reading, hashing, decompressing and compiled code do. So few results wait that memory does not grow.
    """
    workers = threads()
    if workers == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
