"""The drafts as torch modules; their state has the tensors and names of the file of heads, and no others.

`predictions(row, steps)` of either is what drafts read off the head, a tensor [tokens, hidden] a step j: its
place m is the hidden state by which the (j + 1)st token of a draft, begun j + 1 places before m, names the
token m + 1. So the same place of all steps has the same target: what the model itself says at m.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokc.heads.backbone import Backbone
from tokc.heads.rows import Row

MASKED = float("-inf")


class Residual(nn.Module):
    """Compute ``f + silu(W f + b)``, at first f itself. Source: Medusa, arXiv:2401.10774, sec. 2.1.1."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return hidden states [tokens, hidden] of features of the same shape."""
        out: Tensor = features + functional.silu(self.linear(features))
        return out


class Medusa(nn.ModuleList):
    """Heads on the features: that of index k names the token k + 2 after the feature's."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__(nn.Sequential(Residual(hidden)) for _ in range(heads))

    def predictions(self, row: Row, steps: int) -> list[Tensor]:
        """Return what each head projects, moved to its target's place."""
        return [shifted(self[step](row.features), step + 1) for step in range(steps)]


class RmsNorm(nn.Module):
    """Divide by the root of the mean square, in f32, and scale."""

    def __init__(self, hidden: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Return [tokens, hidden] in f32."""
        wide = x.float()
        out: Tensor = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon) * self.weight
        return out


class Attention(nn.Module):
    """Attend over entries of the features and, behind these, over those of earlier steps of a draft.

    Entry i of step j stands behind the entries up to i - j of step 0, whose features were real, and behind
    one entry of each step between, of the draft's own features: no step needs more than a row of its own.
    Source: training-time test, Li et al. 2025, EAGLE-3, arXiv:2503.01840, sec. 3.2; Zhang et al. 2024, HASS,
    arXiv:2408.15766.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        config = backbone.config
        self.heads, self.kv_heads, self.dim = config.heads, config.kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(config.hidden, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(config.hidden, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, config.hidden, bias=False)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], visible: Tensor, cache: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Return [tokens, hidden]; keys and values of this step are added to `cache`."""
        q = rotated(self._split(self.q_proj(x), self.heads), angles)
        k = rotated(self._split(self.k_proj(x), self.kv_heads), angles)
        v = self._split(self.v_proj(x), self.kv_heads)
        group = self.heads // self.kv_heads
        cache.append((k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)))
        (first_k, first_v), later = cache[0], cache[1:]
        scores = [(q @ first_k.transpose(1, 2)).masked_fill(~visible, MASKED)]
        back = range(len(later) - 1, -1, -1)
        scores += [
            (q * shifted(key, by)).sum(-1, keepdim=True) for (key, _), by in zip(later, back, strict=True)
        ]
        weights = torch.softmax(torch.cat(scores, -1).float() * self.dim**-0.5, -1).to(v.dtype)
        tokens = first_k.shape[1]
        mixed = weights[..., :tokens] @ first_v
        for place, ((_, value), by) in enumerate(zip(later, back, strict=True)):
            mixed = mixed + weights[..., tokens + place, None] * shifted(value, by)
        out: Tensor = self.o_proj(mixed.transpose(0, 1).flatten(1))
        return out

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(-1, heads, self.dim).transpose(0, 1)


class FeedForward(nn.Module):
    """Compute ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [tokens, hidden]."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """A decoder layer."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        config = backbone.config
        self.input_layernorm = RmsNorm(config.hidden, config.norm_epsilon)
        self.self_attn = Attention(backbone)
        self.post_attention_layernorm = RmsNorm(config.hidden, config.norm_epsilon)
        self.mlp = FeedForward(config.hidden, config.intermediate)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], visible: Tensor, cache: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Return [tokens, hidden]."""
        attended: Tensor = x + self.self_attn(self.input_layernorm(x), angles, visible, cache)
        out: Tensor = attended + self.mlp(self.post_attention_layernorm(attended))
        return out


class Eagle(nn.Module):
    """One decoder layer that goes on from a feature and the token behind it to the next feature.

    Source: Li et al. 2024, EAGLE, arXiv:2401.15077, sec. 3.1.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        hidden = backbone.config.hidden
        self.fc = nn.Linear(2 * hidden, hidden)
        self.layers = nn.ModuleList([Layer(backbone)])
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.from_numpy(getattr(backbone, name)), persistent=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        with torch.no_grad():
            self.fc.bias.zero_()

    @property
    def adding(self) -> tuple[nn.Linear, nn.Linear]:
        """Return the two linears whose outputs are added to what `fc` makes."""
        (layer,) = self.layers
        assert isinstance(layer, Layer), "an eagle has one decoder layer"
        return layer.self_attn.o_proj, layer.mlp.down_proj

    def predictions(self, row: Row, steps: int) -> list[Tensor]:
        """Return the features that each step of a draft would make, moved to their target's place.

        Step 0 goes on from the real features, a later one from those of the step before it. Place m of step
        j is of the draft that began at m - 1 - j; it holds where its sequence has that many tokens.
        """
        angles = (self.cos[row.positions], self.sin[row.positions])
        cache: list[tuple[Tensor, Tensor]] = []
        features, made = row.features, []
        for step in range(steps):
            x = self.fc(torch.cat([row.embedded, features], -1)).float()
            features = shifted(self.layers[0](x, angles, row.visible(step), cache), 1)
            made.append(features)
        return made


def rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Return [heads, tokens, dim] turned by the angles of its positions, pairs (i, i + dim / 2)."""
    cos, sin = (table.to(x.dtype) for table in angles)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def shifted(x: Tensor, by: int) -> Tensor:
    """Return [.., tokens, width] moved `by` tokens back, zeros in front."""
    return x if by == 0 else functional.pad(x[..., :-by, :], (0, 0, by, 0))
