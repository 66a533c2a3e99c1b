"""Writes a GGUF file in one of llama.cpp's types, as its own quantize does; runs in its environment."""

import sys

import llama_cpp


def quantize(source: str, destination: str, kind: str) -> None:
    """Write `source` as `kind`, such as Q4_K_M: without an importance matrix, every default as it is."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    status = llama_cpp.llama_model_quantize(source.encode(), destination.encode(), settings)
    assert status == 0, f"llama_model_quantize returned {status}"


if __name__ == "__main__":
    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    quantize(*sys.argv[1:])
