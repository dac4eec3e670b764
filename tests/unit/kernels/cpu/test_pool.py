"""The library's threads: several callers at once, forked children, and the cores that threads are pinned to.

Each test is a process of its own: the pool, and what a thread may run on, belong to the whole process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from textwrap import dedent

import pytest

from moespac.kernels.cpu import library

if reason := library.unavailable():
    pytest.skip(reason, allow_module_level=True)

SETTING = """
import os, sys, threading
import torch
from moespac.kernels.cpu import library
from moespac.kernels.cpu.linear import PackedLinear

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
linear = PackedLinear(torch.randn(1031, 64, generator=generator))
tokens = [torch.randn(n, 64, generator=generator) for n in (1, 3, 16)]
library.configure(1)
expected = [linear(x) for x in tokens]

def same(times):
    return all(torch.equal(linear(x), y) for _ in range(times) for x, y in zip(tokens, expected))

def allowed():
    masks = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/status") as lines:
            (mask,) = (line.split()[1] for line in lines if line.startswith("Cpus_allowed_list"))
        masks[int(task)] = mask
    return masks

"""


def printed_by(code: str) -> str:
    """What `code` prints in a new process, which must end well and in time."""
    ran = subprocess.run([sys.executable, "-c", SETTING + dedent(code)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.slow
def test_threads_that_call_at_once_get_their_own_rows():
    assert (
        printed_by("""
        library.configure(2)
        results = []
        callers = [threading.Thread(target=lambda: results.append(same(200))) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        print(results)
        """)
        == "[True, True, True, True]"
    )


@pytest.mark.slow
def test_threads_may_be_changed_while_others_call():
    assert (
        printed_by("""
        results = []
        caller = threading.Thread(target=lambda: results.append(same(400)))
        caller.start()
        changed = 0
        while caller.is_alive():
            library.configure(1 + changed % 3)
            changed += 1
        caller.join()
        print(results, changed > 3)
        """)
        == "[True] True"
    )


@pytest.mark.slow
def test_processes_that_call_at_once_have_pools_of_their_own():
    code = SETTING + "library.configure(2)\nsys.exit(not same(100) or library.threads() != 2)\n"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]


def test_a_forked_child_computes_with_a_pool_of_its_own():
    """Its parent's threads are not there: waiting for them would last for ever."""
    assert (
        printed_by("""
        library.configure(2)
        assert same(20)
        child = os.fork()
        if child == 0:
            alone = library.threads() == 1 and same(20)
            library.configure(2)
            os._exit(0 if alone and same(20) and library.threads() == 2 else 1)
        print(os.waitpid(child, 0)[1], same(20), library.threads())
        """)
        == "0 True 2"
    )


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: nothing to choose between")
def test_threads_are_pinned_to_the_cores_named():
    first, second = sorted(os.sched_getaffinity(0))[:2]
    assert printed_by(f"""
        before = set(allowed())
        library.configure(2, [{second}, {first}])
        masks = allowed()
        (worker,) = (mask for task, mask in masks.items() if task not in before)
        print(masks[threading.get_native_id()], worker, same(20))
        """) == (f"{second} {first} True")


def test_without_cores_threads_run_anywhere_this_process_may():
    assert (
        printed_by("""
        before = allowed()
        library.configure(3)
        after = allowed()
        print(len(after) - len(before), len(set(after.values())))
        """)
        == "2 1"
    )


@pytest.mark.parametrize(
    ("threads", "cpus", "problem"),
    [
        (0, None, "threads: 0 is too few"),
        (2, [0], "cpus: 1 for 2 threads"),
        (1, [4095], "cpus: 4095 is none that this process may use"),
    ],
)
def test_what_cannot_be_had_is_refused(threads, cpus, problem):
    before = library.threads()
    with pytest.raises(library.LibraryError, match=problem):
        library.configure(threads, cpus)
    assert library.threads() == before
