"""The API's OpenAPI document, made from the tables that requests are checked against.

Source: spec.openapis.org/oas/v3.2.0 (its `itemSchema` describes an event of a stream).
"""

from collections.abc import Mapping

from tokc.runtime.server.errors import Json
from tokc.runtime.server.parameters import CHAT, COMPLETION, DETOKENIZE, TOKENIZE, Table

_COUNT: Json = {"type": "integer", "minimum": 0}
_TEXT: Json = {"type": "string"}
_NULLABLE_TEXT: Json = {"type": ["string", "null"]}


def _object(required: Mapping[str, Json], optional: Mapping[str, Json] | None = None) -> Json:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


def _array(items: Json) -> Json:
    return {"type": "array", "items": items}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_FINISH: Json = {"type": "string", "enum": ["stop", "length"]}
_CHAT_FINISH: Json = {"type": "string", "enum": ["stop", "length", "tool_calls"]}
_CALL = _object(
    {"id": _TEXT, "type": {"const": "function"}, "function": _object({"name": _TEXT, "arguments": _TEXT})}
)
_LOGPROBS: Json = {"type": ["object", "null"]}
_HEAD: Mapping[str, Json] = {"id": _TEXT, "created": _COUNT, "model": _TEXT}
_ERROR = _object(
    {"error": _object({"message": _TEXT, "type": _TEXT, "param": _NULLABLE_TEXT, "code": _NULLABLE_TEXT})}
)
_USAGE = _object(
    {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": _object({"cached_tokens": _COUNT}),
    }
)


def _chunk(kind: str, piece: Mapping[str, Json], finish: Json) -> Json:
    """Return the schema of one event's data; the last choice-less one counts tokens."""
    reason = {"finish_reason": {"anyOf": [finish, {"type": "null"}]}}
    choice = _object({"index": _COUNT, **piece, "logprobs": _LOGPROBS, **reason})
    usage: Json = {"anyOf": [_USAGE, {"type": "null"}]}
    return _object({**_HEAD, "object": {"const": kind}, "choices": _array(choice)}, {"usage": usage})


_DELTA: Json = {
    "type": "object",
    "properties": {
        "role": {"const": "assistant"},
        "content": _TEXT,
        "tool_calls": _array({"type": "object", "required": ["index"]}),
    },
}
CHUNKS: Mapping[str, Json] = {
    "Completion": _chunk("text_completion", {"text": _TEXT}, _FINISH),
    "ChatCompletion": _chunk("chat.completion.chunk", {"delta": _DELTA}, _CHAT_FINISH),
}
SCHEMAS: Mapping[str, Json] = {
    "Error": _ERROR,
    "Usage": _USAGE,
    "Completion": _object(
        {
            **_HEAD,
            "object": {"const": "text_completion"},
            "choices": _array(
                _object({"index": _COUNT, "text": _TEXT, "logprobs": _LOGPROBS, "finish_reason": _FINISH})
            ),
            "usage": _ref("Usage"),
        }
    ),
    "ChatCompletion": _object(
        {
            **_HEAD,
            "object": {"const": "chat.completion"},
            "choices": _array(
                _object(
                    {
                        "index": _COUNT,
                        "message": _object(
                            {"role": {"const": "assistant"}, "content": _NULLABLE_TEXT},
                            {"tool_calls": _array(_CALL)},
                        ),
                        "logprobs": _LOGPROBS,
                        "finish_reason": _CHAT_FINISH,
                    }
                )
            ),
            "usage": _ref("Usage"),
        }
    ),
    "Model": _object(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": _COUNT,
            "owned_by": _TEXT,
            "max_model_len": _COUNT,
        }
    ),
    "Models": _object({"object": {"const": "list"}, "data": _array(_ref("Model"))}),
    "Tokens": _object(
        {
            "count": _COUNT,
            "max_model_len": _COUNT,
            "tokens": _array(_COUNT),
            "token_strs": {"type": ["array", "null"], "items": _TEXT},
        }
    ),
    "Text": _object({"prompt": _TEXT}),
    "Status": _object({"status": _TEXT}, {"error": _TEXT}),
    "Version": _object({"version": _TEXT}),
}


def document(version: str, *, model: str, keyed: bool) -> Json:
    """Return the document of a server of this version and model; `keyed` if it asks for API keys."""
    whole = _document(version, model)
    return whole if keyed else _without_security(whole)


def _without_security(whole: Json) -> Json:
    """Return the document of a server that lets everybody in."""
    for operations in whole["paths"].values():
        for operation in operations.values():
            if isinstance(operation, dict):
                operation.pop("security", None)
                operation["responses"].pop("401", None)
    del whole["components"]["securitySchemes"]
    return whole


def _document(version: str, model: str) -> Json:
    named: Table = {"model": {**COMPLETION["model"], "enum": [model]}}
    return {
        "openapi": "3.2.0",
        "info": {"title": "tokc", "version": version, "license": {"name": "Apache-2.0"}},
        "paths": {
            "/v1/completions": _post(
                "Continue a prompt", {**COMPLETION, **named}, "prompt", "Completion", stream=True
            ),
            "/v1/chat/completions": _post(
                "Answer a chat", {**CHAT, **named}, "messages", "ChatCompletion", stream=True
            ),
            "/v1/models": _get("List the model", "Models", key=True),
            "/v1/models/{model}": {
                **_get("Describe the model", "Model", key=True, refusals=(404,)),
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}],
            },
            "/tokenize": _post("Show a prompt's tokens", {**TOKENIZE, **named}, None, "Tokens"),
            "/detokenize": _post("Show the text of tokens", {**DETOKENIZE, **named}, "tokens", "Text"),
            "/health": _get("Say whether the process should live on", "Status", sick=True),
            "/ready": _get("Say whether requests should come here", "Status", sick=True),
            "/version": _get("Tell the version", "Version"),
            "/openapi.json": {"get": _operation("Describe the API", {"200": _json("This document", {})})},
            "/metrics": {
                "get": {
                    **_operation("Metrics for Prometheus", {"200": _plain(), **_refusals((401, 429))}),
                    "security": [{"key": []}],
                }
            },
        },
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(summary: str, responses: Json) -> Json:
    return {"summary": summary, "responses": responses}


def _get(
    summary: str, schema: str, *, key: bool = False, sick: bool = False, refusals: tuple[int, ...] = ()
) -> Json:
    responses = {"200": _json(schema, _ref(schema)), **_refusals(refusals)}
    if sick:
        responses["503"] = _json("Not now", _ref("Status"))
    if not key:
        return {"get": _operation(summary, responses)}
    responses |= _refusals((401, 429))
    return {"get": {**_operation(summary, responses), "security": [{"key": []}]}}


def _post(summary: str, table: Table, required: str | None, schema: str, *, stream: bool = False) -> Json:
    answer = _json(schema, _ref(schema))
    if stream:
        answer["content"]["text/event-stream"] = {"itemSchema": _event(CHUNKS[schema])}
    statuses = (400, 401, 404, 408, 413, 415, 429, 503, *((504,) if stream else ()))
    body = {
        "type": "object",
        "properties": dict(table),
        "required": [] if required is None else [required],
        "additionalProperties": False,
    }
    operation = _operation(summary, {"200": answer, **_refusals(statuses)})
    content = {"application/json": {"schema": _nullable(body)}}
    return {
        "post": {
            **operation, "requestBody": {"required": True, "content": content}, "security": [{"key": []}]
        }
    }  # fmt: skip


def _event(chunk: Json) -> Json:
    """Return the schema of an event: a piece, an error that ends the stream, or its end."""
    piece: Json = {
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [chunk, _ERROR]},
    }
    return _object({"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, piece]}})


def _nullable(schema: Json) -> Json:
    """Return a schema in which whatever may be left out may be null, as requests are read."""
    changed = dict(schema)
    if "properties" in schema:
        properties = {name: _nullable(one) for name, one in schema["properties"].items()}
        changed["properties"] = {
            name: one if name in schema.get("required", ()) else {"anyOf": [one, {"type": "null"}]}
            for name, one in properties.items()
        }
    if "items" in schema:
        changed["items"] = _nullable(schema["items"])
    if "anyOf" in schema:
        changed["anyOf"] = [_nullable(one) for one in schema["anyOf"]]
    return changed


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _plain() -> Json:
    return {"description": "Samples", "content": {"text/plain": {"schema": _TEXT}}}


def _refusals(statuses: tuple[int, ...]) -> Json:
    return {str(status): _json("Refused", _ref("Error")) for status in statuses}
