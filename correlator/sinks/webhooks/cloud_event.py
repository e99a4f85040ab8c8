"""The public shape of the body of a webhook, from which the served OpenAPI document is generated."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict

from msgspec import Meta

from correlator.jobs.shapes import Document, Time


class CloudEvent(TypedDict):
    """An event of a job or step: CloudEvents 1.0 in structured mode."""

    specversion: Literal["1.0"]
    id: Annotated[str, Meta(description="Names the event; the same in every attempt. Also the header `webhook-id`.")]
    source: Annotated[str, Meta(description="`/correlator/` and `mqtt.instance`.")]
    type: Annotated[str, Meta(description="`correlator.` and the kind of the event. More may come.")]
    subject: Annotated[
        str,
        Meta(description="The job ID. Control characters and noncharacters in it are escaped; `data` has it exactly."),
    ]
    time: Time
    stepid: NotRequired[str]
    stepname: NotRequired[str]
    datacut: NotRequired[
        Annotated[str, Meta(description="The members of `data` that were emptied so that the body fits, by spaces.")]
    ]
    datacontenttype: Literal["application/json"]
    data: Annotated[Document | None, Meta(description="The job at that moment; null if its row was not read.")]
