"""From a model's files to an artifact: import, passes, lowering, writing."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tokc
from tokc.artifact.bom import BOM, bill_of_materials
from tokc.artifact.vocabulary import vocabulary_tensors
from tokc.artifact.writer import Tensor, canonical_json, write_files, write_safetensors, written_aside
from tokc.errors import TargetRefused, TokcError, UnknownOption
from tokc.importers import import_model
from tokc.importers.heads import load_heads
from tokc.importers.mapping import release_pages
from tokc.instruments import Instruments, LedgerEntry
from tokc.ir.execute import onnx_bytes
from tokc.ir.expert_rules import every_expert_bytes
from tokc.ir.ops import node_cost
from tokc.ir.program import Draft, DraftKind, KvDtype, Program
from tokc.passes.admit_trees import AdmitTrees
from tokc.passes.attach_draft import AttachDraft, heads_in
from tokc.pipeline import Pipeline
from tokc.quality.calibration import Calibration, calibrating
from tokc.runtime.artifact import RANK_WEIGHTS
from tokc.runtime.manifest import DRAFT, DraftInfo, FileInfo, KvInfo, LimitsInfo, Manifest, ModelInfo
from tokc.runtime.tokenizer import VOCABULARY
from tokc.targets.base import BoundTarget, Limits, Lowered, Precision
from tokc.targets.table import named_target, runs_here

Progress = Callable[[str], None]

DEFAULT_PRECISION = Precision()

WEIGHT_DTYPES = ("int2", "int3", "int4", "int8", "f16", "f32")
KV_DTYPES: tuple[KvDtype, ...] = ("f16", "int8", "int4", "f32")
FOR_DRAFTS = frozenset({"expose-features", "attach-draft"})
WEIGHTS_FILE = "model.safetensors"
MANIFEST = "manifest.json"
DRAFT_VOCABULARY = "draft.vocabulary"
PREFILL_TOKENS = 512
DECODE_CONTEXT = 1024
BASE_BYTES = 600 << 20


@dataclass(frozen=True)
class Request:
    """What to build: `passes` None is the target's default, `context` None the model's up to 8192 tokens.

    `lora` are folders of adapters, merged into the weights in order. `calibration_text` is what calibrated
    passes run over, None the text of tokc; `unfinished` a folder by which they go on after an interruption.
    `heads` is a file of trained heads of the kind `speculate`, which become the artifact's draft.
    """

    model: Path
    target: str = "cpu"
    precision: Precision = DEFAULT_PRECISION
    passes: str | None = None
    context: int | None = None
    check: bool = True
    dump_ir: Path | None = None
    print_after: tuple[str, ...] = ()
    stop_after: str | None = None
    lora: tuple[Path, ...] = ()
    calibration_text: Path | None = None
    unfinished: Path | None = None
    speculate: DraftKind | None = None
    heads: Path | None = None

    def calibration(self, progress: Progress) -> Calibration:
        """Return what passes calibrate on. Raises: TokcError if its text cannot be read."""
        text = self.calibration_text
        on = Calibration() if text is None else Calibration.of_file(text)
        return replace(on, progress=progress, unfinished=self.unfinished)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Return where passes look for files of heads."""
        heads = self.heads
        return () if heads is None else (heads if heads.is_dir() else heads.parent,)


@dataclass(frozen=True)
class Build:
    """What a build made; `path` is None when it stopped after a pass."""

    path: Path | None
    program: Program
    ledger: tuple[LedgerEntry, ...]
    pipeline: str
    draft_ledger: tuple[LedgerEntry, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def artifact(self) -> Path:
        """Return the artifact's folder."""
        if self.path is None:
            raise TokcError("the build stopped before an artifact was written", hint="leave out --stop-after")
        return self.path


@dataclass(frozen=True)
class Estimate:
    """What a build would do; bytes are predicted from the program's shapes."""

    target: str
    pipeline: str
    model_bytes: int
    weight_bytes: int
    kv_bytes_per_token: int
    build_peak_bytes: int


def precision(dtype: str, kv_dtype: str | None) -> Precision:
    """Return the precision that `dtype` (one of WEIGHT_DTYPES) and `kv_dtype` (default f16, or f32) name.

    Raises: UnknownOption listing what is accepted.
    """
    if dtype not in WEIGHT_DTYPES:
        raise UnknownOption(f"unknown dtype '{dtype}'; choose from {', '.join(WEIGHT_DTYPES)}")
    kv = kv_dtype or ("f32" if dtype == "f32" else "f16")
    for known in KV_DTYPES:
        if kv == known:
            return Precision(weights=dtype, kv=known)
    raise UnknownOption(f"unknown kv dtype '{kv}'; choose from {', '.join(KV_DTYPES)}")


def prepare(request: Request) -> tuple[BoundTarget, Pipeline]:
    """Return the target and pipeline that a request names.

    Raises: TokcError if either does not exist, or the passes serve drafts, which the target lacks.
    """
    bound = named_target(request.target)
    pipeline = Pipeline.parse(request.passes or bound.pipeline(request.precision))
    if request.heads is not None:
        heads = load_heads(request.heads)
        if heads.kind != request.speculate:
            raise TokcError(
                f"the heads are those of '{heads.kind}', asked for was '{request.speculate}'",
                where=str(heads.path),
                hint=f"build with --speculate {heads.kind}",
            )
        pipeline = Pipeline((AttachDraft.of_file(heads.path), *pipeline.passes, AdmitTrees()))
    needing = [pass_.name for pass_ in pipeline.passes if pass_.name in FOR_DRAFTS]
    if needing and not bound.target.drafts:
        raise TargetRefused(
            f"target '{bound.name}' has no drafts yet, which {needing[0]} is for", hint="build for 'cpu'"
        )
    return bound, pipeline


def build(request: Request, out: Path, progress: Progress = lambda _: None) -> Build:
    """Build the artifact `out`.

    Raises: TokcError of the stage that refused; nothing is left at `out` then.
    """
    bound, pipeline = prepare(request)
    calibration = request.calibration(progress)
    progress(f"import {request.model}")
    program = import_model(request.model, context=request.context, lora=request.lora)
    instruments = Instruments(
        check=request.check, dump_ir=request.dump_ir, print_after=request.print_after, progress=progress
    )
    with calibrating(calibration), heads_in(*request.folders):
        program = instruments.run(pipeline, program, stop_after=request.stop_after)
    if request.stop_after is not None:
        return Build(None, program, instruments.ledger, str(pipeline), instruments.draft_ledger)
    progress(f"lower for {bound.name}")
    lowered = bound.target.lower(program, bound.device, Limits(context=program.config.context))
    made = Build(out, program, instruments.ledger, str(pipeline))
    with written_aside(out) as folder:
        digest = _write(folder, made, lowered, instruments, progress)
        warnings = _warnings(program, digest)
    if request.unfinished is not None:
        shutil.rmtree(request.unfinished, ignore_errors=True)
    return replace(made, ledger=instruments.ledger, draft_ledger=instruments.draft_ledger, warnings=warnings)


def estimate(request: Request) -> Estimate:
    """Run the import and the passes' shapes only, and return what a build would take; nothing is written.

    Raises: TokcError of the stage that refused.
    """
    bound, pipeline = prepare(request)
    program = import_model(request.model, context=request.context, lora=request.lora)
    model_bytes = program.weight_bytes()
    with calibrating(Calibration(shapes_only=True)), heads_in(*request.folders):
        program = Instruments(check=False).run(pipeline, program)
    weight_bytes = program.weight_bytes()
    if program.draft is not None:
        weight_bytes += program.draft.program.weight_bytes(besides=program)
    return Estimate(
        target=bound.name,
        pipeline=str(pipeline),
        model_bytes=model_bytes,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes_per_token(program),
        build_peak_bytes=weight_bytes + largest_tensor_bytes(program) * 3 + BASE_BYTES,
    )


def kv_bytes_per_token(program: Program) -> int:
    """Return what one token takes in the cache of all layers; 0 before kv-layout."""
    if program.kv is None:
        return 0
    config, kv = program.config, program.kv
    cached = KvInfo(kv.page, kv.dtype, config.layers, config.kv_heads, config.head_dim).bytes_per_token
    return int(cached) + (0 if program.draft is None else kv_bytes_per_token(program.draft.program))


def largest_tensor_bytes(program: Program) -> int:
    """Return the size of the largest weight as f32, the most that packing holds at once."""
    sizes = [v.const_value.size for v in program.graph.initializers.values() if v.const_value is not None]
    return 4 * max(sizes)


def _write(folder: Path, made: Build, lowered: Lowered, run: Instruments, progress: Progress) -> str:
    """Write every file of the artifact, the manifest of all hashes last; return the hash of the weights."""
    program, pipeline = made.program, made.pipeline

    def packing(tensor: str) -> None:
        release_pages()
        progress(f"pack {tensor}")

    digest = write_safetensors(folder / WEIGHTS_FILE, lowered.tensors, packing)
    weights = FileInfo(sha256=digest, bytes=(folder / WEIGHTS_FILE).stat().st_size)
    files = {
        **lowered.files,
        "program.onnx": onnx_bytes(program),
        "config.json": canonical_json(asdict(program.config)),
        "source_config.json": canonical_json(dict(program.assets.source_config)),
        "generation_config.json": canonical_json(dict(program.assets.generation_config)),
        "cost.json": canonical_json(work_of(program)),
        **_texts(program),
    }
    if program.draft is not None:
        files[f"{DRAFT}/program.onnx"] = onnx_bytes(program.draft.program)
    entries = {WEIGHTS_FILE: weights, **write_files(folder, files), **_vocabulary(folder, program)}
    for rank, tensors in enumerate(lowered.rank_tensors):
        name = RANK_WEIGHTS.format(rank)
        own = write_safetensors(folder / name, tensors, packing)
        entries[name] = FileInfo(sha256=own, bytes=(folder / name).stat().st_size)
    if program.draft is not None:
        entries |= _draft_weights(folder, program.draft, lowered, packing)
    manifest = _manifest(made.artifact.name.removesuffix(".tokc"), program, lowered, pipeline)
    if run.check and runs_here(lowered.info):
        progress("check the lowered program against the last pass")
        (folder / MANIFEST).write_bytes(canonical_json(manifest._replace(files=entries).to_json()))
        run.check_lowered(folder, program)
        run.check_lowered_draft(folder, program)
    quality: dict[str, object] = {
        "schema_version": 1,
        "pipeline": pipeline,
        "ledger": [stable(entry.to_json()) for entry in run.ledger],
        "final": None if run.final is None else stable(asdict(run.final)),
    }
    if run.draft_ledger:
        quality["draft_ledger"] = [stable(entry.to_json()) for entry in run.draft_ledger]
    entries |= write_files(folder, {"quality.json": canonical_json(quality)})
    entries |= write_files(folder, {BOM: canonical_json(bill_of_materials(manifest, entries))})
    (folder / MANIFEST).write_bytes(canonical_json(manifest._replace(files=entries).to_json()))
    return digest


def stable(record: Mapping[str, object]) -> dict[str, object]:
    """Return a record as it is stored: six digits and no times, so that builds are the same to the byte."""
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in record.items()
        if key not in {"seconds", "check_seconds"}
    }


def _texts(program: Program) -> dict[str, bytes]:
    texts = {
        "tokenizer.json": program.assets.tokenizer_json,
        "chat_template.jinja": program.assets.chat_template,
    }
    return {name: text.encode() for name, text in texts.items() if text is not None}


def _vocabulary(folder: Path, program: Program) -> dict[str, FileInfo]:
    """Write the vocabulary's table, if the tokenizer has one that suits it."""
    text = program.assets.tokenizer_json
    tensors = None if text is None else vocabulary_tensors(text)
    if tensors is None:
        return {}
    digest = write_safetensors(folder / VOCABULARY, tensors)
    return {VOCABULARY: FileInfo(sha256=digest, bytes=(folder / VOCABULARY).stat().st_size)}


def _draft_weights(
    folder: Path, draft: Draft, lowered: Lowered, packing: Callable[[str], None]
) -> dict[str, FileInfo]:
    """Write the weights that the draft alone has, and the ids of the tokens that it drafts from."""
    ids = draft.vocabulary
    vocabulary = [] if ids is None else [Tensor(DRAFT_VOCABULARY, "i32", ids.shape, ids.nbytes, lambda: ids)]
    name = f"{DRAFT}/{WEIGHTS_FILE}"
    (folder / DRAFT).mkdir(exist_ok=True)
    digest = write_safetensors(folder / name, (*lowered.draft_tensors, *vocabulary), packing)
    return {name: FileInfo(sha256=digest, bytes=(folder / name).stat().st_size)}


def _warnings(program: Program, weights_sha256: str) -> tuple[str, ...]:
    """Return what a user should know of heads that were trained for other weights than the artifact's."""
    draft = program.draft
    if draft is None or draft.trained_on in {None, weights_sha256}:
        return ()
    held = "" if draft.acceptance is None else f" than the {draft.acceptance:.0%} that held there"
    said = f"the heads '{draft.file}' were trained on other weights: fewer drafted tokens may hold{held}; "
    return (f"{said}answers stay the same, and `tokc train-heads` trains heads for this build",)


def _draft_info(draft: Draft) -> DraftInfo:
    return DraftInfo(
        kind=draft.kind,
        vocab=draft.logits,
        heads=draft.heads,
        kv_heads=draft.program.config.kv_heads if draft.program.config.layers else 0,
        file=draft.file,
        sha256=draft.file_sha256,
        acceptance=draft.acceptance,
    )


def _manifest(name: str, program: Program, lowered: Lowered, pipeline: str) -> Manifest:
    config, kv = program.config, program.kv
    if kv is None:
        raise AssertionError("a lowered program has a cache layout")
    names = set(ModelInfo._fields)
    facts = {key: value for key, value in asdict(config).items() if key in names}
    limits = lowered.limits
    return Manifest(
        tokc_version=tokc.__version__,
        name=name,
        target=lowered.info,
        model=ModelInfo(**facts, special_tokens=dict(program.assets.special_tokens)),
        kv=KvInfo(kv.page, kv.dtype, config.layers, config.kv_heads, config.head_dim),
        limits=LimitsInfo(limits["context"], limits["tokens"], limits["rows"]),
        pipeline=pipeline,
        licence=program.assets.licence,
        provenance=dict(program.assets.provenance),
        calibration=dict(program.assets.calibration),
        draft=None if program.draft is None else _draft_info(program.draft),
    )


def work_of(program: Program) -> dict[str, object]:
    """Return the operations and bytes of a decode and a prefill step by kind of op, predicted from shapes."""
    context = min(DECODE_CONTEXT, program.config.context)
    prefill = min(PREFILL_TOKENS, program.config.context)
    draft = None if program.draft is None else program.draft.program
    return {
        "schema_version": 1,
        "decode": {"tokens": 1, "context": context, "ops": _work(program, 1, context)},
        "prefill": {"tokens": prefill, "context": prefill, "ops": _work(program, prefill, prefill)},
        **({} if draft is None else {"draft": _draft_work(draft, context)}),
    }


def _draft_work(draft: Program, context: int) -> dict[str, object]:
    return {"tokens": 1, "context": context, "ops": _work(draft, 1, context)}


def _work(program: Program, tokens: int, context: int) -> list[dict[str, object]]:
    totals: dict[str, list[float]] = {}
    for node in program.graph:
        cost = node_cost(node, tokens=tokens, context=context)
        row = totals.setdefault(node.op_type, [0, 0.0, 0.0, 0.0])
        for place, more in enumerate((1, cost.flops, cost.bytes, every_expert_bytes(node))):
            row[place] += more
    return [
        {"op": op, "count": count, "flops": flops, "bytes": moved}
        | ({"every_expert_bytes": experts} if experts else {})
        for op, (count, flops, moved, experts) in sorted(totals.items())
    ]
