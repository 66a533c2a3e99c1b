"""An exporter's graph becomes a Program: it is proved to be a decoder, and that decoder is built.

The graph and its configuration must say the same. So the graph is raised to facts (`raising/`), the decoder
is built of the configuration and the graph's weights, and the facts of what was built are compared with the
graph's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from tokc.errors import ImportRefused
from tokc.importers.architecture import Architecture, architecture_of
from tokc.importers.checkpoint import Checkpoint
from tokc.importers.decoder import HEAD, decoder_program
from tokc.importers.folder import CONFIG, GENERATION, decoder_config, folder_assets, folder_config
from tokc.importers.layouts import named_alike
from tokc.importers.lora import merge_adapters
from tokc.importers.onnx_file import Interface, external_files, fixed_sizes, interface_of, read_onnx, sampled
from tokc.importers.raising.agreement import in_order, refuse_differences, refuse_layers
from tokc.importers.raising.attention import recognized
from tokc.importers.raising.facts import Decoder
from tokc.importers.raising.mismatch import Unmatched
from tokc.importers.raising.names import dense_weights, named_refs, same_numbers
from tokc.importers.raising.sample import Sample, Size
from tokc.importers.raising.stack import Raised, decoder_of
from tokc.importers.rope import rotated_first
from tokc.ir.ops import expand_functions
from tokc.ir.program import Assets, Program

ONNX = ".onnx"
TEXTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
FOLDERS = ("", "onnx")  # where a model folder has its graph
LONG_PREFIX = 64  # tokens of the longest sample of a graph without a cache, more if there are windows


def onnx_in(folder: Path) -> Path | None:
    """Return the graph of a folder that has one and no other weights.

    Raises: ImportRefused if there are several.
    """
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.gguf")):
        return None
    files = [file for inner in FOLDERS for file in sorted((folder / inner).glob(f"*{ONNX}"))]
    if len(files) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in files)
        raise ImportRefused(
            f"the folder holds several graphs: {names}", where=str(folder), hint="name one of them"
        )
    return files[0] if files else None


def load_onnx(path: Path, context: int | None = None, lora: Sequence[Path] = ()) -> Program:
    """Import an ONNX decoder with config.json beside it; `context` in tokens caps the positions.

    Raises: ImportRefused if the file is damaged or no decoder, or the configuration says other.
    """
    return raised_program(read_onnx(path), path, context, lora)


def raised_program(model: ir.Model, path: Path, context: int | None, lora: Sequence[Path] = ()) -> Program:
    """Make the program of a graph whose configuration, tokenizer and template lie beside `path`.

    Raises: ImportRefused as `load_onnx`.
    """
    described = _described(path, context, lora)
    interface = interface_of(model.graph, str(path))
    sizes = list(_sizes(described.architecture, interface, fixed_sizes(interface, str(path))))
    samples = [_sample(model, interface, size, described) for size in sizes]
    raised = [_raised(sample, interface, described, str(path)) for sample in samples]
    program = _built(raised[0].decoder, samples[0], described, lora)
    order = _order(described.architecture)
    for found, size in zip(raised, sizes, strict=True):
        built = in_order(facts_of(program, size), order)
        refuse_differences(found.decoder, built, size.total - 1, str(path), str(described.config))
    return program


@dataclass(frozen=True)
class _Described:
    """Hold what lies beside a graph; `tied` if the configuration says so."""

    config: Path
    architecture: Architecture
    assets: Assets
    tied: bool | None


def _described(path: Path, context: int | None, lora: Sequence[Path]) -> _Described:
    folder = _folder(path)
    if folder is None:
        raise ImportRefused(
            f"there is no '{CONFIG}' beside '{path.name}'",
            where=str(path.parent),
            hint=f"put the model's '{CONFIG}' and 'tokenizer.json' into the folder",
        )
    family, config, generation = folder_config(folder)
    architecture = architecture_of(family, config, context, str(folder / CONFIG))
    tied = config.get("tie_word_embeddings", family.defaults.get("tie_word_embeddings"))
    assets = folder_assets(folder, generation, [file for file in graph_files(path) if file.is_file()], lora)
    assets = replace(assets, source_config=decoder_config(config, family))
    return _Described(folder / CONFIG, architecture, assets, None if tied is None else bool(tied))


def graph_files(path: Path) -> list[Path]:
    """Return the files that the program of a graph is made of, whether they are there or not."""
    folder = _folder(path)
    beside = [folder / name for name in (CONFIG, GENERATION, *TEXTS)] if folder is not None else []
    return [path, *(external_files(path) if path.suffix == ONNX else []), *beside]


def _folder(path: Path) -> Path | None:
    """Return the folder that describes a graph: the file's, or the one above."""
    return next((folder for folder in (path.parent, path.parent.parent) if (folder / CONFIG).is_file()), None)


def _sizes(architecture: Architecture, interface: Interface, batch: int | None) -> Iterator[Size]:
    """Yield sizes that tell batch, cache and tokens apart, the last positions and the windows among them."""
    context = architecture.config.context
    if interface.cache:
        near = (Size(2, 5, 3), Size(3, 0, 7), Size(1, max(context - 4, 1), 4))
    else:
        window = max((window for window in architecture.windows if window < context), default=0)
        near = (Size(2, 0, 5), Size(3, 0, 7), Size(1, 0, min(context, max(LONG_PREFIX, window + 2))))
    for size in near:
        yield size if batch is None else replace(size, batch=batch)


def _sample(model: ir.Model, interface: Interface, size: Size, described: _Described) -> Sample:
    facts = described.architecture.config
    heads = next(
        (tuple(value.shape or ()) for value in interface.cache), (0, facts.kv_heads, 0, facts.head_dim)
    )
    numbers = [heads[1], heads[3]]
    stated = [
        n if isinstance(n, int) else m for n, m in zip(numbers, (facts.kv_heads, facts.head_dim), strict=True)
    ]
    try:
        return sampled(model, interface, size, (stated[0], stated[1]))
    except Unmatched as error:
        raise error.refusal(str(described.config.parent), "the graph cannot be read") from error


def _raised(sample: Sample, interface: Interface, described: _Described, origin: str) -> Raised:
    layers = described.architecture.config.layers
    count, failures = recognized(sample)
    if failures:
        heading = f"recognized {count} of {max(layers, count + len(failures))} attention layers"
        raise failures[-1].refusal(origin, heading) from failures[-1]
    try:
        raised = decoder_of(sample, interface.logits, interface.ids)
        _refuse_outputs(sample, interface, raised)
    except Unmatched as error:
        heading = (
            f"recognized {count} of {max(layers, count)} attention layers, but not what lies around them"
        )
        raise error.refusal(origin, heading) from error
    refuse_layers(len(raised.decoder.layers), layers, origin, str(described.config))
    return raised


def _refuse_outputs(sample: Sample, interface: Interface, raised: Raised) -> None:
    known = {interface.logits, *raised.presents}
    for value in sample.graph.outputs:
        if value not in known:
            raise Unmatched(value, "an output that is the logits or a layer's keys or values")
    grown = [value for value in sample.graph.outputs if value is not interface.logits]
    for past, value in zip(interface.cache, grown, strict=False):
        node = value.producer()
        if node is None or past not in node.inputs:
            raise Unmatched(
                value, f"'{past.name}' grown by the new tokens, as its place among the outputs says"
            )
    if len(set(raised.presents)) != len(interface.cache):
        raise Unmatched(
            interface.logits, f"a layer for each two of {len(interface.cache)} inputs of the cache"
        )


def _built(decoder: Decoder, sample: Sample, described: _Described, lora: Sequence[Path]) -> Program:
    """Build the stated decoder of the graph's weights; those of norms have their offset."""
    architecture = replace(described.architecture, norm_offset=0.0)
    shared = decoder.head.bias is None and same_numbers(sample, decoder.embedding, decoder.head.weight)
    if described.tied and not shared:
        raise ImportRefused(
            "'tie_word_embeddings' is true, but the graph's head has other weights than its embedding",
            where=str(described.config),
            hint="take the configuration that the model was exported with",
        )
    tied = shared if described.tied is None else described.tied
    architecture = replace(architecture, config=replace(architecture.config, tied_embedding=tied))
    refs = named_refs(decoder)
    if tied:
        del refs[HEAD]
    family = architecture.family
    weights = merge_adapters(dense_weights(sample, refs), lora, lambda name: named_alike(name, family))
    return decoder_program(architecture, Checkpoint(str(described.config.parent), weights), described.assets)


def _order(architecture: Architecture) -> list[int]:
    """Return where the decoder takes each element of the heads of q and k from."""
    dim, rotated = architecture.config.head_dim, architecture.rope.rotated
    return list(range(dim)) if rotated is None else rotated_first(dim, rotated)


def facts_of(program: Program, size: Size) -> Decoder:
    """Return what a program in batch form computes, read in the same way as a file's graph."""
    model = expand_functions(program.model)
    InlinePass()(model)
    interface = interface_of(model.graph, "the program")
    heads = (program.config.kv_heads, program.config.head_dim)
    return decoder_of(sampled(model, interface, size, heads), interface.logits, interface.ids).decoder
