"""JSON Schema as tests hold answers to it: with formats, and closed, so that a member nobody documented is an error."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema_rs


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI or AsyncAPI document whose shapes have no members but those that they list."""
    document = copy.deepcopy(document)
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return document


class Shapes:
    """The shapes of such a document, by name."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._components = closed(document)["components"]
        self._validators: dict[str, jsonschema_rs.Draft202012Validator] = {}

    @property
    def names(self) -> set[str]:
        return set(self._components["schemas"])

    def wrong(self, name: str, value: Any) -> list[str]:
        """What of `value` is not as the shape `name` has it."""
        errors = self._validator(name).iter_errors(value)
        return [f"{name} {'/'.join(map(str, e.instance_path))}: {e.message}" for e in errors]

    def one_of(self, names: set[str], value: Any) -> str:
        """The shape that `value` has, exactly one of `names`."""
        right = [name for name in names if self._validator(name).is_valid(value)]
        assert len(right) == 1, right or _nearest({name: self.wrong(name, value) for name in names})
        return right[0]

    def _validator(self, name: str) -> jsonschema_rs.Draft202012Validator:
        if name not in self._validators:
            schema = {"$ref": f"#/components/schemas/{name}", "components": self._components}
            self._validators[name] = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
        return self._validators[name]


def _nearest(found: dict[str, list[str]]) -> list[str]:
    """Of the shapes that `value` has not, what is wrong with the one that it has nearly."""
    return min(found.values(), key=len)
