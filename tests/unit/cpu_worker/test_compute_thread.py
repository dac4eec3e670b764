"""One thread for jobs and descriptors: turns, failures, the end."""

import os
import threading
from concurrent.futures import CancelledError
from itertools import pairwise

import pytest

from moespac.actors.cpu_worker.compute_thread import ComputeThread

LIMIT_S = 20


def test_jobs_and_readable_descriptors_take_turns() -> None:
    """However much one side asks for, the other is served."""
    thread, order, gate = ComputeThread("compute", lambda: None), [], threading.Event()
    descriptor = os.eventfd(1)
    started = thread.submit(lambda: gate.wait(LIMIT_S))
    thread.watch(descriptor, lambda: order.append("descriptor"))  # never read: always readable
    jobs = [thread.submit(lambda: order.append("job")) for _ in range(3)]
    gate.set()
    for job in (started, *jobs):
        job.result(LIMIT_S)
    at = [index for index, what in enumerate(order) if what == "job"]
    assert len(at) == 3 and all(b - a > 1 for a, b in pairwise(at)), order
    thread.close()
    os.close(descriptor)


def test_a_job_that_fails_ends_nothing_but_itself() -> None:
    thread = ComputeThread("compute", lambda: None)
    with pytest.raises(ZeroDivisionError):
        thread.submit(lambda: 1 / 0).result(LIMIT_S)
    assert thread.submit(threading.get_ident).result(LIMIT_S) == thread._thread.ident
    thread.close()


def test_without_preparation_nothing_is_computed() -> None:
    thread = ComputeThread("compute", lambda: [][1])
    with pytest.raises(IndexError):
        thread.submit(lambda: None).result(LIMIT_S)
    assert isinstance(thread.broken, IndexError)
    thread.close()


def test_closing_waits_for_the_running_job_and_cancels_the_others() -> None:
    thread, running, gate = ComputeThread("compute", lambda: None), threading.Event(), threading.Event()

    def job() -> str:
        running.set()
        assert gate.wait(LIMIT_S)
        return "done"

    first, second = thread.submit(job), thread.submit(job)
    assert running.wait(LIMIT_S)
    second.add_done_callback(lambda _: gate.set())
    thread.close()
    assert first.result(0) == "done"
    with pytest.raises(CancelledError):
        second.result(0)
    with pytest.raises(RuntimeError, match="told to end"):
        thread.submit(job)
    thread.close()
