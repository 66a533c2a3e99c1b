"""What a draft is trained to do: to say, over its vocabulary, what the model itself says."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokc.heads.modules import Eagle, Medusa
from tokc.heads.rows import Row

STEP_DECAY = 0.8
FEATURE_WEIGHT = {"medusa": 0.0, "eagle": 0.1}


class SoftCrossEntropy(torch.autograd.Function):
    """Mean over places of ``-sum(p * log_softmax(rows @ x))``, by x alone.

    Shapes: x [n, hidden], rows [vocab, hidden], p f32[n, vocab] -> f32[]. The gradient is computed with the
    value, so that no [n, vocab] is kept for the way back.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, rows: Tensor, p: Tensor) -> Tensor:
        """Return the loss and keep its gradient."""
        logits = (x.to(rows.dtype) @ rows.T).float()
        total = torch.logsumexp(logits, -1, keepdim=True)
        loss = (total[:, 0] - (p * logits).sum(-1)).mean()
        logits.sub_(total).exp_().sub_(p)
        context.save_for_backward((logits.to(rows.dtype) @ rows).float() / len(x))
        return loss

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of x."""
        (kept,) = context.saved_tensors
        return gradients[0] * kept, None, None


def loss_of(module: Medusa | Eagle, row: Row, rows: Tensor, steps: int, feature_weight: float) -> Tensor:
    """Return the loss of a row, later steps counting less; `rows` is the head over the draft's vocabulary.

    To cross entropy is added `feature_weight` times the smooth L1 distance of features.
    Source: EAGLE, arXiv:2401.15077, sec. 3.2; the decay as in Medusa, arXiv:2401.10774, sec. 2.2.1.
    """
    with torch.no_grad():
        real = row.features[row.targets]
        p = torch.softmax((real.to(rows.dtype) @ rows.T).float(), -1)
    losses = []
    for step, made in enumerate(module.predictions(row, steps)):
        x = made[row.targets]
        loss: Tensor = SoftCrossEntropy.apply(x, rows, p)  # type: ignore[no-untyped-call]
        if feature_weight:
            loss = loss + feature_weight * functional.smooth_l1_loss(x.float(), real)
        losses.append(STEP_DECAY**step * loss)
    return torch.stack(losses).sum() / sum(STEP_DECAY**step for step in range(steps))
