"""`tokc` over a model that is made of hashes: the program as it is, but for what it loads."""

import tokc
from tests.runtime.hash_model import CHATML, EOS, HashModel, byte_tokenizer
from tokc.cli.entry import main
from tokc.runtime.chat import ChatTemplate
from tokc.runtime.engine import Engine


def load(*_: object, **__: object) -> Engine:
    """Return the engine that every artifact is here."""
    return Engine(
        HashModel(), byte_tokenizer(), name="hash", eos_ids=[EOS], chat_template=ChatTemplate(CHATML, {})
    )


tokc.load = load
main()
