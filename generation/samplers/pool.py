"""Jobs spread over hosts: what may yet succeed is tried again, and when nothing has answered well
for too long, all is given up."""

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

from generation.samplers.http import Busy, Failed, Garbage, Host, Limits
from generation.samplers.protocol import ServerAway

Task = asyncio.Task[None]


@dataclass(kw_only=True, eq=False)
class Job:
    """Something to ask of any host. `do` raises Failed where it may be tried again;
    `give_up` is told why it will not be."""

    do: Callable[[Host], Awaitable[None]]
    give_up: Callable[[str], None]
    tries: int = field(default=0, init=False)
    failing_since: float = field(default=0.0, init=False)
    avoids: Host | None = field(default=None, init=False)


class Pool:
    """Hosts that can all do every job. `check` finds out whether a host is fit, by using it."""

    def __init__(
        self, hosts: list[Host], limits: Limits, check: Callable[[Host], Awaitable[None]]
    ) -> None:
        self.hosts, self._limits, self._check = hosts, limits, check
        self._last_good = 0.0
        self._at_once = limits.in_flight
        self._later: list[tuple[float, int, Job]] = []
        self._serial = count()

    async def open(self) -> None:
        """Check every host once, then go on until one is fit."""
        await asyncio.gather(*map(self._check_host, self.hosts))
        await self.run([Job(do=_nothing, give_up=_never)])

    async def close(self) -> None:
        """Close all connections."""
        for host in self.hosts:
            await host.close()

    async def run(self, jobs: Iterable[Job], at_once: int | None = None) -> None:
        """Do the jobs, each by the host with the fewest in flight, so many at once at most.

        Raises ServerAway, or whatever a job raised but Failed; the other jobs then end undone.
        """
        self._at_once = at_once or self._limits.in_flight
        fresh = iter(jobs)
        self._later.clear()
        for host in self.hosts:
            host.failing_since = host.failing_since and time.monotonic()
        running: dict[Task, Host] = {}
        checks: set[Task] = set()
        job: Job | None = None
        try:
            while True:
                now = time.monotonic()
                self._be_patient(now)
                job = job or self._next(fresh, now)
                free = job and self._host_for(job, now)
                if job and free:
                    free.in_flight += 1
                    running[asyncio.create_task(self._attempt(free, job))] = free
                    job = None
                    continue
                if not (job or running or self._later):
                    return
                checks |= {asyncio.create_task(self._check_host(h)) for h in self._unfit(now)}
                for task in await self._ended({*running, *checks}, now):
                    checks.discard(task)
                    if task in running:
                        running.pop(task).in_flight -= 1
                    task.result()
        finally:
            for task in {*running, *checks}:
                task.cancel()
            await asyncio.gather(*running, *checks, return_exceptions=True)
            for host in running.values():
                host.in_flight -= 1

    def _be_patient(self, now: float) -> None:
        ends = self._patience_ends()
        if ends is not None and now >= ends:
            troubles = "; ".join(f"{host.url}: {host.trouble}" for host in self.hosts)
            raise ServerAway(
                f"no server has answered well for {self._limits.patience_s:g} s ({troubles}). "
                "What was written is kept; run this again when a server is back"
            )

    def _patience_ends(self) -> float | None:
        since = [host.failing_since for host in self.hosts]
        if None in since:
            return None
        return max(filter(None, since)) + self._limits.patience_s

    def _next(self, fresh: Iterator[Job], now: float) -> Job | None:
        if self._later and self._later[0][0] <= now:
            return heapq.heappop(self._later)[2]
        return next(fresh, None)

    def _host_for(self, job: Job, now: float) -> Host | None:
        """The host with the fewest in flight; not the one that failed it, where another is fit."""
        fit = [host for host in self.hosts if host.ready and host is not job.avoids]
        free = [host for host in fit or self.hosts if host.free(now, self._at_once)]
        return min(free, key=lambda host: host.in_flight, default=None)

    def _unfit(self, now: float) -> list[Host]:
        return [
            host
            for host in self.hosts
            if not (host.ready or host.checking) and now >= host.rests_until
        ]

    async def _ended(self, tasks: set[Task], now: float) -> set[Task]:
        """The tasks that ended, once one did; none where a rest or the patience ended first."""
        times = [host.rests_until for host in self.hosts] + [at for at, _, _ in self._later[:1]]
        times.append(self._patience_ends() or 0)
        coming = [at - now for at in times if at > now]
        if not tasks:
            await asyncio.sleep(min(coming, default=0))
            return set()
        done, _ = await asyncio.wait(
            tasks, timeout=min(coming, default=None), return_when=asyncio.FIRST_COMPLETED
        )
        return done

    async def _attempt(self, host: Host, job: Job) -> None:
        try:
            await job.do(host)
        except Failed as failure:
            self._failed(host, job, failure)
        else:
            self._last_good = time.monotonic()
            host.good()

    def _failed(self, host: Host, job: Job, failure: Failed) -> None:
        """Later again. A request that went on failing while others were answered is given up;
        where none was since, a check of the host tells whose fault it is."""
        now, job.avoids = time.monotonic(), host
        garbage, spent = isinstance(failure, Garbage), False
        if not isinstance(failure, Busy):
            job.tries += 1
            job.failing_since = job.failing_since or now
            spent = job.tries >= self._limits.tries
        if spent and self._last_good > job.failing_since:
            job.give_up(f"{host.clean(str(failure))} (tried {job.tries} times)")
            return
        host.bad(failure, rest=spent or not garbage)
        at = now + self._limits.pause(job.tries) if garbage else now
        heapq.heappush(self._later, (at, next(self._serial), job))

    async def _check_host(self, host: Host) -> None:
        host.checking = True
        try:
            await self._check(host)
        except Failed as failure:
            host.bad(failure, rest=True)
        else:
            self._last_good = time.monotonic()
            host.fit()
        finally:
            host.checking = False


async def _nothing(_host: Host) -> None:
    """A job that any fit host can do."""


def _never(_reason: str) -> None:
    """What cannot fail is not given up."""
