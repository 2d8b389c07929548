"""
`GET /api/openapi.json`: OpenAPI 3.1, made from the operations and from the structs that decode and answer. Pure.

Source: OpenAPI Specification 3.1.1; its schemas are JSON Schema 2020-12, which is what msgspec writes.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from km_server.api.operations import JSON, Operation
from km_server.config import read_version
from km_server.refusals import ErrorBody

REF = "#/components/schemas/{name}"
Json = dict[str, Any]

MEANINGS = {
    400: "It cannot be understood; nothing was done.",
    401: "No live API key.",
    403: "The key may not do this.",
    404: "There is no such thing.",
    408: "The body was not there in time.",
    413: "Too much at once.",
    415: "Not this content type or coding.",
    422: "Not one event can be stored as it is; nothing was stored.",
    429: "The key sends too fast; see Retry-After.",
    431: "A header or the request line is too long.",
    503: "Not now; see Retry-After.",
}
WITH_RETRY = frozenset({429, 503})
RETRY_AFTER: Json = {
    "description": "Seconds until it is worth trying again.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}


def render_document(operations: Sequence[Operation]) -> Json:
    """The whole document."""
    used = [shape for one in operations for shape in (one.success.body, one.body, one.refusal) if shape is not None]
    shapes: list[type[msgspec.Struct]] = [*dict.fromkeys(used), ErrorBody]
    references, components = msgspec.json.schema_components(shapes, ref_template=REF)
    by_shape = dict(zip(shapes, references, strict=True))
    paths: dict[str, Json] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = render_operation(one, by_shape)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Kilometers server",
            "version": read_version(),
            "summary": "What AI agents do with their tools: events in, questions answered.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "km_…"}},
            "headers": {
                "RetryAfter": {
                    "description": "Seconds.",
                    "required": True,
                    "schema": {"type": "string", "pattern": "^[0-9]+$"},
                }
            },
        },
    }


def render_operation(one: Operation, by_shape: dict[type[msgspec.Struct], Json]) -> Json:
    """One method of one path."""
    rendered: Json = {
        "operationId": one.name,
        "summary": one.summary,
        "parameters": [*render_path(one), *render_query(one.parameters)],
        "responses": {"200": render_success(one, by_shape)},
        "security": [{"key": []}] if one.scope or one.any_key else [],
    }
    if one.scope:
        rendered["x-scope"] = one.scope
    if one.body is not None:
        rendered["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": by_shape[one.body]}},
        }
    if one.refusal is not None:
        rendered["responses"]["422"] = render_problem(422, by_shape[one.refusal])
    for status in one.statuses:
        rendered["responses"][str(status)] = render_problem(status, by_shape[ErrorBody])
    return rendered


def render_success(one: Operation, by_shape: dict[type[msgspec.Struct], Json]) -> Json:
    """What a success has in it."""
    schemas = {
        media_type: by_shape[one.success.body] if one.success.body else {} if media_type == JSON else {"type": "string"}
        for media_type in one.success.media_types
    }
    return {
        "description": one.success.help,
        "content": {media_type: {"schema": schema} for media_type, schema in schemas.items()},
    }


def render_problem(status: int, schema: Json) -> Json:
    """An answer that is no success."""
    problem: Json = {"description": MEANINGS[status], "content": {JSON: {"schema": schema}}}
    if status in WITH_RETRY:
        problem["headers"] = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
    return problem


def render_path(one: Operation) -> list[Json]:
    """The parameters in the path."""
    return [
        {"name": part.name, "in": "path", "required": True, "description": part.help, "schema": part.schema}
        for part in one.in_path
    ]


def render_query(shape: type[msgspec.Struct]) -> list[Json]:
    """The parameters in the query: the fields of a struct, each with its schema written out."""
    _, components = msgspec.json.schema_components([shape], ref_template=REF)
    fields: dict[str, Json] = components.get(shape.__name__, {}).get("properties", {})
    rendered = []
    for name, schema in fields.items():
        plain = expand(schema, components)
        parameter: Json = {"name": name, "in": "query", "required": False, "schema": plain}
        if "description" in plain:
            parameter["description"] = plain.pop("description")
        rendered.append(parameter)
    return rendered


def expand(schema: Json, components: dict[str, Json]) -> Json:
    """A schema without references: a closed set stands where it is used."""
    plain = dict(schema)
    reference = plain.pop("$ref", None)
    for part in plain.pop("allOf", []):
        plain = {**expand(part, components), **plain}
    if reference is None:
        return plain
    named = {key: value for key, value in components[reference.rpartition("/")[2]].items() if key != "title"}
    return {**named, **plain}
