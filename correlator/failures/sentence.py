"""The sentence that says why a job failed: what people read in the terminal, on the page and in webhooks."""

from __future__ import annotations

from correlator.model.document import Certainty

NO_REASON = "No reason was logged."


def sentence(certainty: Certainty, step: str | None, text: str, last_step: str | None = None) -> str:
    """`last_step`: the one that began last; None if there is none. The page says the same (`web/page/sentence.js`)."""
    text = text.rstrip(".")
    match certainty:
        case "stated":
            return f"Step {step}: {text}."
        case "inferred":
            return f"The last step that failed, {step}, says: {text}."
        case "apart":
            where = f" The last step was {last_step}." if last_step else ""
            return f"The job reports: {text}.{where}"
    return NO_REASON
