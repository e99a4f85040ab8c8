"""Every operation that the daemon describes, asked in every way schemathesis knows: no 5xx, nothing undescribed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.support.cluster import create_streams
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.gateways import gateway_process
from tests.support.nats import Nats
from tests.support.schemas import closed
from tests.support.small_appliance import NAMES, TOKEN

OTHERWISE = {"streamMessages", "openWebsocket"}
"""Operations whose answer does not end, or that speak otherwise: tests/acceptance/test_specs.py reads them."""

OPAQUE = {"cursor", "after"}
"""Parameters that only an answer of ours can fill."""

PERIOD = {"since", "until"}
"""Parameters that depend on each other: no schema says that one time is after another."""

EITHER = {"listFailures": "since"}
"""Parameters that are a time or a time ago: no pattern says which days there are."""

LONGEST_WAIT = 0.02
"""Seconds that a request may be held here."""

EXAMPLES = [pytest.param(8, id="few"), pytest.param(150, id="many", marks=pytest.mark.long)]


def scan(
    daemon: Daemon, description: dict[str, Any], examples: int, headers: dict[str, str], *, may_be_away: bool = False
) -> dict[str, set[int]]:
    """Ask everything; the statuses seen, by operation. `may_be_away`: a 503 that is described is no failure."""
    api = schemathesis.openapi.from_dict(closed(description))
    api.config.update(base_url=daemon.url)
    answers: defaultdict[str, set[int]] = defaultdict(set)
    chosen = settings(
        max_examples=examples, phases=[Phase.explicit, Phase.generate], deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    def ask(case: schemathesis.Case[Any]) -> None:
        if isinstance(wait := case.query.get("wait"), int | float):
            case.query["wait"] = min(wait, LONGEST_WAIT)
        # A query holds texts: 1 is "1" there, and an empty one none. test_specs.py tries the limits of each parameter.
        unfit: set[object] = {negative_data_rejection, *([not_a_server_error] if may_be_away else [])}
        either = EITHER.get(case.operation.definition.raw["operationId"])
        if not OPAQUE.isdisjoint(case.query) or case.query.keys() >= PERIOD or either in case.query:
            unfit.add(positive_data_acceptance)
        checks: Any = [check for check in CHECKS.get_all() if check not in unfit]
        response = case.call(headers=headers)
        if response.status_code == 414:
            return  # The parser of aiohttp refuses so long a line, before it is a request.
        case.validate_response(response, headers=headers, checks=checks)
        answers[case.operation.definition.raw["operationId"]].add(response.status_code)

    for found in api.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if operation.definition.raw["operationId"] not in OTHERWISE:
            for mode in GenerationMode if len(operation.query) else [GenerationMode.POSITIVE]:
                chosen(given(operation.as_strategy(generation_mode=mode))(ask))()
    return answers


@pytest.mark.parametrize("examples", EXAMPLES)
async def test_a_scan_of_a_guarded_daemon(guarded: Daemon, examples: int) -> None:
    """With the right token, and as each check sees fit: with none, and with wrong ones."""
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    description = (await guarded.get("/api/v1/openapi.json", headers=bearer))[1]
    answers = scan(guarded, description, examples, bearer)
    assert {200, 400} <= answers["listJobs"]
    assert not any(status >= 500 for seen in answers.values() for status in seen)
    without = scan(guarded, description, max(2, examples // 4), {})
    assert {name for name, seen in without.items() if seen != {401}} <= {
        "getLiveness",
        "getReadiness",
        "getPage",
        "getClient",
    }, without
    assert "Traceback" not in guarded.log()


@pytest.mark.parametrize("examples", EXAMPLES)
async def test_a_scan_of_a_gateway(appliance_file: Path, tmp_path: Path, nats: Nats, examples: int) -> None:
    await create_streams(nats.url)
    async with (
        Daemon(tmp_path, database__url=f"sqlite://{appliance_file}", cluster__url=nats.url),
        gateway_process(tmp_path / "gateway", nats.url) as gateway,
    ):

        async def has_the_jobs() -> bool:
            return (await gateway.get(f"/api/v1/jobs/{quote(NAMES[0], safe='')}"))[0] == 200

        await eventually(has_the_jobs)
        description = (await gateway.get("/api/v1/openapi.json"))[1]
        answers = scan(gateway, description, examples, {}, may_be_away=True)
        assert {200, 400} <= answers["listJobs"]
        assert answers["listInstances"] == answers["getReadiness"] == {200}
        assert "Traceback" not in gateway.log()
