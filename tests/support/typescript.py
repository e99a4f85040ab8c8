"""TypeScript's compiler on the examples: it checks their types and writes their JavaScript."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.support.paths import REPOSITORY
from tests.support.servers import program

EXAMPLE = REPOSITORY / "docs/examples/nextjs"
_REACT = REPOSITORY / "tests/support/react"
_WEB = REPOSITORY / "correlator/web"


def compiled(folder: Path, *more: Path) -> str:
    """Write the JavaScript of the example and of `more` below `folder`, by their whole paths. Returns all errors."""
    paths = {"correlator-client": _WEB / "client"}
    paths |= {f"correlator-client/{name}": _WEB / name for name in ("progress", "react")}
    paths |= {"react": _REACT / "index", "react/jsx-runtime": _REACT / "jsx-runtime"}
    options = {
        "strict": True,
        "noUncheckedIndexedAccess": True,
        "jsx": "react-jsx",
        "target": "es2021",
        "module": "esnext",
        "moduleResolution": "node",
        "lib": ["es2021", "dom", "dom.iterable"],
        "types": [],
        "baseUrl": "/",
        "paths": {name: [f"{path}.d.ts"] for name, path in paths.items()},
        "rootDir": "/",
        "outDir": str(folder),
        "newLine": "lf",
    }
    files = [*EXAMPLE.rglob("*.tsx"), *more]
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": [str(f) for f in files]}))
    command = [program("tsc"), "--project", str(folder / "tsconfig.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr
