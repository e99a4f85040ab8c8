"""Mutants: 200 places of the core, each broken in turn, show what the tests would notice (`make mutants`).

They were drawn once, with a fixed seed: an operator, a constant or a condition of a line, none of a text or a type.
`benchmarks/data/mutants.diff` states each by its file, its function, and the line before and after, so that later
tests are judged by the same ones; a line that has changed since is reported as gone.

Everything happens in a copy of the tree. First all tests of a level run while every place notes which of them evaluate
it, also in processes that they start. Then each mutant meets those tests alone, the fastest first: a test that fails or
does not end finds it. Of those that the first level does not find, a sample meets the second one. Results are kept in
the copy's folder, and the next run goes on after the last of them; delete the folder to begin again.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]
LIST = ROOT / "benchmarks" / "data" / "mutants.diff"
CORE = (
    *(f"{package}/*" for package in ("jobs", "forecast", "pipeline", "state", "sinks/streaming", "cluster")),
    "sources/gaps",
    "sources/reset_markers",
    "sources/tail",
)
LEVELS = (("tests/unit", "tests/contract"), ("tests/integration", "tests/acceptance", "tests/security"))
NUMBER, SEED, SAMPLE = 200, 30, 40
WITHIN = 1200
"""Seconds for the tests of one mutant."""
MEMORY = 6 << 30
"""Bytes of a process of the tests."""

SWAPPED: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"),
    ast.Not: ("not ", ""),
}


Change = tuple[int, int, int, str, ast.expr]


class Place(NamedTuple):
    """A mutant: `text` instead of the bytes from `start` to `end` of a line."""

    file: str
    name: str
    """Of the function that it is in, as `Class.function()`, or of what it is the default of, as `CONSTANT=`."""
    line: int
    start: int
    end: int
    text: str
    when: ast.expr
    """What is evaluated before it makes a difference. A default makes one where its name is used."""

    def mutated(self, lines: Sequence[bytes]) -> bytes:
        line = lines[self.line]
        return line[: self.start] + self.text.encode() + line[self.end :]

    def diff(self, lines: Sequence[bytes]) -> str:
        before, after = lines[self.line].strip().decode(), self.mutated(lines).strip().decode()
        return f"{self.file} {self.name}\n- {before}\n+ {after}\n"


def evaluated(source: bytes) -> ast.Module:
    """A module without its types, decorators and patterns, and without texts of errors and of the log."""
    module = ast.parse(source)
    for node in ast.walk(module):
        match node:
            case ast.Raise():
                node.exc = node.cause = None
            case ast.Assert():
                node.test, node.msg = ast.Constant(None), None
            case ast.JoinedStr():
                node.values = []
            case ast.Call(func=ast.Attribute(value=ast.Name("log"))):
                node.args, node.keywords = [], []
            case ast.Call():
                node.keywords = [keyword for keyword in node.keywords if keyword.arg != "strict"]
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                node.decorator_list, node.returns = [], None
            case ast.ClassDef():
                node.decorator_list, node.bases, node.keywords = [], [], []
            case ast.arg():
                node.annotation = None
            case ast.AnnAssign():
                node.annotation = ast.Constant(None)
            case ast.match_case():
                node.pattern = ast.MatchSingleton(None)
    return module


def places(file: str, source: bytes) -> Iterator[Place]:
    """Every place of a file that may be broken."""
    lines = source.splitlines()
    for name, node in _named(evaluated(source), ""):
        if name[-1:] in {")", "="}:
            for line, start, end, text, when in _changes(node, lines):
                yield Place(file, name, line - 1, start, end, text, when)


def _named(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
    """Every node of a tree, with its `Place.name`."""
    yield name, node
    inside = f"{name}." if name else ""
    children: list[tuple[str, ast.AST | None]] = [(name, child) for child in ast.iter_child_nodes(node)]
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            inside += f"{node.name}()"
            named = node.args.posonlyargs + node.args.args
            arguments = [*named[len(named) - len(node.args.defaults) :], *node.args.kwonlyargs]
            defaults = zip(arguments, [*node.args.defaults, *node.args.kw_defaults], strict=True)
            children = [(f"{inside}.{argument.arg}=", default) for argument, default in defaults]
            children += [(inside, child) for child in node.body]
        case ast.ClassDef():
            children = [(inside + node.name, child) for child in node.body]
        case ast.Assign(targets=[ast.Name(target)]) | ast.AnnAssign(target=ast.Name(target)) if name[-1:] != ")":
            children = [(f"{inside}{target}=", node.value)]
    for of, child in children:
        if child is not None:
            yield from _named(child, of)


def _changes(node: ast.AST, lines: Sequence[bytes]) -> Iterator[Change]:
    """Line, first and last byte, new text and `Place.when` of what may be changed of a node."""
    match node:
        case ast.Constant(value=bool(value)):
            yield from _instead(node, lines, str(not value))
        case ast.Constant(value=int(value) | float(value)):
            yield from _instead(node, lines, str(value * 2 if value >= 10 else value + 1))
        case ast.BinOp(left, operator, right) | ast.AugAssign(left, operator, right):
            yield from _operators(
                lines, [left, right], [operator], when=right if isinstance(node, ast.AugAssign) else left
            )
        case ast.UnaryOp(ast.Not(), operand):
            yield from _sign(lines, ast.Not(), (node.lineno, node.col_offset), operand, operand)
        case ast.BoolOp(operator, values):
            yield from _operators(lines, values, [operator] * len(values))
        case ast.Compare(left, operators, values):
            yield from _operators(lines, [left, *values], operators)
        case ast.If(test) | ast.IfExp(test) | ast.While(test):
            yield from _instead(test, lines, "True", "False")
        case ast.comprehension(ifs=tests):
            for test in tests:
                yield from _instead(test, lines, "True")


def _instead(node: ast.expr, lines: Sequence[bytes], *texts: str) -> Iterator[Change]:
    if node.lineno == node.end_lineno and node.end_col_offset is not None:
        before = lines[node.lineno - 1][node.col_offset : node.end_col_offset].decode()
        for text in sorted({*texts} - {before}):
            yield node.lineno, node.col_offset, node.end_col_offset, text, node


def _operators(
    lines: Sequence[bytes], values: Sequence[ast.expr], operators: Sequence[ast.AST], when: ast.expr | None = None
) -> Iterator[Change]:
    for (before, after), operator in zip(itertools.pairwise(values), operators, strict=False):
        yield from _sign(lines, operator, (before.end_lineno, before.end_col_offset), after, when or before)


def _sign(
    lines: Sequence[bytes], operator: ast.AST, begin: tuple[int | None, int | None], after: ast.expr, when: ast.expr
) -> Iterator[Change]:
    old, new = SWAPPED.get(type(operator), ("", ""))
    start = begin[1] or 0 if begin[0] == after.lineno else 0
    text = lines[after.lineno - 1][start : after.col_offset].decode()
    if old and old in text:
        yield after.lineno, start, after.col_offset, text.replace(old, new, 1), when


def mutants(tree: Path) -> dict[str, Place]:
    """Every mutant of the core whose description is unique."""
    found = defaultdict(list)
    for files in CORE:
        for path in sorted((tree / "correlator").glob(f"{files}.py")):
            source = path.read_bytes()
            for place in places(path.relative_to(tree).as_posix(), source):
                found[place.diff(source.splitlines())].append(place)
    return {diff: same[0] for diff, same in found.items() if len(same) == 1}


def draw() -> None:
    """Choose the mutants, at most one in a line."""
    candidates = list(mutants(ROOT).items())
    random.Random(SEED).shuffle(candidates)
    lines = {(place.file, place.line): diff for diff, place in candidates}
    LIST.write_text("\n".join(sorted(list(lines.values())[:NUMBER])), encoding="utf-8")


def reached(number: int, value: object) -> object:
    """Called by the tree that is mapped: a test evaluates what makes a difference to this mutant."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    if test and (number, test) not in _reached:
        _reached.add((number, test))
        with (ROOT / "reached.tsv").open("a", encoding="utf-8") as file:
            file.write(f"{number}\t{test}\n")
    return value


_reached: set[tuple[int, str]] = set()


def watch(tree: Path, chosen: dict[int, Place]) -> None:
    """Let the tree report by `reached` which tests meet the mutants."""
    for path in sorted((tree / "correlator").rglob("*.py")):
        source, file = path.read_bytes(), path.relative_to(tree).as_posix()
        parsed = evaluated(source)
        expressions = [(n, place.when) for n, place in chosen.items() if place.file == file and place.name[-1] == ")"]
        uses = defaultdict(list)
        for n, place in chosen.items():
            if place.name[-1] == "=" and (place.file == file or ")." not in place.name):
                uses[place.name[:-1].rpartition(".")[2]].append(n)
        for node in ast.walk(parsed):
            match node:
                case ast.Name(str(name), ast.Load()) | ast.Attribute(_, str(name), ast.Load()):
                    expressions += [(n, node) for n in uses[name]]
        if not expressions:
            continue
        begins = [n for n in parsed.body if not isinstance(n, ast.Expr) and "__future__" not in ast.unparse(n)]
        first = next((n for n in begins if isinstance(n, ast.Import | ast.ImportFrom)), begins[0])
        added = [(first.lineno, 0, "from benchmarks.mutants import reached as _reached; ")]
        for n, node in expressions:
            added += [
                (node.lineno, node.col_offset, f"_reached({n}, "),
                (node.end_lineno or 0, node.end_col_offset or 0, ")"),
            ]
        lines = source.splitlines(keepends=True)
        for line, column, text in sorted(added, reverse=True):
            lines[line - 1] = lines[line - 1][:column] + text.encode() + lines[line - 1][column:]
        path.write_bytes(b"".join(lines))


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Examples are the same each time, and the first one that fails is enough."""
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    chosen = hypothesis.settings(
        deadline=None, max_examples=100, derandomize=True, database=None, phases=phases, report_multiple_bugs=False
    )
    hypothesis.settings.register_profile("mutants", chosen)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    crash = getattr(report.longrepr, "reprcrash", None)
    message = (crash.message if crash else str(report.longrepr or ""))[:100]
    with (ROOT / "reports.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps([report.nodeid, report.outcome, report.duration, message]) + "\n")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """All tests have been read: a child for each mutant runs those that meet it."""
    if not (order := os.environ.get("MUTANTS")):
        return None
    results, todo = json.loads(Path(order).read_text(encoding="utf-8"))
    items = {item.nodeid: item for item in session.items}
    for key, (file, name, line, text, tests) in todo:
        begun = time.monotonic()
        (ROOT / "reports.jsonl").write_text("", encoding="utf-8")
        if (child := os.fork()) == 0:
            os.setsid()
            if name:
                _break(file, name, line, text)
            session.items[:] = [items[test] for test in tests]
            return None
        status = None
        while status is None and time.monotonic() < begun + WITHIN:
            time.sleep(0.02)
            ended, code = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if ended else None
        if status is None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        by = [[test, message] for test, outcome, _, message in reports(ROOT) if outcome == "failed"]
        found = [*by, [f"status {status}", ""]][0] if status else ["", ""] if status == 0 else ["too long", ""]
        with Path(results).open("a", encoding="utf-8") as done:
            done.write(json.dumps([key, len(tests), round(time.monotonic() - begun), *found]) + "\n")
    return True


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(exitstatus: int) -> None:
    if os.environ.get("MUTANTS") and os.getsid(0) == os.getpid():
        os._exit(exitstatus)  # All fixtures are closed; what was read is not freed one by one.


def _break(file: str, name: str, line: int, text: str) -> None:
    """Give a function that has been read the code of its mutant."""
    lines = (ROOT / file).read_bytes().splitlines()
    lines[line] = text.encode()
    codes = [compile(b"\n".join(lines), str(ROOT / file), "exec", dont_inherit=True)]
    for code in codes:
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    wanted = name.partition("(")[0]
    found: Any = next(m for m in [*sys.modules.values()] if getattr(m, "__file__", None) == str(ROOT / file))
    for part in wanted.split("."):
        found = vars(found)[part]
    while not isinstance(found, FunctionType) or found.__code__.co_qualname != wanted:
        found = next(
            getattr(found, name) for name in ("fget", "__func__", "func", "__wrapped__") if hasattr(found, name)
        )
    new = {(code.co_qualname, code.co_firstlineno): code for code in codes}
    found.__code__ = new[wanted, found.__code__.co_firstlineno]


def run(tree: Path, *arguments: str, **environ: str) -> int:
    """Run tests in the tree. Returns pytest's status."""
    (tree / "reports.jsonl").write_text("", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "benchmarks.mutants"]
    command += ["--timeout=120", "-m", "not long and not alone", *arguments]
    with (tree / "output.txt").open("ab") as output:
        environ = {**os.environ, "PYTHONPATH": str(tree), "HYPOTHESIS_PROFILE": "mutants", **environ}
        return subprocess.run(command, cwd=tree, env=environ, stdout=output, stderr=output, check=False).returncode


def reports(tree: Path) -> list[tuple[str, str, float, str]]:
    return [json.loads(line) for line in (tree / "reports.jsonl").read_text(encoding="utf-8").splitlines()]


def copy(tree: Path) -> Path:
    shutil.rmtree(tree, ignore_errors=True)
    listed = ["git", "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    return tree


def tests_of(folder: Path, level: int, chosen: dict[int, Place]) -> dict[int, list[str]]:
    """The tests of a level that meet each mutant, the fastest first: those that pass in the tree that is mapped."""
    stored = folder / f"map{level}.json"
    if not stored.exists():
        tree = copy(folder / "mapped")
        watch(tree, chosen)
        run(tree, *LEVELS[level])
        took: defaultdict[str, float] = defaultdict(float)
        failed = set()
        for test, outcome, duration, _ in reports(tree):
            took[test] += duration
            failed |= {test} - ({test} if outcome == "passed" else set())
        met: dict[int, set[str]] = {n: set() for n in chosen}
        for line in (tree / "reached.tsv").read_text(encoding="utf-8").splitlines():
            number, test = line.split("\t", 1)
            met[int(number)].add(test)
        every = set(took) - failed
        order = {n: sorted(tests & every, key=lambda test: took[test]) for n, tests in met.items()}
        stored.write_text(json.dumps([order, sorted(failed)]), encoding="utf-8")
    return {int(n): tests for n, tests in json.loads(stored.read_text(encoding="utf-8"))[0].items()}


def meet(tree: Path, results: Path, level: int, met: dict[int, list[str]], broken: dict[int, Place]) -> None:
    """Let tests meet mutants: of functions in memory, of what is read once and in other processes in the file."""
    in_memory = [n for n, place in broken.items() if not level and place.name[-1] == ")"]
    for numbers in [in_memory, *([n] for n in broken if n not in in_memory)]:
        todo = []
        for n in numbers:
            place, path = broken[n], tree / broken[n].file
            source = path.read_bytes()
            lines = source.splitlines()
            lines[place.line] = place.mutated(lines)
            name = place.name if numbers is in_memory else ""
            todo.append(((n, level), (place.file, name, place.line, lines[place.line].decode(), met[n])))
            if numbers is not in_memory:
                path.write_bytes(b"\n".join(lines))
                os.utime(path, (n, n))  # no compiled file is of this time
        (tree / "todo.json").write_text(json.dumps([str(results), todo]), encoding="utf-8")
        files = {test.partition("::")[0] for n in numbers for test in met[n]}
        if files and run(tree, "-x", *sorted(files), MUTANTS=str(tree / "todo.json")) == pytest.ExitCode.INTERRUPTED:
            with results.open("a", encoding="utf-8") as done:
                done.write(json.dumps([(numbers[0], level), len(met[numbers[0]]), 0, "no test can be read", ""]) + "\n")
        if numbers is not in_memory:
            shutil.copy2(ROOT / broken[numbers[0]].file, tree / broken[numbers[0]].file)


def judge(folder: Path, only: Sequence[int]) -> None:
    known, stated = mutants(ROOT), LIST.read_text(encoding="utf-8").split("\n\n")
    listed = {n: diff.strip() + "\n" for n, diff in enumerate(stated, start=1) if not only or n in only}
    chosen = {n: known[diff] for n, diff in listed.items() if diff in known}
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    results.touch()
    survivors = sorted(chosen)
    for level, folders in enumerate(LEVELS):
        if level:
            survivors = sorted(random.Random(SEED).sample(survivors, min(SAMPLE, len(survivors))))
        met = tests_of(folder, level, chosen)
        done = {n for (n, of), *_ in map(json.loads, results.read_text(encoding="utf-8").splitlines()) if of == level}
        meet(copy(folder / "tree"), results, level, met, {n: chosen[n] for n in survivors if n not in done and met[n]})
        found = {
            n: by
            for (n, of), _, _, by, _ in map(json.loads, results.read_text(encoding="utf-8").splitlines())
            if of == level
        }
        print(f"{' '.join(folders)}: {sum(bool(found.get(n)) for n in survivors)} of {len(survivors)} found")
        survivors = [n for n in survivors if not found.get(n)]
        print("".join(f"\n{n} survived {len(met[n])} tests\n{listed[n]}" for n in survivors))
    print("".join(f"\ngone: {n}\n{diff}" for n, diff in listed.items() if n not in chosen))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument("--draw", action="store_true", help="write the list anew")
    parser.add_argument("only", type=int, nargs="*", help="numbers of mutants")
    options = parser.parse_args()
    if options.draw:
        draw()
    else:
        judge(options.folder.absolute(), options.only)
