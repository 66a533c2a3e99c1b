"""Every pass there is. A test keeps this list and the files of this folder equal."""

from tokc.passes.admit_trees import AdmitTrees
from tokc.passes.attach_draft import AttachDraft
from tokc.passes.base import Pass
from tokc.passes.cast_weights import CastWeights
from tokc.passes.eliminate_dead_code import EliminateDeadCode
from tokc.passes.expose_features import ExposeFeatures
from tokc.passes.fold_constants import FoldConstants
from tokc.passes.fuse_add_rms_norm import FuseAddRmsNorm
from tokc.passes.fuse_attention import FuseAttention
from tokc.passes.fuse_gate_up import FuseGateUp
from tokc.passes.fuse_linear import FuseLinear
from tokc.passes.fuse_qkv import FuseQkv
from tokc.passes.kv_layout import KvLayout
from tokc.passes.quantize_weights import QuantizeWeights
from tokc.passes.rotate_residual import RotateResidual
from tokc.passes.smooth_activations import SmoothActivations

PASSES: tuple[type[Pass], ...] = (
    AdmitTrees,
    AttachDraft,
    CastWeights,
    EliminateDeadCode,
    ExposeFeatures,
    FoldConstants,
    FuseAddRmsNorm,
    FuseAttention,
    FuseGateUp,
    FuseLinear,
    FuseQkv,
    KvLayout,
    QuantizeWeights,
    RotateResidual,
    SmoothActivations,
)
