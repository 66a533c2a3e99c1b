"""The kernels of a profiled step as rows of text, for the terminal and the HTML report alike."""

from collections.abc import Iterable, Sequence

from tokc.cost.profile import PREFILL, KernelTime, Profile, Roofs, StepProfile
from tokc.report import units

HEADS = (
    "kernel",
    "launches",
    "time",
    "waiting",
    "share",
    "bytes",
    "GB/s",
    "of memory",
    "FLOPs",
    "GFLOP/s",
    "of peak",
    "bound by",
)
NOTE = (
    "Measured: time in the kernel, waiting for other threads after it, share of both in the step (medians of "
    "means over threads). Counted: bytes and FLOPs, int8 operations among them. What a cache holds can move "
    "faster than memory: activations, and weights where it is as large."
)


def title(step: StepProfile) -> str:
    """Return what the step is."""
    if step.step == PREFILL:
        return f"Prefill, a chunk of {step.tokens} tokens"
    return f"Decode, batch {step.sequences}, {step.context} tokens of context"


def labels(kernels: Iterable[KernelTime]) -> list[str]:
    """Return a short name for each kernel: its op, and what tells it from others of that op."""
    known = list(kernels)
    return [_label(kernel, [other.kernel for other in known if other.op == kernel.op]) for kernel in known]


def _label(kernel: KernelTime, symbols: Sequence[str]) -> str:
    if len(symbols) == 1:
        return kernel.op
    words = [symbol.split("_") for symbol in symbols]
    own = kernel.kernel.split("_")
    shared = next((at for at, column in enumerate(zip(*words, strict=False)) if len(set(column)) > 1), 0)
    return " ".join((kernel.op, *own[shared:]))


def cells(step: StepProfile, roofs: Roofs) -> list[tuple[str, ...]]:
    """Return the rows under `HEADS`, in the plan's order."""
    return [
        (label, *_cells(kernel, roofs))
        for label, kernel in zip(labels(step.kernels), step.kernels, strict=True)
    ]


def _cells(kernel: KernelTime, roofs: Roofs) -> tuple[str, ...]:
    work = kernel.work
    return (
        str(kernel.launches),
        units.seconds(kernel.kernel_s),
        units.seconds(kernel.barrier_s),
        f"{kernel.share:.1%}",
        units.scaled(work.bytes, "B"),
        units.figures(kernel.bytes_per_s / 1e9),
        f"{kernel.bytes_per_s / roofs.read_bytes_per_s:.0%}",
        units.scaled(work.flops, "") if work.flops else "–",
        units.figures(kernel.flops_per_s / 1e9) if work.flops else "–",
        f"{kernel.flops_per_s / roofs.peak(work.arithmetic):.0%} {work.arithmetic}" if work.flops else "–",
        kernel.roof,
    )


def totals(step: StepProfile) -> list[tuple[str, float, str]]:
    """Return the parts of the step: a name, seconds, and what that is."""
    repeated = f"median of {step.step_s.repetitions}"
    rows = [
        ("kernels", step.kernels_s, "measured, sum"),
        ("waiting at barriers", step.barriers_s, "measured, sum"),
        ("starting and ending the step", step.edges_s, "profiled step less both, median"),
        ("profiled step", step.profiled_s.median, f"measured, {repeated}"),
        ("step without the profiler", step.step_s.median, f"measured, {repeated}"),
        ("the profiler's part", step.profiler_s, "difference of both"),
    ]
    if step.engine_s is not None and step.outside_s is not None:
        text = f"measured, median of {step.engine_s.repetitions}: scheduling, sampling and text included"
        rows += [
            ("engine, per token", step.engine_s.median, text),
            ("outside the step", step.outside_s, "engine less the step"),
        ]
    return [
        *rows,
        ("least time by the roofs", step.least_s, "predicted: bytes from memory, FLOPs at the peak"),
    ]


def roofs_stated(profile: Profile) -> str:
    """Return the roofs in words."""
    roofs = profile.roofs
    memory = units.scaled(roofs.read_bytes_per_s, "B/s")
    f32, int8 = (units.scaled(rate, "FLOP/s") for rate in (roofs.f32_flops_per_s, roofs.int8_flops_per_s))
    threads = "1 thread" if profile.threads == 1 else f"{profile.threads} threads"
    return f"{threads}; memory {memory}, f32 {f32}, int8 {int8}"
