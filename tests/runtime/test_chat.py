"""Chat templates: rendered as their makers mean them, compiled when needed."""

import pytest

from tests.runtime.conftest import MakeEngine
from tests.runtime.hash_model import CHATML
from tokc.errors import ArtifactRefused, RequestRefused
from tokc.runtime.chat import ChatTemplate


def test_a_conversation_is_rendered_up_to_where_the_answer_begins() -> None:
    text = ChatTemplate(CHATML, {}).render([{"role": "user", "content": "hi"}])
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_broken_template_is_refused_with_its_line_when_it_is_used() -> None:
    template = ChatTemplate("{{ bos_token }}\n{% for %}", {"bos_token": "<s>"}, where="x.jinja")
    for _ in range(2):
        with pytest.raises(ArtifactRefused, match=r"the chat template is wrong") as refused:
            template.render([{"role": "user", "content": "hi"}])
        assert refused.value.where == "x.jinja:2"


def test_what_the_template_raises_refuses_the_messages() -> None:
    template = ChatTemplate("{{ raise_exception('no system role') }}", {})
    with pytest.raises(RequestRefused, match="no system role"):
        template.render([{"role": "system", "content": "hi"}])


def test_a_server_learns_of_a_broken_template_before_it_serves(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.prepare()
    engine.chat_template = ChatTemplate("{% for %}", {})
    with pytest.raises(ArtifactRefused, match="the chat template is wrong"):
        engine.prepare()
