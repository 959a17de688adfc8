from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jointbert.models import JointRefiner, RefinerConfig  # noqa: E402
from jointbert.models.refiner import decode, encode  # noqa: E402


def test_size_is_the_thesis_s() -> None:
    parameters = sum(p.numel() for p in JointRefiner().parameters())
    # By hand: a layer has 4 d^2 + 4 d attention, 2 d f + d + f feed-forward and 4 d normalisation parameters.
    d, f = 128, 256
    layer = 4 * d * d + 4 * d + 2 * d * f + d + f + 4 * d
    assert parameters == 12 * layer + (8 * d + d) + 14 * d + d + 2 * d + (4 * d + 4)
    assert parameters == pytest.approx(1.6e6, rel=0.01)


def test_an_untrained_refiner_corrects_nothing() -> None:
    output = JointRefiner()(torch.randn(3, 14, 8))
    assert output.shape == (3, 14, 4)
    assert (output[..., :3] == 0).all()
    torch.testing.assert_close(output[..., 3], torch.full((3, 14), np.log(0.1)), check_dtype=False)  # 10 mm


def test_features_of_a_pose_by_hand() -> None:
    joints = torch.zeros(1, 14, 3, dtype=torch.float64)
    joints[0, 0] = torch.tensor([130.0, 0, 0])
    joints[0, 1] = torch.tensor([0.0, 1e9, 0])  # missing: what stands there makes no difference
    observed = torch.ones(1, 14, dtype=torch.bool)
    observed[0, 1] = False
    confidence = torch.full((1, 14), torch.nan)
    confidence[0, 0] = 0.25
    error = torch.full((1, 14), 10 * np.e)
    features, mean = encode(joints, observed, confidence, error)
    torch.testing.assert_close(mean, torch.tensor([[[10.0, 0, 0]]], dtype=torch.float64))
    expected = torch.tensor([1.2, 0, 0, 1, 0.25, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(features[0, 0], expected)
    assert (features[0, 1] == 0).all()
    torch.testing.assert_close(features[0, 2], torch.tensor([-0.1, 0, 0, 1, 0, 0, 1, 1], dtype=torch.float64))

    output = torch.zeros(1, 14, 4)
    output[..., 0] = 0.5
    refined, sigma = decode(joints, observed, mean, output)
    assert refined[0, :3, 0].tolist() == [180, 60, 50]  # a masked joint starts from the mean
    assert (sigma == 100).all()


def test_masked_joints_enter_as_mask() -> None:
    model = JointRefiner()
    torch.nn.init.normal_(model.head.weight)
    features = torch.randn(1, 14, 8)
    features[..., 3] = 1
    features[0, 5, 3] = 0
    other = features.clone()
    other[0, 5, [0, 1, 2, 4, 5, 6, 7]] += 3
    torch.testing.assert_close(model(features), model(other))
    with torch.no_grad():
        model.mask += 1
    assert (model(features) - model(other)).abs().max() == 0
    other[0, 5, 3] = 1
    assert (model(features) - model(other)).abs().max() > 1e-3


def test_the_gain_is_for_observed_joints_alone() -> None:
    model = JointRefiner()
    torch.nn.init.normal_(model.head.weight)
    features = torch.randn(2, 14, 8)
    features[..., 3] = torch.arange(28).view(2, 14) % 3 != 0
    before = model(features)
    model.observed_gain.fill_(0.5)
    factor = torch.ones(2, 14, 4)
    factor[..., :3][features[..., 3] > 0.5] = 0.5
    torch.testing.assert_close(model(features), before * factor)


def test_joints_are_told_apart() -> None:
    model = JointRefiner()
    torch.nn.init.normal_(model.head.weight)
    output = model(torch.ones(1, 14, 8))
    assert len({tuple(row.tolist()) for row in output[0]}) == 14


def test_attention_is_equation_3_1() -> None:
    """One layer against torch's own encoder layer, pre-normalised, with the same weights."""
    model = JointRefiner(RefinerConfig(layers=1)).double().eval()
    layer = model.layers[0]
    reference = torch.nn.TransformerEncoderLayer(
        128, 8, 256, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.2)
        reference.self_attn.in_proj_weight.copy_(layer.qkv.weight)
        reference.self_attn.in_proj_bias.copy_(layer.qkv.bias)
        reference.self_attn.out_proj.weight.copy_(layer.proj.weight)
        reference.self_attn.out_proj.bias.copy_(layer.proj.bias)
        for mine, theirs in (
            (layer.fc1, reference.linear1),
            (layer.fc2, reference.linear2),
            (layer.norm1, reference.norm1),
            (layer.norm2, reference.norm2),
        ):
            theirs.weight.copy_(mine.weight)
            theirs.bias.copy_(mine.bias)
    x = torch.randn(2, 14, 128, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference.train()(x))


def test_save_and_load(tmp_path: Path, random_weights: Path) -> None:
    model = JointRefiner.load(random_weights)
    model.save(tmp_path / "again.safetensors", {"name": "again"})
    again = JointRefiner.load(tmp_path / "again.safetensors")
    features = torch.randn(2, 14, 8)
    assert torch.equal(model(features), again(features))
    assert not again.training


def test_config_is_checked() -> None:
    with pytest.raises(ValueError, match="width 100 is no multiple of 8 heads"):
        JointRefiner(RefinerConfig(width=100))


def test_attention_is_that_of_torch_s_own_layers() -> None:
    torch.manual_seed(3)
    model = JointRefiner(RefinerConfig(layers=2, heads=4, width=32, ffn=64)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = torch.randn(5, 14, 8)
    features[..., 3] = (torch.rand(5, 14) > 0.2).float()
    attention = model.attention(features)
    assert attention.shape == (2, 5, 4, 14, 14)
    for wrong in (features[..., :7], features[:, :13], features[0]):
        with pytest.raises(ValueError, match=r"features: got the shape .*; expected \(B, 14, 8\)"):
            model.attention(wrong)
    x = torch.where(features[..., 3:4] > 0.5, model.embed(features), model.mask) + model.joint_embedding
    for layer, got in zip(model.layers, attention, strict=True):
        theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
        with torch.no_grad():
            theirs.in_proj_weight.copy_(layer.qkv.weight)
            theirs.in_proj_bias.copy_(layer.qkv.bias)
        normed = layer.norm1(x)
        _, expected = theirs(normed, normed, normed, average_attn_weights=False)
        torch.testing.assert_close(got, expected)
        x = layer(x)
