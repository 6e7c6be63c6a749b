"""An event loop in a thread, for callers that are not asynchronous themselves."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

Work = Coroutine[Any, Any, T]


class Background:
    """Runs coroutines beside the caller until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def wait_for(self, work: Work[T]) -> T:
        """What the work returns or raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stream(
        self, work: Callable[[Callable[[T], None]], Work[None]], *, at_least_every_s: float
    ) -> Iterator[list[T]]:
        """What the work hands out by the function that it is given, in groups.

        A group is empty where nothing was handed out for so long. The work goes on between the
        groups; whoever leaves early ends it. What it raises comes after all that it handed out.
        """
        made: SimpleQueue[T | None] = SimpleQueue()

        async def whole() -> None:
            try:
                await work(made.put)
            finally:
                made.put(None)

        future = asyncio.run_coroutine_threadsafe(whole(), self._loop)
        ended = False
        try:
            while not ended:
                group = _drain(made, at_least_every_s)
                ended = None in group
                yield [one for one in group if one is not None]
            future.result()
        finally:
            future.cancel()
            while not ended:
                ended = made.get() is None

    def close(self, last: Callable[[], Work[None]]) -> None:
        """End all that is going on, do this last, and end the thread."""
        if self._loop.is_closed():
            return
        self.wait_for(_end_other_tasks())
        self.wait_for(last())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _drain(queue: "SimpleQueue[T]", seconds: float) -> list[T]:
    """All that is there; the first of it is waited for."""
    found: list[T] = []
    try:
        found.append(queue.get(timeout=seconds))
        while True:
            found.append(queue.get_nowait())
    except Empty:
        return found


async def _end_other_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
