"""React's files in tests/browser/vendor, which are CommonJS, as modules that a browser loads by an import map."""

from __future__ import annotations

import json
import re

from tests.support.paths import REPOSITORY

_FOLDER = REPOSITORY / "tests/browser/vendor/react"
FILES = {
    "react": "react.production.js",
    "react/jsx-runtime": "react-jsx-runtime.production.js",
    "react-dom": "react-dom.production.js",
    "react-dom/client": "react-dom-client.production.js",
    "scheduler": "scheduler.production.js",
}


def module(name: str) -> str:
    """The text of a module that exports what the package exports."""
    text = (_FOLDER / FILES[name]).read_text()
    required = sorted(set(re.findall(r'require\("([^"]+)"\)', text)))
    imports = "".join(f"import m{n} from {json.dumps(package)};\n" for n, package in enumerate(required))
    modules = ", ".join(f"{json.dumps(package)}: m{n}" for n, package in enumerate(required))
    exported = sorted(set(re.findall(r"^ *exports\.(\w+) =", text, re.MULTILINE)) - {"unstable_now"})
    return (
        f"{imports}const modules = {{ {modules} }};\nconst module = {{ exports: {{}} }};\n"
        f"((module, exports, require) => {{{text}\n}})(module, module.exports, (name) => modules[name]);\n"
        f"export default module.exports;\nexport const {{ {', '.join(exported)} }} = module.exports;\n"
    )
