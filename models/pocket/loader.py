"""What training is fed with, made ahead of it: pictures are unpacked and altered while a step runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

Item = TypeVar("Item")

LOOK_AHEAD = 4  # items prepared while one is used, of each process


class _Made(Dataset[Item], Generic[Item]):
    def __init__(self, make: Callable[[int], Item]) -> None:
        self._make = make

    def __getitem__(self, index: int) -> Item:
        return self._make(index)


def ahead(make: Callable[[int], Item], indices: range, processes: int) -> Iterator[Item]:
    """`make(k)` for each k of `indices`, in order.

    With `processes` 0 a thread makes them, which leaves a small machine's processors to the training; else so many
    processes, forked from this one, so that they share its clips.
    """
    if processes == 0:
        yield from _in_a_thread(make, indices)
        return
    yield from DataLoader(
        _Made(make),
        batch_size=None,
        sampler=indices,
        num_workers=processes,
        prefetch_factor=LOOK_AHEAD,
        multiprocessing_context="fork",
    )


def _in_a_thread(make: Callable[[int], Item], indices: range) -> Iterator[Item]:
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(make, k) for k in indices[:LOOK_AHEAD]]
        try:
            for k in indices:
                if k + LOOK_AHEAD in indices:
                    waiting.append(pool.submit(make, k + LOOK_AHEAD))
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
