"""A map by several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor


def in_threads(function: Callable, items: Iterable, workers: int) -> Iterator:
    """``map(function, items)``, by `workers` threads where that is more than one; few items are taken ahead."""
    if workers == 1:
        yield from map(function, items)
        return
    begun: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > 2 * workers:
                yield begun.popleft().result()
        yield from (future.result() for future in begun)
