"""Signals at the launcher: in a process of its own, for they are a process's business."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def run(program: str) -> str:
    made = subprocess.run(
        [sys.executable, "-c", PREFIX + textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


PREFIX = """
import signal
from moespac.cluster.interrupts import Interrupts
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_either_signal_interrupts_even_where_it_was_ignored(number):
    assert "interrupted" in run(f"""
        signal.signal(signal.{number}, signal.SIG_IGN)
        Interrupts()
        try:
            signal.raise_signal(signal.{number})
        except KeyboardInterrupt:
            print("interrupted")
    """)


def test_held_back_until_the_end_of_the_block():
    assert run("""
        interrupts = Interrupts()
        try:
            with interrupts.held():
                signal.raise_signal(signal.SIGINT)
                print("went on")
        except KeyboardInterrupt:
            print("interrupted")
        with interrupts.held():
            print("once")
    """).split("\n") == ["went on", "interrupted", "once", ""]


def test_a_library_that_takes_the_signals_loses_them_again():
    assert "interrupted" in run("""
        interrupts = Interrupts()
        with interrupts.held():
            signal.signal(signal.SIGTERM, lambda *_: exit(3))
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            print("interrupted")
    """)
