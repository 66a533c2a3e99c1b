"""Renders a conversation as the model's chat template says, as transformers' `apply_chat_template` does."""

import json
from collections.abc import Mapping
from collections.abc import Sequence as Items
from datetime import datetime

import jinja2
import jinja2.ext
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokc.errors import ArtifactRefused, RequestRefused

Message = Mapping[str, object]


class ChatTemplate:
    """A compiled chat template; the templates come from model makers, so they run in a sandbox."""

    def __init__(
        self, text: str, special_tokens: Mapping[str, str], *, where: str = "chat_template.jinja"
    ) -> None:
        """Compile the template; `special_tokens` (`bos_token`, ...) are names that it may use.

        Raises: ArtifactRefused if it is no template.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise ArtifactRefused(
                f"the chat template is wrong: {error.message}", where=f"{where}:{error.lineno}"
            ) from error

    def render(
        self,
        messages: Items[Message],
        *,
        tools: Items[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """Return the prompt; `variables` are passed on to the template.

        Raises: RequestRefused if the template does not accept the conversation.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self._special_tokens, **variables},
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise RequestRefused(
                f"the chat template refuses the messages: {error}", where="messages"
            ) from error


class _GenerationTag(jinja2.ext.Extension):
    """Accepts `{% generation %}` blocks, which mark answers for training, and renders what they hold."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> Node | list[Node]:
        next(parser.stream)
        # A scope of its own, as a call block gives it.
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body)


def _to_json(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - the filter's signature in templates
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Return JSON; unlike jinja2's own filter it leaves `<` and `>` alone."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> str:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
