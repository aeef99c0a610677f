"""Doing the next thing while this one is done."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, TypeVar

T = TypeVar("T")

_END = object()


def ahead(
    items: Iterator[T],
    depth: int,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[T]:
    """The same items, drawn by a thread of its own, so many ahead of the consumer.

    Args:
        items: a generator; closed when the consumer stops.
        depth: how many items wait at the most, besides the one being made.
        context: what the thread does its work in (JAX's settings are per thread).
    """
    waiting: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def draw() -> None:
        try:
            with context(), closing(items) as drawn:  # pyright: ignore[reportArgumentType]
                for item in drawn:
                    if not put((item, None)):
                        return
            put((_END, None))
        except BaseException as error:  # is raised where the items are consumed
            put((_END, error))

    thread = threading.Thread(target=draw, name="vcjax-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
            del item
    finally:
        stopped.set()
        thread.join()
