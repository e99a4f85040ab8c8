"""The import rules hold, and the rules for tests: what they may import, and how long their names are."""

import re

from importlinter.cli import lint_imports

from tests.support.paths import REPOSITORY


def test_imports_only_go_down_and_the_core_does_no_io(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)  # it would switch off the loggers of other tests
    status = lint_imports(config_filename=str(REPOSITORY / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_no_test_module_imports_from_another_test_module():
    imported = re.compile(r"^ *from tests[.\w]*\.(test_\w+|conftest) import", re.MULTILINE)
    files = (REPOSITORY / "tests").rglob("*.py")
    assert [str(file) for file in files if imported.search(file.read_text())] == []


def test_names_of_tests_are_shorter_than_90_characters():
    files = (REPOSITORY / "tests").rglob("test_*.py")
    names = [
        name for file in files for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    ]
    assert [name for name in names if len(name) >= 90] == []
