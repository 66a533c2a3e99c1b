"""Renders a conversation as the model's chat template says, as transformers' `apply_chat_template` does."""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from functools import cached_property
from typing import TYPE_CHECKING

from tokc.errors import ArtifactRefused, RequestRefused

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, object]


class ChatTemplate:
    """A chat template, compiled when it is first used: a plain prompt needs none."""

    def __init__(
        self, text: str, special_tokens: Mapping[str, str], *, where: str = "chat_template.jinja"
    ) -> None:
        """Keep the template; `special_tokens` (`bos_token`, ...) are names that it may use."""
        self._text, self._where = text, where
        self._special_tokens = dict(special_tokens)

    @property
    def text(self) -> str:
        """Return the template as it was written."""
        return self._text

    @property
    def knows_tools(self) -> bool:
        """Say whether it writes tools by itself."""
        return "tools" in self._text

    @cached_property
    def compiled(self) -> "Template":
        """Return the compiled template.

        Raises: ArtifactRefused if it is no template.
        """
        import jinja2

        from tokc.runtime.chat_sandbox import sandbox

        try:
            return sandbox().from_string(self._text)
        except jinja2.TemplateSyntaxError as error:
            raise ArtifactRefused(
                f"the chat template is wrong: {error.message}", where=f"{self._where}:{error.lineno}"
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
        template = self.compiled
        from jinja2 import TemplateError

        try:
            return template.render(
                messages=[dict(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self._special_tokens, **variables},
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise RequestRefused(
                f"the chat template refuses the messages: {error}", where="messages"
            ) from error
