"""Generators make whole clients of the descriptions, and each method works; linters find only what is named here.

`make test-generators` installs generators and linters in build/generators. openapi-generator writes clients of six
languages, of which Python's is called here; the others are counted, because their compilers need registries of theirs.
"""

from __future__ import annotations

import asyncio
import json
import re
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from correlator.failures.failure import fingerprint
from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.long

TOOLS = REPOSITORY / "build" / "generators"
ID = "unified-live-failover-pgtest2-1758553933"
FAILED, _ = fingerprint("no such volume", None, ())
KNOWN = {
    "fingerprint": FAILED,
    "id": ID,
    "name": "pgtest2",
    "job_type": "failover",
    "operation": "unified-live-failover",
    "text": "step",
}
"""A value of each parameter that an operation requires."""

NOT_CALLED = {"streamMessages", "openWebsocket"}
"""Operations whose answer does not end, or is no HTTP."""

REFUSED = {"listInstances": 404}
"""Operations that only a gateway answers."""

LINTED = {
    "info-contact": "whoever runs the daemon is the contact, and is not known here",
    "asyncapi-info-contact": "whoever runs the daemon is the contact, and is not known here",
    "operation-success-response": "a websocket's answer is 101",
    "operation-2xx-response": "a websocket's answer is 101",
}
"""Rules that a description breaks, each with the reason."""


async def run(*command: str | Path, cwd: Path | None = None, stdin: str = "") -> str:
    """What it prints, whatever its exit status is, of which linters make a verdict; else what it says of an error."""
    process = await asyncio.create_subprocess_exec(*map(str, command), cwd=cwd, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(240):
            said, wrong = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return (said or wrong).decode()


def npm(name: str) -> Path:
    return TOOLS / "node_modules" / ".bin" / name


@pytest.fixture
async def served(daemon: Daemon, appliance: Appliance) -> Daemon:
    """With a job that has steps, under an external ID, and an ended one, so that each operation finds something."""
    job = await appliance.job(ID, metadata='{"vm_name": "pgtest2"}')
    await appliance.step(job, 1, "first step")
    await appliance.log("Step completed", job_id=job)
    await appliance.end(await appliance.job("ended"), "completed")
    await appliance.end(await appliance.job("failed"), "failed", "no such volume")

    async def all_there() -> bool:
        learned = (await daemon.get("/api/v1/operations"))[1]["operations"]
        return len((await daemon.get("/api/v1/jobs"))[1]["jobs"]) == 3 and len(learned) == 1

    await eventually(all_there)
    return daemon


@pytest.fixture
async def described(served: Daemon, tmp_path: Path) -> Path:
    """A folder with both descriptions."""
    for name in ("openapi", "asyncapi"):
        (tmp_path / f"{name}.json").write_text(json.dumps((await served.get(f"/api/v1/{name}.json"))[1]))
    return tmp_path


def operations(folder: Path) -> dict[str, dict[str, Any]]:
    paths = json.loads((folder / "openapi.json").read_text())["paths"]
    return {o["operationId"]: o for item in paths.values() for o in item.values()}


def calls(folder: Path) -> list[tuple[str, str, dict[str, str]]]:
    """Each operation that is called: its group, its name, and its arguments."""
    return [
        (o["tags"][0], name, {p["name"]: KNOWN[p["name"]] for p in o["parameters"] if p["required"]})
        for name, o in operations(folder).items()
        if name not in NOT_CALLED
    ]


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def check(answers: dict[str, Any], folder: Path) -> None:
    """`answers`: by operation, the status of a refusal, else the type of the answer."""
    assert {name: answer for name, answer in answers.items() if isinstance(answer, int)} == REFUSED
    assert set(answers) == {name for _, name, _ in calls(folder)}


GENERATED = {
    "python": ("openapi_client/api/*_api.py", lambda name: rf"def {snake(name)}\("),
    "java": ("src/main/java/**/api/*Api.java", lambda name: rf"public .+ {name}\("),
    "go": ("api_*.go", lambda name: rf"\) {name[0].upper()}{name[1:]}\("),
    "typescript-fetch": ("apis/*Api.ts", lambda name: rf"async {name}\("),
    "csharp": ("src/Org.OpenAPITools/Api/*Api.cs", lambda name: rf" {name[0].upper()}{name[1:]}Async\("),
    "rust": ("src/apis/*_api.rs", lambda name: rf"pub async fn {snake(name)}\("),
}
"""By generator: the files of its operations, and what declares the method of one."""


@pytest.mark.parametrize("language", GENERATED)
async def test_openapi_generator_makes_a_method_of_every_operation_in_the_class_of_its_group(described, language):
    made = described / language
    said = await run(
        TOOLS / "bin" / "openapi-generator-cli",
        "generate",
        "-i",
        described / "openapi.json",
        "-g",
        language,
        "-o",
        made,
    )
    pattern, declared = GENERATED[language]
    files = {path.stem.lower().replace("_", "").replace("api", ""): path.read_text() for path in made.glob(pattern)}
    assert "default" not in files, said[-2000:]
    for name, operation in operations(described).items():
        (group,) = operation["tags"]
        assert re.search(declared(name), files[group.lower()]), f"{group}: no method for {name}"
    assert re.search(declared("webhook"), files["webhooks"])


OPENAPI_GENERATOR = """
import json, sys, openapi_client
answers = {}
with openapi_client.ApiClient(openapi_client.Configuration(host=sys.argv[1])) as client:
    for group, name, method, arguments in json.load(sys.stdin):
        try:
            found = getattr(getattr(openapi_client, group + "Api")(client), method)(**arguments)
            answers[name] = type(found).__name__
        except openapi_client.ApiException as error:
            answers[name] = error.status
print(json.dumps(answers))
"""

OPENAPI_PYTHON_CLIENT = """
import importlib, json, sys
from correlator_client import Client
answers, client = {}, Client(base_url=sys.argv[1])
for group, name, method, arguments in json.load(sys.stdin):
    module = importlib.import_module(f"correlator_client.api.{group.lower()}.{method}")
    found = module.sync_detailed(client=client, **arguments)
    answers[name] = type(found.parsed).__name__ if found.status_code == 200 else int(found.status_code)
print(json.dumps(answers))
"""


@pytest.mark.parametrize(
    ("command", "folder", "script"),
    [
        (["openapi-generator-cli", "generate", "-g", "python", "-i", "{0}", "-o"], "", OPENAPI_GENERATOR),
        (["openapi-python-client", "generate", "--path", "{0}", "--output-path"], "", OPENAPI_PYTHON_CLIENT),
    ],
    ids=["openapi-generator", "openapi-python-client"],
)
async def test_every_method_of_a_generated_client_for_python_works(served, described, command, folder, script):
    made = described / "made"
    description = str(described / "openapi.json")
    said = await run(TOOLS / "bin" / command[0], *[part.format(description) for part in command[1:]], made)
    asked = [(group, name, snake(name), arguments) for group, name, arguments in calls(described)]
    answered = await run(TOOLS / "bin" / "python", "-c", script, served.url, cwd=made, stdin=json.dumps(asked))
    assert answered.startswith("{"), said + answered
    answers = json.loads(answered)
    check(answers, described)
    assert (answers["getJob"], answers["getFailoverStatus"]) == ("JobDocument", "StatusReply")


HEY_API = """
import { client } from "./client.gen.js";
import * as sdk from "./sdk.gen.js";
client.setConfig({ baseUrl: process.argv[2] });
const answers = {};
for (const [, name, args] of JSON.parse(process.argv[3])) {
  const inPath = JSON.parse(process.argv[4])[name];
  const [path, query] = [true, false].map((which) =>
    Object.fromEntries(Object.entries(args).filter(([one]) => inPath.includes(one) === which)));
  const { response } = await sdk[name]({ path, query, throwOnError: false });
  answers[name] = response.ok ? "ok" : response.status;
}
console.log(JSON.stringify(answers));
"""

ORVAL = """
import * as made from "./client.js";
const own = globalThis.fetch;
globalThis.fetch = (path, options) => own(process.argv[2] + path, options);
const parse = JSON.parse;  // 7.13 parses a text as JSON
JSON.parse = (text) => { try { return parse(text); } catch { return text; } };
const answers = {};
const order = JSON.parse(process.argv[4]);
for (const [, name, args] of JSON.parse(process.argv[3])) {
  const inPath = order[name].filter((one) => one in args).map((one) => args[one]);
  const inQuery = Object.fromEntries(Object.entries(args).filter(([one]) => !order[name].includes(one)));
  const { status } = await made[name](...inPath, inQuery);
  answers[name] = status === 200 ? "ok" : status;
}
console.log(JSON.stringify(answers));
"""

TSCONFIG = {
    "compilerOptions": {
        "target": "es2022", "module": "esnext", "moduleResolution": "bundler", "strict": True, "types": [],
        "lib": ["es2022", "dom", "dom.iterable"], "outDir": "js",
    },
    "include": ["made"],
}  # fmt: skip


@pytest.mark.parametrize("generator", ["hey-api", "orval", "openapi-generator"])
async def test_a_generated_client_for_typescript_compiles_and_every_method_works(served, described, generator):
    made, description = described / "made", described / "openapi.json"
    made.mkdir()
    if generator == "hey-api":
        said = await run(npm("openapi-ts"), "-i", description, "-o", made, "-c", "@hey-api/client-fetch", cwd=described)
    elif generator == "orval":
        settings = {"made": {"input": str(description), "output": {"target": "made/client.ts", "client": "fetch"}}}
        (described / "orval.config.cjs").write_text(f"module.exports = {json.dumps(settings)}")
        said = await run(npm("orval"), "--config", "orval.config.cjs", cwd=described)
    else:
        cli = TOOLS / "bin" / "openapi-generator-cli"
        said = await run(cli, "generate", "-i", description, "-g", "typescript-fetch", "-o", made)
        (made / "apis" / "WebhooksApi.ts").unlink()  # 7.26 imports a type without a name there
        index = made / "apis" / "index.ts"
        index.write_text(index.read_text().replace("export * from './WebhooksApi';", ""))
    (described / "tsconfig.json").write_text(json.dumps(TSCONFIG))
    (described / "package.json").write_text('{"type": "module"}')
    assert await run(npm("tsc"), "-p", ".", cwd=described) == "", said[-2000:]
    if generator == "openapi-generator":
        return
    javascript = described / "js"
    for file in javascript.rglob("*.js"):  # a bundler resolves what has no suffix; Node wants it
        file.write_text(
            re.sub(r"""(from ["'])(\.[^"']*?)(?:\.js)?(["'];)""", with_suffix(file.parent), file.read_text())
        )
    (javascript / "run.js").write_text(HEY_API if generator == "hey-api" else ORVAL)
    order = {name: re.findall(r"{(\w+)}", path) for path, name in paths(described)}
    answers = await run("node", javascript / "run.js", served.url, json.dumps(calls(described)), json.dumps(order))
    assert answers.startswith("{"), answers
    check(json.loads(answers), described)


def with_suffix(folder: Path) -> Any:
    def found(match: re.Match[str]) -> str:
        target = match[2] + ("/index" if (folder / match[2]).is_dir() else "")
        return f"{match[1]}{target}.js{match[3]}"

    return found


def paths(folder: Path) -> list[tuple[str, str]]:
    found = json.loads((folder / "openapi.json").read_text())["paths"]
    return [(path, operation["operationId"]) for path, item in found.items() for operation in item.values()]


async def test_the_linters_find_nothing_but_what_is_named(described: Path) -> None:
    (described / ".spectral.yaml").write_text("extends: ['spectral:oas', 'spectral:asyncapi']\n")
    (described / "redocly.yaml").write_text("extends: [recommended]\n")
    found: list[tuple[str, str]] = []
    for name in ("openapi.json", "asyncapi.json"):
        said = await run(npm("spectral"), "lint", name, "--format", "json", cwd=described)
        found += [(one["code"], one["message"]) for one in json.loads(said[said.index("[") : said.rindex("]") + 1])]
    said = await run(
        npm("redocly"), "lint", "openapi.json", "--config", "redocly.yaml", "--format", "json", cwd=described
    )
    found += [(one["ruleId"], one["message"]) for one in json.loads(said[said.index("{") :])["problems"]]
    assert [one for one in found if one[0] not in LINTED] == []
    assert {rule for rule, _ in found} == set(LINTED), "a rule that is named is not broken any more"
