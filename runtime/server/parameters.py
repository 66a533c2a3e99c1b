"""Every parameter of the API: what it accepts and what it does, or why it is refused.

A parameter that stands in no table is refused as unknown. A refused one may still be sent with a value that
asks for what happens anyway (`store: false`).
Source: platform.openai.com/docs/api-reference (chat, completions); docs.vllm.ai, OpenAI-compatible server.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from tokc.runtime.sequence import MAX_LOGPROBS
from tokc.runtime.server.errors import ApiError, Json, invalid
from tokc.runtime.server.schema import check, kind_of

MAX_CHOICES, MAX_STOPS, MAX_PRIORITY = 64, 16, 100
INT32, INT64 = 2**31 - 1, 2**63 - 1

Table = Mapping[str, Json]


class Refused(NamedTuple):
    """A parameter whose effect does not exist here; `harmless` values ask for nothing."""

    reason: str
    harmless: tuple[Any, ...] = ()


def _text(summary: str, **more: object) -> Json:
    return {"type": "string", "description": summary, **more}


def _flag(summary: str) -> Json:
    return {"type": "boolean", "description": summary}


def _integer(summary: str, low: int, high: int = INT32) -> Json:
    return {"type": "integer", "minimum": low, "maximum": high, "description": summary}


def _number(summary: str, low: float, high: float) -> Json:
    return {"type": "number", "minimum": low, "maximum": high, "description": summary}


def _array(items: Json, **more: object) -> Json:
    return {"type": "array", "items": items, **more}


TOKEN: Json = {"type": "integer", "minimum": 0, "maximum": INT32}
STOP: Json = {"type": "string", "minLength": 1, "maxLength": 1024}

SCHEMA: Json = {
    "anyOf": [{"type": "object"}, {"type": "string", "minLength": 1}],
    "description": "A JSON schema, or its text.",
}
REGEX = _text("A regular expression that the whole answer matches.", minLength=1)
CHOICE = _array({"type": "string", "minLength": 1}, minItems=1, description="The answers to choose from.")
GRAMMAR = _text("A context-free grammar in the notation of Lark or GBNF.", minLength=1)

SHARED: Table = {
    "model": _text("The name of the model; this server has one."),
    "stream": _flag("Send the answer as server-sent events."),
    "stream_options": {
        "type": "object",
        "description": "Only with `stream`.",
        "properties": {
            "include_usage": _flag("Count tokens in a last chunk."),
            "include_obfuscation": {"type": "boolean", "enum": [False]},
        },
        "additionalProperties": False,
    },
    "n": _integer("How many answers.", 1, MAX_CHOICES),
    "stop": {
        "anyOf": [STOP, _array(STOP, maxItems=MAX_STOPS)],
        "description": "Texts that end the answer and are not part of it; also across tokens.",
    },
    "temperature": _number("0 is greedy. Default: the model's own recommendation.", 0, 2),
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "description": "Nucleus sampling."},
    "seed": _integer("The same seed gives the same answer.", -INT64 - 1, INT64),
    "presence_penalty": _number("Subtracted from what was said.", -2, 2),
    "frequency_penalty": _number("Subtracted for each time it was said.", -2, 2),
    "logit_bias": {
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "description": "Token ids and what is added to their logits.",
    },
    "user": _text("Your user, for the audit log.", maxLength=512),
    "safety_identifier": _text("As `user`.", maxLength=512),
    "prompt_cache_key": _text("A hint for routing; here is one cache, always looked into.", maxLength=512),
    "top_k": _integer("Only the likeliest k tokens; 0 and -1 are off.", -1),
    "min_p": _number("Only tokens with this share of the likeliest one's probability.", 0, 1),
    "repetition_penalty": {
        "type": "number", "minimum": 0.01, "maximum": 100,
        "description": "Divides what was read or said; 1 is off.",
    },
    "ignore_eos": _flag("Go on after the model's end."),
    "min_tokens": _integer("Nothing ends the answer before.", 0),
    "stop_token_ids": _array(TOKEN, maxItems=256),
    "priority": _integer(
        "Lower is earlier; one step is worth some seconds of waiting.", -MAX_PRIORITY, MAX_PRIORITY
    ),
    "response_format": {
        "type": "object",
        "description": "Hold the answer to JSON, or to JSON of a schema.",
        "properties": {
            "type": {"type": "string", "enum": ["text", "json_object", "json_schema"]},
            "json_schema": {
                "type": "object",
                "properties": {
                    "name": _text("For your own use.", maxLength=64),
                    "description": _text("For your own use."),
                    "schema": {"type": "object", "description": "A JSON schema."},
                    "strict": _flag("Schemas are always kept to."),
                },
                "required": ["schema"],
                "additionalProperties": False,
            },
        },
        "required": ["type"],
        "additionalProperties": False,
    },
    "structured_outputs": {
        "type": "object",
        "description": "Hold the answer to one of these.",
        "properties": {
            "json": SCHEMA,
            "json_object": _flag("Any JSON object."),
            "regex": REGEX,
            "choice": CHOICE,
            "grammar": GRAMMAR,
        },
        "additionalProperties": False,
    },
    "guided_json": SCHEMA,
    "guided_regex": REGEX,
    "guided_choice": CHOICE,
    "guided_grammar": GRAMMAR,
    "cache_salt": _text("Cached beginnings are found with the same salt only.", minLength=1, maxLength=512),
}  # fmt: skip

_PROMPT: Json = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        _array({"type": "string", "minLength": 1}, minItems=1),
        _array(TOKEN, minItems=1),
        _array(_array(TOKEN, minItems=1), minItems=1),
    ],
    "description": "A text, texts, or token ids.",
}

COMPLETION: Table = {
    **SHARED,
    "prompt": _PROMPT,
    "max_tokens": _integer("Default 16.", 1),
    "echo": _flag("Put the prompt before the answer."),
    "best_of": _integer("Make so many and return the `n` likeliest by token.", 1, MAX_CHOICES),
    "logprobs": _integer("How many alternatives to report for each token.", 0, MAX_LOGPROBS),
}

_PART: Json = {
    "type": "object",
    "properties": {"type": {"type": "string", "enum": ["text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_CALL: Json = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "type": {"type": "string", "enum": ["function"]},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
            "required": ["name", "arguments"],
        },
    },
    "required": ["function"],
}
MESSAGE: Json = {
    "type": "object",
    "properties": {
        "role": {
            "type": "string",
            "enum": ["system", "developer", "user", "assistant", "tool", "function"],
        },
        "content": {"anyOf": [{"type": "string"}, _array(_PART)]},
        "name": {"type": "string"},
        "tool_call_id": {"type": "string"},
        "tool_calls": _array(_CALL),
        "refusal": {"type": "string"},
        "reasoning_content": {"type": "string"},
    },
    "required": ["role"],
    "additionalProperties": False,
}

_NAME: Json = {"type": "string", "minLength": 1, "maxLength": 64}
_TOOL: Json = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": ["function"]},
        "function": {
            "type": "object",
            "properties": {
                "name": _NAME,
                "description": {"type": "string"},
                "parameters": {"type": "object", "description": "A JSON schema."},
                "strict": _flag("Calls that must be made always keep to the schema."),
            },
            "required": ["name"],
            "additionalProperties": False,
        },
    },
    "required": ["type", "function"],
    "additionalProperties": False,
}
_TOOL_CHOICE: Json = {
    "anyOf": [
        {"type": "string", "enum": ["none", "auto", "required"]},
        {
            "type": "object",
            "properties": {
                "type": {"type": "string", "enum": ["function"]},
                "function": {"type": "object", "properties": {"name": _NAME}, "required": ["name"]},
            },
            "required": ["type", "function"],
            "additionalProperties": False,
        },
    ],
    "description": "Whether a tool is called: the model decides (`auto`), it must, or must this one.",
}

CHAT: Table = {
    **SHARED,
    "tools": _array(_TOOL, maxItems=128, description="Functions that the model may call."),
    "tool_choice": _TOOL_CHOICE,
    "parallel_tool_calls": _flag("Whether an answer that must call may call several times."),
    "messages": _array(MESSAGE, minItems=1),
    "max_tokens": _integer("Default: to the end of the context.", 1),
    "max_completion_tokens": _integer("The newer name of `max_tokens`.", 1),
    "logprobs": _flag("Report the log probability of each token."),
    "top_logprobs": _integer("How many alternatives to report; needs `logprobs`.", 0, MAX_LOGPROBS),
    "chat_template_kwargs": {"type": "object", "description": "Passed on to the chat template."},
}

TOKENIZE: Table = {
    "model": SHARED["model"],
    "prompt": {"type": "string"},
    "messages": CHAT["messages"],
    "add_special_tokens": _flag("As for a completion; only with `prompt`."),
    "add_generation_prompt": _flag("End where the answer begins; only with `messages`."),
    "return_token_strs": _flag("Return each token's text too."),
    "chat_template_kwargs": CHAT["chat_template_kwargs"],
}
DETOKENIZE: Table = {"model": SHARED["model"], "tokens": _array(TOKEN)}

_REFUSED_EVERYWHERE: Mapping[str, Refused] = {
    "metadata": Refused("nothing is stored", ({},)),
    "store": Refused("nothing is stored", (False,)),
    "service_tier": Refused("there is one tier", ("auto", "default")),
    "guided_decoding_backend": Refused("there is one backend", ("auto", "guidance")),
    "use_beam_search": Refused("there is no beam search", (False,)),
    "length_penalty": Refused("there is no beam search", (1, 1.0)),
    "include_stop_str_in_output": Refused("a stop text is never part of the answer", (False,)),
    "skip_special_tokens": Refused("special tokens are never part of the text", (True,)),
    "spaces_between_special_tokens": Refused("special tokens are never part of the text", (True,)),
    "truncate_prompt_tokens": Refused("a prompt is not cut; shorten it"),
    "prompt_logprobs": Refused("log probabilities of the prompt are not available"),
    "bad_words": Refused("use 'logit_bias'", ([],)),
    "allowed_token_ids": Refused("use 'logit_bias'"),
    "return_tokens_as_token_ids": Refused("tokens are returned as text", (False,)),
    "return_token_ids": Refused("tokens are returned as text", (False,)),
    "logits_processors": Refused("code of a client is not run", ([],)),
}
COMPLETION_REFUSED: Mapping[str, Refused] = {
    **_REFUSED_EVERYWHERE,
    "suffix": Refused("the model continues a text, it fills no gap", ("",)),
    "add_special_tokens": Refused("use token ids for a prompt without them", (True,)),
}
CHAT_REFUSED: Mapping[str, Refused] = {
    **_REFUSED_EVERYWHERE,
    "functions": Refused("use 'tools'", ([],)),
    "function_call": Refused("use 'tool_choice'", ("none",)),
    "modalities": Refused("answers are text", (["text"],)),
    "audio": Refused("answers are text"),
    "prediction": Refused("a predicted answer is not used"),
    "reasoning_effort": Refused("the effort cannot be chosen", ("none",)),
    "verbosity": Refused("the verbosity cannot be chosen", ("medium",)),
    "web_search_options": Refused("nothing is searched"),
    "prompt_cache_retention": Refused("the cache is in memory", ("in_memory",)),
    "moderation": Refused("nothing is moderated"),
    "echo": Refused("use /v1/completions", (False,)),
    "best_of": Refused("use /v1/completions", (1,)),
    "add_generation_prompt": Refused("an answer always begins after the messages", (True,)),
    "continue_final_message": Refused("an answer always begins after the messages", (False,)),
    "add_special_tokens": Refused("the chat template writes them", (False,)),
    "chat_template": Refused("the model's own chat template is used"),
    "documents": Refused("put documents into the messages", ([],)),
}


def checked(body: object, table: Table, refused: Mapping[str, Refused], required: str | None = None) -> Json:
    """Return the parameters that a body gives, those that are null left out.

    Raises: ApiError naming the first that is unknown, refused, wrong or missing.
    """
    if not isinstance(body, dict):
        raise invalid(f"the body is {kind_of(body)}, expected an object", None, "invalid_type")
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in table:
            check(value, table[name], name)
        elif name in refused:
            _refuse(name, value, refused[name])
        else:
            shown = name if len(name) <= 64 else name[:61] + "..."
            raise invalid(f"unknown parameter: '{shown}'", shown, "unknown_parameter")
    if required is not None and required not in given:
        raise invalid(f"'{required}' is missing", required, "missing_required_parameter")
    return given


def _refuse(name: str, value: object, row: Refused) -> None:
    # 0 == False and 1 == True, but a number is no flag.
    if any(value == item and type(value) is type(item) for item in row.harmless):
        return
    accepted = "".join(f"; '{item}' is accepted" for item in row.harmless if item not in ([], {}, ""))
    raise ApiError(
        HTTPStatus.BAD_REQUEST,
        f"unsupported parameter: '{name}' ({row.reason}{accepted})",
        param=name,
        code="unsupported_parameter",
    )
