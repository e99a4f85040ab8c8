"""What runs at a moment that nobody chose takes no lock: in a garbage collection, a signal's handler, a weak reference.

Such code runs in the middle of other code of the same thread, which may hold any lock: of a metric, of a log handler.
It may store numbers, and a later call of the event loop does the rest.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.eventually import PATIENCE
from tests.support.paths import REPOSITORY

COLLECTS = f"""
import asyncio, faulthandler, gc, time

from correlator.ops import metrics, event_loop


class Label(str):
    def __hash__(self):  # `labels()` compares a label while it holds its lock
        gc.collect()
        return super().__hash__()


class Text:
    def __str__(self):
        return Label("a new child")


def slow(phase, _):
    if phase == "start":
        time.sleep(2 * event_loop.STALL)


def noted():
    samples = [sample for metric in metrics.LOOP_STALLS.collect() for sample in metric.samples]
    return sum(s.value for s in samples if s.name.endswith("_count") and s.labels["call"] == "gc")


async def main():
    beating = asyncio.create_task(event_loop.heartbeat())
    await asyncio.sleep(0)
    gc.callbacks.append(slow)
    metrics.LOOP_STALLS.labels(Text())
    gc.callbacks.remove(slow)
    assert noted() == 0
    while noted() == 0:
        await asyncio.sleep(0.01)
    beating.cancel()


faulthandler.dump_traceback_later({PATIENCE}, exit=True)
asyncio.run(main())
"""


def test_a_collection_while_a_metric_is_made_blocks_nothing_and_is_noted_later():
    command = [sys.executable, "-c", COLLECTS]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert ended.returncode == 0, ended.stderr


# -- the kind: whatever is registered to be called at such a moment

REGISTERS = ("gc.callbacks.append", "signal.signal", "weakref.ref", "weakref.proxy", "weakref.finalize")
"""Calls that register a function, among their arguments."""

HOOKS = ("sys.excepthook", "sys.unraisablehook", "threading.excepthook")
"""What a function may be assigned to. They run in the middle of what fails, also in a collection."""

HARMLESS = ("time.perf_counter", "time.monotonic", "append")
"""What such a function may call: none of them takes a lock or runs any other code."""


def called_at_any_moment(tree: ast.AST) -> Iterator[ast.AST]:
    """What is registered in a module: a function of it, a lambda, or an expression that is neither."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        if isinstance(node, ast.FunctionDef) and node.name == "__del__":
            yield node
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in REGISTERS:
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            found = arguments if ast.unparse(node.func) == "gc.callbacks.append" else arguments[1:2]
        elif isinstance(node, ast.Assign) and any(ast.unparse(target) in HOOKS for target in node.targets):
            found = [node.value]
        for one in found:
            name = one.attr if isinstance(one, ast.Attribute) else one.id if isinstance(one, ast.Name) else ""
            yield functions.get(name, one)


def harmful(code: str) -> list[str]:
    """What is called at a moment that nobody chose, and may take a lock."""
    found = []
    for node in called_at_any_moment(ast.parse(code)):
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            found.append(f"{ast.unparse(node)}: what it calls cannot be seen here")
            continue
        for call in ast.walk(node):
            if isinstance(call, ast.Call):
                name = ast.unparse(call.func)
                if name not in HARMLESS and name.rpartition(".")[2] not in HARMLESS:
                    found.append(f"{name}()")
            elif isinstance(call, ast.With | ast.AsyncWith | ast.Await | ast.Yield):
                found.append(ast.unparse(call))
    return found


def test_nothing_that_runs_at_such_a_moment_does_more_than_to_store_numbers():
    files = [file for file in (REPOSITORY / "correlator").rglob("*.py") if "gc.callbacks" in file.read_text()]
    assert files, "at least the garbage collector is measured"
    for file in (REPOSITORY / "correlator").rglob("*.py"):
        assert harmful(file.read_text()) == [], file


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def done(phase, info):\n    note('gc', 1)\ngc.callbacks.append(done)", ["note()"]),
        ("def done(phase, info):\n    took.append(time.perf_counter() - began)\ngc.callbacks.append(done)", []),
        ("gc.callbacks.append(lambda *_: log.info('x'))", ["log.info()"]),
        ("signal.signal(signal.SIGTERM, self.stop)", ["self.stop: what it calls cannot be seen here"]),
        ("class A:\n    def stop(self, *_):\n        self.stopped = True\n    signal.signal(15, stop)", []),
        ("class A:\n    def __del__(self):\n        with lock:\n            pass", ["with lock:\n    pass"]),
        ("weakref.finalize(thing, forget, thing.name)", ["forget: what it calls cannot be seen here"]),
        ("weakref.ref(thing)", []),
        ("sys.excepthook = lambda *_: metrics.ERRORS.labels('x').inc()", ["metrics.ERRORS.labels('x').inc()"]),
        ("loop.add_signal_handler(15, event.set)", []),
    ],
)
def test_each_kind_of_such_code_is_found(code, found):
    """A handler of the event loop's is none: the loop calls it between two callbacks."""
    assert [one for one in harmful(code) if one != "metrics.ERRORS.labels()"] == found
