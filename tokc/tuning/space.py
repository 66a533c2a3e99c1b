"""What a search may choose: how weights and cache are stored, and by which method they are rounded."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from tokc.errors import TokcError
from tokc.ir.program import KvDtype
from tokc.passes.base import Pass
from tokc.passes.kv_layout import KvLayout
from tokc.passes.quantization.methods import MethodName
from tokc.passes.quantize_weights import QuantizeWeights
from tokc.pipeline import Pipeline

if TYPE_CHECKING:
    from optuna import Trial

Bits = Literal[2, 3, 4, 8]
KV_DTYPES: tuple[KvDtype, ...] = ("f16", "int8", "int4")
BITS: tuple[Bits, ...] = (8, 4, 3, 2)
HEAD_BITS: tuple[Bits, ...] = (8, 4)
GROUPS = (32, 64, 128)
METHODS: tuple[MethodName, ...] = get_args(MethodName)


@dataclass(frozen=True)
class Candidate:
    """One way to build; `keep` leaves weights that were stored on a grid on it, whatever the method."""

    bits: Bits = 4
    method: MethodName = "rtn"
    group: int = 32
    head_bits: Bits = 8
    kv: KvDtype = "f16"
    keep: bool = True

    def pipeline(self, base: Pipeline) -> Pipeline:
        """Return `base` with the candidate's grids and cache.

        Raises: TokcError if it quantizes no weights or lays out no cache.
        """
        passes: list[Pass] = []
        found: set[type[Pass]] = set()
        for one in base.passes:
            if isinstance(one, QuantizeWeights):
                one = replace(  # noqa: PLW2901 - its own kind, with other options
                    one,
                    bits=self.bits,
                    method=self.method,
                    group=self.group,
                    head_bits=self.head_bits,
                    requantize=not self.keep,
                )
                found.add(QuantizeWeights)
            elif isinstance(one, KvLayout):
                one = replace(one, dtype=self.kv)  # noqa: PLW2901 - its own kind, with another option
                found.add(KvLayout)
            passes.append(one)
        if found != {QuantizeWeights, KvLayout}:
            raise TokcError(
                "the passes have nothing to choose in",
                hint="tune a target whose passes have quantize-weights and kv-layout",
            )
        return Pipeline(tuple(passes))

    @property
    def same_as(self) -> "Candidate":
        """Return the candidate that builds the same: where grids are kept, nothing is left to choose."""
        return replace(self, bits=4, method="rtn", group=32) if self.keep else self


STARTS = (
    Candidate(),
    Candidate(bits=8, keep=False),
    Candidate(kv="int8"),
    Candidate(head_bits=4),
    Candidate(method="gptq", keep=False),
    Candidate(bits=3, method="gptq", keep=False),
)


def suggest(trial: "Trial", *, stored: bool) -> Candidate:
    """Let a trial choose; `stored` says whether the model came on a grid that can be kept."""
    keep = stored and trial.suggest_categorical("keep", [True, False])
    choices = {"bits": BITS, "method": METHODS, "group": GROUPS, "head_bits": HEAD_BITS, "kv": KV_DTYPES}
    chosen: dict[str, Any] = {name: trial.suggest_categorical(name, among) for name, among in choices.items()}
    candidate = Candidate(**chosen, keep=bool(keep))
    return candidate.same_as if stored else candidate
