"""The OpenAPI 3.1 document of this API, built from the very tables that requests are checked against."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from router import __version__
from router.api import fields
from router.api.http import Exchange, Guarded, send_json
from router.api.wire import MAX_IMAGES
from router.types import MAX_PROMPT, ON_DISCONNECT

Json = dict[str, Any]

_TYPES = {
    fields.TEXT: "string",
    fields.INTEGER: "integer",
    fields.BOOLEAN: "boolean",
    fields.OBJECT: "object",
}

_NOTES = {
    "prompt": "What to make.",
    "model": "A model of GET /v1/models, one of its aliases, or provider/model to pin a provider.",
    "models": "Models to ask in turn when model cannot serve the request; metadata.warnings tells if one of them did.",
    "n": "How many pictures.",
    "size": "WIDTHxHEIGHT in pixels, or auto.",
    "size_policy": "Where no target makes the size: refuse it (exact), take the nearest, or cut a larger one (fit).",
    "response_format": "What each item of data carries. Left out: b64_json for gpt-image models, else url.",
    "output_compression": "Quality of jpeg, webp and avif.",
    "stream": "Answer with server-sent events.",
    "partial_images": "Most partial pictures per picture of a stream.",
    "user": "An end user of yours, for attribution.",
    "safety_identifier": "The same; wins over user.",
    "background": "Background of the picture; true runs the request in the background (202).",
    "image_size": "fal's word for size: a preset such as landscape_4_3, or width and height.",
    "num_images": "fal's word for n.",
    "aspect_ratio": "WIDTH:HEIGHT; gives the size together with resolution when no size is sent.",
    "resolution": "512, 0.5K, 1K, 2K, 4K, 0.5 MP, 1 MP, 2 MP or 4 MP.",
    "provider": "How to choose the provider of this request.",
    "webhook_url": "Called with a signed event when the request has ended.",
}

_SIZE = "^(auto|[1-9][0-9]{0,5}x[1-9][0-9]{0,5})$"
_PATTERNS = {"size": _SIZE, "webhook_url": "^https://"}
_LENGTHS = {"prompt": (1, MAX_PROMPT), "model": (1, 256), "user": (0, 512), "safety_identifier": (0, 512)}


def document() -> Json:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pixelroute",
            "version": __version__,
            "summary": "OpenAI's Images API in front of many providers.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}, {"api_key": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "api_key": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
            "schemas": _schemas(),
            "responses": {"Error": _answer("The error object.", _ref("Error"))},
        },
    }


# --- paths ------------------------------------------------------------------------------------------------------


def _paths() -> Json:
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    request = {"name": "request_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    target = {"name": "target", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    forms = "multipart/form-data"
    return {
        "/v1/images/generations": {
            "post": _images("generateImages", "Make pictures from a prompt.", {"application/json": "Generation"})
        },
        "/v1/images/edits": {
            "post": _images("editImages", "Change pictures.", {forms: "EditForm", "application/json": "Edit"})
        },
        "/v1/images/variations": {
            "post": _images("varyImage", "Vary a picture.", {forms: "VariationForm"}, stream=False)
        },
        "/v1/models": {"get": _operation("listModels", "What the calling key may use.", {"200": "ModelList"}, "401")},
        "/v1/models/{model}": {
            "parameters": [model],
            "get": _operation("getModel", "One model; its id may hold slashes.", {"200": "Model"}, "401", "404"),
        },
        "/v1/requests/{request_id}": {
            "parameters": [request],
            "get": _operation("getRequest", "What became of a request.", {"200": "Request"}, "401", "404"),
            "delete": _operation("purgeRequest", "Delete its pictures.", {"200": "Purged"}, "400", "401", "404"),
        },
        "/v1/routing": {
            "get": _operation("getRouting", "What is believed of every target.", {"200": "Routing"}, "401")
        },
        "/v1/routing/{target}/drain": {
            "parameters": [target],
            "post": _operation("drainTarget", "Take a target out by hand.", {"200": "Drained"}, "401", "403", "404"),
        },
        "/v1/routing/{target}/undrain": {
            "parameters": [target],
            "post": _operation("undrainTarget", "Let it in again.", {"200": "Drained"}, "401", "403", "404"),
        },
        "/healthz": {"get": _open("health", "Whether the process lives.")},
        "/readyz": {"get": _open("readiness", "Whether requests can be served.", "503")},
    }


def _images(name: str, summary: str, bodies: dict[str, str], *, stream: bool = True) -> Json:
    done = _answer("The pictures.", _ref("Images"))
    if stream:
        event = _object({"event": _text(), "data": _text()})
        done["content"]["text/event-stream"] = {"schema": event}
    operation = _operation(
        name, summary, {"202": "Request"}, "400", "401", "403", "404", "408", "413", "429", "500", "502", "503", "504"
    )
    operation["responses"]["200"] = done
    operation["parameters"] = [
        _query("dryRun", "Answer with what it would cost, and run nothing."),
        _query("explain", "Tell in metadata.routing how the provider was chosen."),
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Sent again with the same body, the first result comes back and costs nothing.",
            "schema": {"type": "string"},
        },
        *_routing_headers(),
    ]
    operation["requestBody"] = {
        "required": True,
        "content": {kind: {"schema": _ref(schema)} for kind, schema in bodies.items()},
    }
    return operation


def _query(name: str, description: str) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": {"type": "boolean", "default": False}}


def _operation(name: str, summary: str, answers: dict[str, str], *errors: str) -> Json:
    responses: Json = {status: _answer(schema, _ref(schema)) for status, schema in answers.items()}
    responses |= {status: {"$ref": "#/components/responses/Error"} for status in errors}
    return {"operationId": name, "summary": summary, "responses": responses}


def _open(name: str, summary: str, *more: str) -> Json:
    answer = _answer(summary, {"type": "object", "required": ["status"], "properties": {"status": _text()}})
    operation = _operation(name, summary, {})
    operation["security"] = []
    operation["responses"] = dict.fromkeys(("200", *more), answer)
    return operation


def _answer(description: str, schema: Json) -> Json:
    headers = {"x-request-id": {"schema": {"type": "string"}, "required": True}}
    return {"description": description, "headers": headers, "content": {"application/json": {"schema": schema}}}


# --- schemas ----------------------------------------------------------------------------------------------------


def _schemas() -> Json:
    shared = [name for name in fields.KINDS if name != "input_fidelity"]
    source = {
        "type": "object",
        "properties": {"image_url": {"type": "string", "pattern": "^(?i:https?://|data:)"}},
        "required": ["image_url"],
    }
    file = {"type": "string", "format": "binary"}
    files = {"oneOf": [file, {"type": "array", "items": file, "minItems": 1, "maxItems": MAX_IMAGES}]}
    forms = {name: schema for name in fields.KINDS if (schema := _form_field(name)) is not None}
    return {
        "Generation": _object({name: _field(name) for name in shared}, "prompt") | _contradictions(),
        "Edit": _object(
            {name: _field(name) for name in fields.KINDS}
            | {
                "images": {"type": "array", "items": source, "minItems": 1, "maxItems": MAX_IMAGES},
                "mask": {"anyOf": [source, {"type": "null"}]},
            },
            "prompt",
            "images",
        )
        | _contradictions(),
        "EditForm": _object(forms | {"image": files, "mask": file, "markup": file}, "prompt", "image"),
        "VariationForm": _object(
            {name: forms[name] for name in ("model", "n", "size", "response_format", "user")} | {"image": file}, "image"
        ),
        "Images": {"oneOf": [_images_body(), _ref("Quote")]},
        "Quote": {
            "type": "object",
            "required": ["estimated", "model"],
            "properties": {"estimated": {"const": True}, "model": _text()},
        },
        "Error": _object(
            {
                "error": _object(
                    {
                        "message": _text(),
                        "type": _text(),
                        "param": {"type": ["string", "null"]},
                        "code": {"type": ["string", "null"]},
                    },
                    "message",
                    "type",
                    "param",
                    "code",
                )
            },
            "error",
        ),
        "Model": _object(
            {"id": _text(), "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": _text()},
            "id",
            "object",
            "created",
            "owned_by",
        ),
        "ModelList": _object(
            {"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}}, "object", "data"
        ),
        "Request": _object(
            {
                "id": _text(),
                "object": {"const": "request"},
                "status": {"enum": ["processing", "completed", "failed"]},
                "created": {"type": "integer"},
                "operation": _text(),
                "model": _text(),
                "response": {"type": "object"},
                "error": {"type": "object"},
                "status_code": {"type": "integer"},
            },
            "id",
            "object",
            "status",
        ),
        "Routing": _object(
            {
                "object": {"const": "routing"},
                "scope": _object(
                    {
                        "sharing": {"enum": ["off", "up", "down"]},
                        "other_routers": _count(),
                        "reckoned": {
                            "description": "Whose evidence the figures at the top of each target rest on.",
                            "enum": ["this router", "all routers"],
                        },
                        "hour": {
                            "description": "Whose attempts the last hour's figures count.",
                            "enum": ["this router", "all routers"],
                        },
                        "hour_from_s": {
                            "description": "From so many seconds ago on every attempt of the other routers is counted, "
                            "of what they did before some may be missing; null where none of theirs is counted.",
                            "type": ["number", "null"],
                        },
                        "hour_until_s": {
                            "description": "... until so many seconds ago; what they did since is not heard of yet.",
                            "type": ["number", "null"],
                        },
                    },
                    "sharing",
                    "other_routers",
                    "reckoned",
                    "hour",
                    "hour_from_s",
                    "hour_until_s",
                ),
                "targets": {
                    "description": "By target and operation.",
                    "type": "object",
                    "additionalProperties": {"type": "object", "additionalProperties": {"type": "object"}},
                },
            },
            "object",
            "scope",
            "targets",
        ),
        "Drained": _object(
            {
                "target": _text(),
                "drained": {"type": "boolean"},
                "reach": _object(
                    {
                        "kept": {"description": "Whether it is on disk for a restart.", "type": "boolean"},
                        "told": {
                            "description": "Whether the other routers are told; null where none are configured.",
                            "type": ["boolean", "null"],
                        },
                    },
                    "kept",
                    "told",
                ),
                "state": {"type": "object"},
            },
            "target",
            "drained",
            "reach",
            "state",
        ),
        "Purged": _object(
            {"id": _text(), "object": {"const": "request.purged"}, "deleted_pictures": {"type": "integer"}}
        ),
    }


def _images_body() -> Json:
    item = _object({"url": _text(), "b64_json": _text(), "revised_prompt": _text()})
    counts = {"type": "object", "properties": {"text_tokens": _count(), "image_tokens": _count()}}
    usage = _object(
        {
            "input_tokens": _count(),
            "output_tokens": _count(),
            "total_tokens": _count(),
            "input_tokens_details": counts | {"required": ["text_tokens", "image_tokens"]},
            "output_tokens_details": counts,
        },
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "input_tokens_details",
    )
    metadata = _object(
        {
            "model": _text(),
            "executed_model": _text(),
            "provider": _text(),
            "provider_name": _text(),
            "cost": {
                "type": "string",
                "pattern": "^-?[0-9]+(\\.[0-9]+)?$",
                "description": "Exact decimal amount; absent if no price is in force (basis unpriced).",
            },
            "cost_currency": _text(),
            "basis": _text(),
            "line_items": {"type": "array", "items": {"type": "object"}},
            "attempts": {"type": "array", "items": {"type": "object"}},
            "warnings": {"type": "array", "items": _object({"code": _text(), "message": _text()}, "code", "message")},
            "reason": _text(),
            "routing": {"type": "object"},
        },
        "model",
        "executed_model",
        "provider",
        "cost_currency",
    )
    return _object(
        {
            "created": {"type": "integer"},
            "data": {"type": "array", "items": item, "minItems": 1},
            "id": _text(),
            "background": {"enum": ["transparent", "opaque"]},
            "output_format": _text(),
            "quality": {"enum": ["low", "medium", "high", "xhigh", "max"]},
            "size": {"type": "string", "pattern": "^[0-9]+x[0-9]+$"},
            "usage": usage,
            "metadata": metadata,
        },
        "created",
        "data",
        "id",
        "metadata",
    )


def _field(name: str) -> Json:
    """A field of a JSON body. null is the same as absent."""
    kind = fields.KINDS[name]
    if name == "image_size":
        sides = {"width": {"type": "integer", "minimum": 1, "maximum": 99_999}}
        sides["height"] = sides["width"]
        schema: Json = {
            "anyOf": [
                {"enum": [*fields.PRESETS, None]},
                {"type": "string", "pattern": _SIZE},
                {"type": "object", "properties": sides, "required": ["width", "height"]},
            ]
        }
    elif name == "provider":
        schema = {"anyOf": [_preferences(), {"type": "null"}]}
    elif name == "models":
        named = {"type": "string", "minLength": 1, "maxLength": 256}
        schema = {"type": ["array", "null"], "items": named, "maxItems": fields.MAX_MODELS}
    elif name in fields.WORDS:
        words: list[Any] = [*fields.WORDS[name], None]
        schema = {"enum": [*words, True, False] if name == "background" else words}
    else:
        schema = {"type": [_TYPES[kind], "null"]} | _bounds(name)
    return ({"description": _NOTES[name]} if name in _NOTES else {}) | schema


def _form_field(name: str) -> Json | None:
    """The same field in a form, where empty is absent. Objects are flattened there, so they are not described."""
    kind = fields.KINDS[name]
    if kind not in (fields.TEXT, fields.INTEGER, fields.BOOLEAN):
        return None
    if name in fields.WORDS:
        return {"enum": ["", *fields.WORDS[name]]}
    schema = {"type": _TYPES[kind]} | _bounds(name)
    if name == "prompt":
        return schema
    if kind is not fields.TEXT:
        return {"anyOf": [schema, {"const": ""}]}
    if "pattern" in schema:
        schema["pattern"] = f"^$|{schema['pattern']}"
    return schema | ({"minLength": 0} if "minLength" in schema else {})


def _bounds(name: str) -> Json:
    found: Json = {}
    if name in fields.RANGES:
        found["minimum"], found["maximum"] = fields.RANGES[name]
    if name in _LENGTHS:
        found["minLength"], found["maxLength"] = _LENGTHS[name]
    if name in _PATTERNS:
        found["pattern"] = _PATTERNS[name]
    if name == "resolution":
        found["pattern"] = f"^(?i:{'|'.join(fields.RESOLUTIONS).replace('.', '[.]')})$"
    if name == "aspect_ratio":
        found["pattern"] = "^(auto|[1-9][0-9]?:[1-9][0-9]?)$"
    return found


def _preferences() -> Json:
    names = {"type": ["array", "null"], "items": _text(), "maxItems": 64}
    number = {"type": ["number", "null"], "minimum": 0, "maximum": 1_000_000}
    schemas: dict[str, Json] = dict.fromkeys(fields.PREFERENCES, names) | {
        "sort": {"enum": [*fields.SORTS, None]},
        "max_cost": number,
        "max_latency_s": number,
        "min_success": number | {"maximum": 1},
        "allow_fallbacks": {"type": ["boolean", "null"]},
        "on_disconnect": {"enum": [*ON_DISCONNECT, None]},
    }
    told = {name: {"description": fields.PREFERENCES[name]} | schema for name, schema in schemas.items()}
    return {"type": "object", "additionalProperties": False, "properties": told}


def _routing_headers() -> list[Json]:
    """The same preferences by header, for clients that cannot add to the body, and how long the client waits."""
    told = {fields.HEADERS[name].decode(): words for name, words in fields.PREFERENCES.items()}
    told["x-pixelroute-models"] = "models of the body, separated by commas."
    told["x-pixelroute-deadline-s"] = "Seconds after which the client no longer needs the answer."
    return [
        {"name": name.title(), "in": "header", "description": words, "schema": {"type": "string"}}
        for name, words in told.items()
    ]


def _contradictions() -> Json:
    """What may not stand together."""
    transparent = {"background": {"const": "transparent"}, "output_format": {"const": "jpeg"}}
    return {
        "allOf": [
            {"not": {"required": ["n", "num_images"]}},
            {"not": {"required": ["size", "image_size"]}},
            {"not": {"properties": transparent, "required": list(transparent)}},
            {
                "not": {
                    "properties": {"background": {"const": True}, "stream": {"const": True}},
                    "required": ["background", "stream"],
                }
            },
        ]
    }


def _object(properties: Json, *required: str) -> Json:
    schema: Json = {"type": "object", "properties": properties}
    return schema | {"required": list(required)} if required else schema


def _text() -> Json:
    return {"type": "string"}


def _count() -> Json:
    return {"type": "integer", "minimum": 0}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


class OpenApi(Guarded):
    """GET /openapi.json."""

    def __init__(self) -> None:
        self._body = orjson.dumps(document())

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, self._body)
