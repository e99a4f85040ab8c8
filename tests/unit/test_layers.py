"""The layers of ARCHITECTURE.md hold: the contracts of import-linter in pyproject.toml, kept."""

from pathlib import Path

from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent.parent


def test_imports_only_go_down_and_the_core_does_no_io(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)  # it would switch off the loggers of other tests
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out
