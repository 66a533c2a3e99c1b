"""Compile a model for this machine, load it, and stream an answer.

python examples/compile_and_generate.py model.gguf
"""

import sys
from pathlib import Path

import tokc


def main(model: Path) -> None:
    """Build beside the working folder unless that was done before."""
    artifact = Path(f"{model.stem}.tokc")
    if not artifact.exists():
        tokc.compile(model, target="cpu", context=2048, out=artifact)
    with tokc.load(artifact) as engine:
        question = [{"role": "user", "content": "Name three rivers."}]
        for delta in engine.stream_chat(question, max_tokens=48):
            print(delta.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
