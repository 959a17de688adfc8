"""The refiner (joint refinement module): a BERT-like Transformer over the 14 joints (thesis, section 4.2.3, table 4.2).

Twelve layers, eight heads, width 128, feed-forward width 256: 1.59M parameters, the thesis's 1.6M. LayerNorm precedes attention
and feed-forward network (pre-LN), so that twelve layers train without a long warm-up. The rest follows BERT (Devlin et al.,
2018): a learned embedding for each position, which is a joint here, a learned [MASK], GELU.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jointbert.contract.layout import ERROR_RANGE_MM, ERROR_UNIT_MM, LAYOUT, LOG_SIGMA_RANGE, NUM_JOINTS, SCALE_MM
from jointbert.weights import load_weights, write_weights


@dataclass(frozen=True)
class RefinerConfig:
    """Sizes of a :class:`JointRefiner`; the defaults are the thesis's (table 4.2) at width 128."""

    layers: int = 12
    heads: int = 8
    width: int = 128
    ffn: int = 256
    features: int = 8
    outputs: int = 4


class Layer(nn.Module):
    """One Transformer encoder layer: self-attention (eq. 3.1), then a feed-forward network, each after a LayerNorm."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 14, D)`` to the same shape."""
        return self.attend(x)[0]

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output ``(B, 14, D)`` and its attention ``(B, heads, 14, 14)``, whose rows add up to 1."""
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        # Not torch's fused attention, which is slower for 14 tokens (measured on CPU: training takes twice as long).
        attention = ((q @ k.transpose(-1, -2)) * (d // self.heads) ** -0.5).softmax(-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(b, t, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)))), attention


class JointRefiner(nn.Module):
    """Refines 14 joints from the features of :func:`encode`.

    Shapes: ``(B, 14, 8)`` features to ``(B, 14, 4)``: the correction in units of 100 mm (x, y, z), and the logarithm of the
    refined joint's expected Euclidean error in the same unit. A joint whose ``observed`` feature is 0 enters as [MASK].
    """

    def __init__(self, config: RefinerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or RefinerConfig()
        if config.width % config.heads:
            raise ValueError(f"config: width {config.width} is no multiple of {config.heads} heads")
        self.embed = nn.Linear(config.features, config.width)
        self.joint_embedding = nn.Parameter(torch.zeros(NUM_JOINTS, config.width))
        self.mask = nn.Parameter(torch.zeros(config.width))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.outputs)
        # Factor of the corrections of observed joints; 1 in training. A refiner that is trained on one subject's predictions
        # corrects another's slightly too much, so that the factor is chosen on validation frames at export. It does not apply
        # to masked joints.
        self.observed_gain: Tensor
        self.register_buffer("observed_gain", torch.ones(1))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02 if module is not self.embed else 0.3)
                nn.init.zeros_(module.bias)
        for name, weight in self.layers.named_parameters():
            if name.endswith(("proj.weight", "fc2.weight")):  # as in GPT-2, so that the residual stream keeps its scale
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * self.config.layers))
        nn.init.normal_(self.joint_embedding, std=0.3)
        nn.init.normal_(self.mask, std=0.3)
        nn.init.zeros_(self.head.weight)  # the corrections of an untrained refiner are 0
        with torch.no_grad():
            self.head.bias[3] = math.log(10 / SCALE_MM)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(B, 14, 8)`` to the output ``(B, 14, 4)``."""
        return self.hidden_and_output(features)[1]

    def hidden_and_output(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The last layer's hidden states ``(B, 14, 128)``, before the final norm, and the output."""
        x, observed = self._tokens(features)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x))
        return x, torch.cat([out[..., :3] * torch.where(observed, self.observed_gain, 1.0), out[..., 3:]], -1)

    def _tokens(self, features: Tensor) -> tuple[Tensor, Tensor]:  # [B, 14, 8] -> [B, 14, D] and [B, 14, 1], observed
        observed = features[..., 3:4] > 0.5
        return torch.where(observed, self.embed(features), self.mask) + self.joint_embedding, observed

    @torch.no_grad()
    def attention(self, features: Tensor) -> Tensor:
        """The attention ``(layers, B, heads, 14, 14)`` for ``(B, 14, 8)`` features, whose rows add up to 1.

        Source: the thesis, eq. 3.1 and figures 5.4 to 5.9.

        Raises:
            ValueError: another shape.
        """
        shape = tuple(features.shape)
        if len(shape) != 3 or shape[1:] != (NUM_JOINTS, self.config.features):
            raise ValueError(f"features: got the shape {shape}; expected (B, {NUM_JOINTS}, {self.config.features})")
        x, matrices = self._tokens(features)[0], []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x, matrix = layer.attend(x)
            matrices.append(matrix)
        return torch.stack(matrices)

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        """Writes the weights as safetensors; the metadata names the layout and the sizes, and includes ``metadata``."""
        sizes = {key: str(value) for key, value in asdict(self.config).items()}
        write_weights(path, float_tensors(self), {"layout": LAYOUT, **sizes, **(metadata or {})})

    @classmethod
    def load(cls, weights: str | os.PathLike[str] = "nyu14") -> JointRefiner:
        """The refiner of a safetensors file, or of shipped weights by name, in evaluation mode."""
        loaded = load_weights(weights)
        model = cls(RefinerConfig(**loaded.sizes))
        model.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in loaded.tensors.items()})
        return model.eval()


def float_tensors(module: nn.Module) -> dict[str, np.ndarray]:
    """A module's parameters and buffers by name, as float32 NumPy arrays on the CPU."""
    return {name: value.detach().float().cpu().numpy() for name, value in module.state_dict().items()}


def encode(joints: Tensor, observed: Tensor, confidence: Tensor, error_mm: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the refiner's features: the reference implementation of every runtime's encoding.

    Args:
        joints: ``(B, 14, 3)`` in millimetres, canonical order, right hand.
        observed: ``(B, 14)`` bool; at least one joint of each pose.
        confidence: ``(B, 14)`` in [0, 1]; NaN, and what lies outside, is unknown.
        error_mm: ``(B, 14)`` expected joint error; NaN where unknown.

    Returns:
        ``(B, 14, 8)`` features in ``joints``' dtype (x y z of the centred pose / 100 mm; observed; confidence, known;
        log of the error over 10 mm, known) and the ``(B, 1, 3)`` mean of the observed joints.
    """
    seen = observed.unsqueeze(-1)
    mean = torch.where(seen, joints, 0).sum(-2, keepdim=True) / seen.sum(-2, keepdim=True)
    xyz = torch.where(seen, (joints - mean) / SCALE_MM, 0)
    confidence_known = observed & (confidence >= 0) & (confidence <= 1)
    error_known = observed & error_mm.isfinite()
    features = [
        xyz,
        seen,
        torch.where(confidence_known, confidence, 0).unsqueeze(-1),
        confidence_known.unsqueeze(-1),
        torch.where(error_known, torch.log(error_mm.clamp(*ERROR_RANGE_MM) / ERROR_UNIT_MM), 0).unsqueeze(-1),
        error_known.unsqueeze(-1),
    ]
    return torch.cat([f.to(joints.dtype) for f in features], -1), mean


def decode(joints: Tensor, observed: Tensor, mean: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Refined joints ``(B, 14, 3)`` in millimetres and their expected error ``(B, 14)`` from the refiner's output.

    The correction of a joint that was not observed is added to the mean of the observed joints.
    """
    start = torch.where(observed.unsqueeze(-1), joints, mean)
    sigma = SCALE_MM * torch.exp(output[..., 3].clamp(*LOG_SIGMA_RANGE))
    return start + SCALE_MM * output[..., :3].to(joints.dtype), sigma
