"""Lowers a program for several GPUs: one plan for all of them, and the weights of each."""

from tokc.artifact.writer import Tensor
from tokc.ir.program import Program
from tokc.targets.base import Limits
from tokc.targets.gpu.emit import emit
from tokc.targets.gpu.kernel import Kernel
from tokc.targets.gpu.sharding import Rank, sharded
from tokc.targets.plan import Plan


def emit_ranks(
    program: Program, architecture: str, limits: Limits, ranks: int
) -> tuple[Plan, tuple[Kernel, ...], tuple[Tensor, ...], tuple[tuple[Tensor, ...], ...]]:
    """Return the plan of every rank (arena not yet placed), its kernels, and the weights that all ranks have.

    Last come those that each rank has for itself, by rank.
    Raises: TargetRefused as `emit` does, or if the program cannot be cut; it names counts of ranks that fit.
    """
    shares = [sharded(program, Rank(index, ranks)) for index in range(ranks)]
    emitted = [emit(share.program, architecture, limits, ranks) for share in shares]
    plan, kernels, tensors = emitted[0]
    assert all((other, code) == (plan, kernels) for other, code, _ in emitted), "ranks run one plan"
    own = tuple(
        tuple(tensor for tensor in made if share.owns(tensor.name))
        for share, (_, _, made) in zip(shares, emitted, strict=True)
    )
    return plan, kernels, tuple(tensor for tensor in tensors if not shares[0].owns(tensor.name)), own
