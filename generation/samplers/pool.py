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
from jobs.run_dir import RunDirError

Task = asyncio.Task[None]


@dataclass(kw_only=True, eq=False)
class Job:
    """Something to ask of any host. `do` returns what to do with the answer, once the host is
    known to be still fit; it raises Failed where the job may be tried again, RunDirError where
    the host must not be used. `give_up` is told why the job will not be tried again."""

    do: Callable[[Host], Awaitable[Callable[[], None]]]
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

        Raises ServerAway, RunDirError where a host that is refused leaves none to go on with, or
        whatever else a job raised but Failed; the other jobs then end undone.
        """
        self._at_once = at_once or self._limits.in_flight
        fresh = iter(jobs)
        self._later.clear()
        for host in self.hosts:
            host.failing_since = host.failing_since and time.monotonic()
        running: set[Task] = set()
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
                    running.add(asyncio.create_task(self._attempt(free, job)))
                    job = None
                    continue
                if not (job or running or self._later):
                    return
                checks |= {asyncio.create_task(self._check_host(h)) for h in self._unfit(now)}
                for task in await self._ended({*running, *checks}, now):
                    checks.discard(task)
                    running.discard(task)
                    task.result()
        finally:
            for task in {*running, *checks}:
                task.cancel()
            await asyncio.gather(*running, *checks, return_exceptions=True)
            for host in self.hosts:
                host.in_flight = 0

    def _be_patient(self, now: float) -> None:
        refusals = [host.refusal for host in self.hosts if host.refusal]
        if len(refusals) == len(self.hosts) and not any(host.checking for host in self.hosts):
            raise RunDirError(str(refusals[0]))
        ends = self._patience_ends()
        if ends is not None and now >= ends:
            others = [host for host in self.hosts if not host.refusal]
            troubles = "; ".join(f"{host.url}: {host.trouble}" for host in others)
            if refusals:
                also = f" Nor does another server answer well: {troubles}" if troubles else ""
                raise RunDirError(f"{refusals[0]}.{also}")
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
            try:
                use = await job.do(host)
            finally:
                host.in_flight -= 1
            if not await host.vouched():
                self._again(host, job)
                return
        except Failed as failure:
            self._failed(host, job, failure)
        except RunDirError as refusal:
            host.refuse(refusal)
            self._again(host, job)
        else:
            self._last_good = time.monotonic()
            host.good()
            use()

    def _again(self, host: Host, job: Job, after: float = 0) -> None:
        """Later, by another host where one is fit."""
        job.avoids = host
        heapq.heappush(self._later, (time.monotonic() + after, next(self._serial), job))

    def _failed(self, host: Host, job: Job, failure: Failed) -> None:
        """Later again. A request that went on failing while others were answered is given up;
        where none was since, a check of the host tells whose fault it is."""
        now = time.monotonic()
        garbage, spent = isinstance(failure, Garbage), False
        if not isinstance(failure, Busy):
            job.tries += 1
            job.failing_since = job.failing_since or now
            spent = job.tries >= self._limits.tries
        if spent and self._last_good > job.failing_since:
            job.give_up(f"{host.clean(str(failure))} (tried {job.tries} times)")
            return
        host.bad(failure, rest=spent or not garbage)
        self._again(host, job, self._limits.pause(job.tries) if garbage else 0)

    async def _check_host(self, host: Host) -> None:
        host.checking = True
        try:
            await self._check(host)
        except Failed as failure:
            host.bad(failure, rest=True)
        except RunDirError as refusal:
            host.refuse(refusal)
        else:
            self._last_good = time.monotonic()
            host.fit()
        finally:
            host.checking = False
            host.tell_checked()


async def _nothing(_host: Host) -> Callable[[], None]:
    """A job that any fit host can do."""
    return lambda: None


def _never(_reason: str) -> None:
    """What cannot fail is not given up."""
