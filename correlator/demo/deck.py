"""Which jobs the made-up appliance runs, and what befalls them: cards that are dealt, each becoming a plan.

Always: pure; the same seed gives the same plans in the same order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from random import Random
from uuid import UUID

from correlator.demo.plans import Ending, Ids, JobPlan, Kind, LegacyPlan, Line, Plan, StepEnding, StepPlan
from correlator.demo.values import Level

ERRORS = (
    "CloudStack job 431 failed: Unable to attach volume <vol-9>",
    "snapshot of volume <vol-12> timed out after 300s",
    'SSH to oma failed: dial tcp 10.245.246.134:22: connect: "no route to host" & giving up',
)
# The last three are what readers trip over: markup, a space with a slash, a letter outside ASCII.
VMS = (
    "pgtest2",
    "pgtest1",
    "QCDEV-AUVIK01",
    "web+api#1",
    "<img src=x onerror=alert(1)>",
    "SVR 2019/Prod",
    "büro-server",
)
_VM_WEIGHTS = (5, 5, 5, 2, 1, 2, 2)

FAILOVER_STEPS = (
    "validation",
    "source-vm-power-off",
    "final-sync",
    "volume-mode-switch-failover",
    "multi-volume-snapshot-creation",
    "virtio-driver-injection",
    "vm-creation",
    "volume-attachment",
    "vm-startup-and-validation",
    "status-update",
)
ROLLBACK_STEPS = (
    "failover-job-retrieval",
    "test-vm-shutdown",
    "volume-detachment",
    "multi-volume-snapshot-cleanup",
    "volume-reattachment-to-oma",
    "test-vm-deletion",
    "failover-job-status-update",
)
MIGRATION_STEPS = ("validate", "snapshot", "replicate", "finalise")
BULK_STEPS = ("validate-groups", "process-bulk-additions")


def context_id(vm: str) -> str:
    """Return the context ID of a VM: all its failovers and rollbacks share it."""
    return f"ctx-{vm}-20250922-{VMS.index(vm):06d}"


# The opening shows the product's point first (a GUI's ID that stands in no column), then one of everything; after it
# the same cards are dealt again and again, shuffled.
_OPENING = (
    *("failover skewed", "scheduler", "rollback twice", "legacy"),
    *("failover panic", "bulk cancelled", "died", "failover failed"),
)
_DECK = (
    *("failover", "failover", "failover", "failover skipped", "failover failed", "failover panic"),
    *("rollback", "rollback twice", "scheduler", "scheduler", "bulk", "bulk cancelled", "legacy"),
)


def plans(seed: int) -> Iterator[Plan]:
    """Yield the live traffic, without end."""
    for number, card in enumerate(chain(_OPENING, _shuffled(Random(f"{seed}-deck")))):
        yield plan(card, Random(f"{seed}-{number}"))


def past(seed: int, count: int) -> list[Plan]:
    """Return what ran before the demo was started: jobs that ended, and the first one, which never will."""
    cards = ["died", *islice(_shuffled(Random(f"{seed}-past")), count - 1)]
    return [plan(card, Random(f"{seed}-past-{number}")) for number, card in enumerate(cards)]


def _shuffled(random: Random) -> Iterator[str]:
    while True:
        yield from random.sample(_DECK, len(_DECK))


def plan(card: str, random: Random) -> Plan:
    """Return the plan of one card: a word for what runs, and one for what befalls it."""
    what, _, fate = card.partition(" ")
    match what:
        case "failover":
            return _failover(random, fate)
        case "died":
            return _died(random)
        case "rollback":
            return _rollback(random, twice=fate == "twice")
        case "scheduler":
            return _scheduler(random)
        case "bulk":
            return _bulk(random, cancelled=fate == "cancelled")
        case "legacy":
            return _legacy(random)
    raise ValueError(f"no such card: {card!r}")


def _failover(random: Random, fate: str) -> JobPlan:
    kind = random.choice(tuple(Kind))
    vm = VMS[0] if fate == "skewed" else _vm(random)
    steps = _steps(random, FAILOVER_STEPS, vm)
    ending, error = Ending.COMPLETED, None
    match fate:
        case "failed":
            ending, error = Ending.FAILED, random.choice(ERRORS)
            steps = _cut(steps, random.randrange(3, len(steps)), StepEnding.FAILED)
        case "panic":
            steps = _struck(steps, random.randrange(1, len(steps)), StepEnding.PANICKED)
        case "skipped":
            steps = _struck(steps, FAILOVER_STEPS.index("virtio-driver-injection"), StepEnding.SKIPPED)
    return JobPlan(
        id=_uuid(random),
        job_type="failover",
        operation=f"unified-{kind}-failover",
        owner="system",
        category="failover",
        vm=vm,
        context_id=context_id(vm),
        ids=Ids.BOTH,
        id_prefix=f"unified-{kind}-failover",
        skew=1 if fate == "skewed" else random.choice((0, 1)),
        ending=ending,
        error=error,
        steps=steps,
        reports_percent=random.random() < 0.5,
        steps_planned=len(FAILOVER_STEPS),
        kind=kind,
        # Now and then the legacy row is there before the job: a reader first shows the one, then merges it.
        legacy_lead=random.choice((0.0, 0.0, 0.0, 2.0)),
    )


def _died(random: Random) -> JobPlan:
    job = _failover(random, "")
    steps = _cut(job.steps, random.randrange(2, 5), StepEnding.NEVER)
    return replace(job, ids=Ids.METADATA, category=None, ending=Ending.DIED, steps=steps, legacy_lead=None)


def _rollback(random: Random, *, twice: bool) -> JobPlan:
    kind, vm = random.choice(tuple(Kind)), _vm(random)
    steps = _steps(random, ROLLBACK_STEPS, vm)
    return JobPlan(
        id=_uuid(random),
        job_type="cleanup",
        operation=f"enhanced-{kind}-failover-rollback",
        owner="system",
        category="system",
        vm=vm,
        context_id=context_id(vm),
        ids=Ids.ENGINE,
        id_prefix=f"rollback-{kind}",
        ending=Ending.FAILED_THEN_COMPLETED if twice else Ending.COMPLETED,
        error=random.choice(ERRORS) if twice else None,
        steps=_cut(steps, random.randrange(2, len(steps)), StepEnding.FAILED) if twice else steps,
        reports_percent=True,
        steps_planned=len(ROLLBACK_STEPS),
    )


def _scheduler(random: Random) -> JobPlan:
    vms = random.sample(VMS[:4], 3)
    return JobPlan(
        id=_uuid(random),
        job_type="scheduler",
        operation="schedule-execution",
        owner="scheduler",
        category="scheduler",
        vm="",
        ids=Ids.NONE,
        ending=Ending.COMPLETED,
        steps=(),
        # The first child moves its percent_complete silently, the others log their transfer as well.
        children=tuple(_migration(random, vm, silent=n == 0) for n, vm in enumerate(vms)),
    )


def _migration(random: Random, vm: str, *, silent: bool) -> JobPlan:
    fails = random.random() < 0.15
    steps = _steps(random, MIGRATION_STEPS, vm)
    percents = (5, 12, 21, 30, 42, 55, 63, 74, 80, 88, 95)
    transfer = tuple(
        Line(Level.INFO, "transfer progress", (("bytes", p * 52428), ("total_bytes", 5242880)), with_context=True)
        for p in percents
    )
    replicate = replace(steps[2], seconds=random.uniform(9, 12), percents=percents, lines=() if silent else transfer)
    steps = (*steps[:2], replicate, replace(steps[3], percents=(100,)))
    return JobPlan(
        id=_uuid(random),
        job_type="migration",
        operation="incremental-replication",
        owner="scheduler",
        vm=vm,
        ids=Ids.METADATA,
        id_prefix="job",
        ending=Ending.FAILED if fails else Ending.COMPLETED,
        error=random.choice(ERRORS) if fails else None,
        steps=_cut(steps, 3, StepEnding.FAILED) if fails else steps,
    )


def _bulk(random: Random, *, cancelled: bool) -> JobPlan:
    vm = _vm(random)
    steps = _steps(random, BULK_STEPS, vm)
    return JobPlan(
        id=_uuid(random),
        job_type="bulk-operations",
        operation="bulk-group-move",
        owner="gui",
        category="bulk",
        vm=vm,
        ids=Ids.NONE,
        ending=Ending.CANCELLED if cancelled else Ending.COMPLETED,
        error="cancelled by operator" if cancelled else None,
        steps=steps,
        reports_percent=True,
        steps_planned=len(BULK_STEPS),
    )


def _legacy(random: Random) -> LegacyPlan:
    statuses = ("pending", "validating", "snapshotting", "creating_vm", "switching_volume", "powering_on", "completed")
    fails, vm = random.random() < 0.3, _vm(random)
    return LegacyPlan(
        vm=vm,
        context_id=context_id(vm),
        kind=random.choice(tuple(Kind)),
        statuses=(*statuses[: random.randrange(2, 6)], "failed") if fails else statuses,
        seconds=random.uniform(3, 9),
        error=random.choice(ERRORS) if fails else None,
    )


def _steps(random: Random, names: Sequence[str], vm: str) -> tuple[StepPlan, ...]:
    return tuple(
        StepPlan(name=name, seconds=round(random.uniform(1, 12), 3), lines=_lines(random, name, vm)) for name in names
    )


def _lines(random: Random, step: str, vm: str) -> tuple[Line, ...]:
    """Return up to four lines: three quarters of a job's rows carry no ids in their columns, so most are plain."""
    lines: list[Line] = []
    for item in range(random.randrange(4)):
        luck = random.random()
        if luck < 0.6:
            lines.append(Line(Level.INFO, f"working on {step}", (("item", item), ("vm_name", vm))))
        elif luck < 0.8:
            attrs = (("attempt", item + 1), ("error", "503 Service Unavailable"))
            lines.append(Line(Level.WARN, "retrying CloudStack API call", attrs, with_context=True))
        else:
            lines.append(Line(Level.DEBUG, "poll volume state", (("state", "Allocated"),), with_context=True))
    return tuple(lines)


def _struck(steps: tuple[StepPlan, ...], index: int, ending: StepEnding) -> tuple[StepPlan, ...]:
    """Return the steps with another ending for one of them; the job goes on after it."""
    struck = replace(steps[index], ending=ending)
    if ending is StepEnding.SKIPPED:
        struck = replace(struck, seconds=0.001, lines=())
    return (*steps[:index], struck, *steps[index + 1 :])


def _cut(steps: tuple[StepPlan, ...], index: int, ending: StepEnding) -> tuple[StepPlan, ...]:
    """Return the steps up to the one that ends like this; the job does not go on after it."""
    return _struck(steps, index, ending)[: index + 1]


def _vm(random: Random) -> str:
    return random.choices(VMS, _VM_WEIGHTS)[0]


def _uuid(random: Random) -> str:
    return str(UUID(int=random.getrandbits(128), version=4))
