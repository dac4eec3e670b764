"""The one thread of a worker that computes: jobs of other threads, and sockets that it reads itself."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import structlog

log = structlog.get_logger()


class ComputeThread:
    """Runs one job at a time. Jobs and readable descriptors take turns.

    More than one at a time would have each call's helper threads compete for the same cores. A thread of its own,
    because every thread that computes keeps a pool of helpers; and it reads its sockets itself, because handing a call
    from one thread to another takes as long as a small call.
    """

    def __init__(self, name: str, prepare: Callable[[], None]):
        """`prepare` is called in the thread before anything else; where it raises, so does every job."""
        self._jobs: deque[tuple[Future, Callable[[], object]]] = deque()
        self._watched: dict[int, Callable[[], None]] = {}
        self._closing = False
        # One count a job: a turn takes one.
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._broken: Exception | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, args=(prepare,), name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], object]) -> Future:
        """What `job` returns or raises, later. Raises RuntimeError after `close`."""
        future: Future = Future()
        with self._lock:
            if self._closing:
                raise RuntimeError("the thread that computes has been told to end")
            self._jobs.append((future, job))
            os.eventfd_write(self._wake, 1)
        return future

    def watch(self, fd: int, readable: Callable[[], None]) -> None:
        """Has `readable` called in the thread, once a turn, while `fd` can be read. It must not raise."""
        self._watched[fd] = readable
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """To be called in the thread, or after `close`, before `fd` is closed."""
        del self._watched[fd]
        if not self._epoll.closed:
            self._epoll.unregister(fd)

    @property
    def broken(self) -> Exception | None:
        """What `prepare` raised."""
        return self._broken

    def close(self) -> None:
        """Ends the thread: the running job ends first, waiting ones are cancelled. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            os.eventfd_write(self._wake, 1)
        for future, _ in list(self._jobs):
            future.cancel()
        self._thread.join()
        self._epoll.close()
        os.close(self._wake)

    def _run(self, prepare: Callable[[], None]) -> None:
        try:
            prepare()
        except Exception as error:
            # Said to whoever wants something computed.
            self._broken = error
        while True:
            for fd, _ in self._epoll.poll():
                if self._closing:
                    return
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                    self._one_job()
                # A descriptor of this turn may have been forgotten earlier in it.
                elif (readable := self._watched.get(fd)) is not None:
                    self._told(fd, readable)

    def _told(self, fd: int, readable: Callable[[], None]) -> None:
        try:
            readable()
        except Exception:
            # One caller's trouble: everybody else's calls are computed on this thread too.
            log.exception("a connection is given up")
            self.forget(fd)

    def _one_job(self) -> None:
        future, job = self._jobs.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            if self._broken is not None:
                raise self._broken
            result = job()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
