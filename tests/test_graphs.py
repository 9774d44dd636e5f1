"""The ONNX graphs against PyTorch: VGG-16 on its real weights, V-JEPA 2 as transformers builds it."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from svrt.errors import CheckpointError, RecipeError
from svrt.exporter import reference
from svrt.exporter.parity import compare
from svrt.models import vgg16, vjepa2
from svrt.models.checkpoint import Checkpoint
from svrt.models.projector import Projector
from transformers import VJEPA2Config, VJEPA2Model

VGG16_WEIGHTS = Path(str(files("svrt.models.pocket") / "weights" / "vgg16.safetensors"))
SMALL = {"crop_size": 96, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
POCKET = {"crop_size": 192, "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4}
VIT_L = {"crop_size": 256, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}


def run(path, **inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def make_encoder(folder, dtype=torch.float32, **shape):
    """A random checkpoint as transformers saves it. Weights are larger than its own initialisation would make them,
    so that attention is not near uniform and every part shows in the output."""
    torch.manual_seed(0)
    model = VJEPA2Model(VJEPA2Config(frames_per_clip=16, pred_num_hidden_layers=1, **shape)).eval()
    width = shape["hidden_size"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=width**-0.5)
            elif not name.endswith("norm.weight"):
                parameter.normal_(std=0.1)
    model.to(dtype).save_pretrained(folder)
    return model.float()


def make_projector(folder, width, hidden=64, out=80):
    """Saved as `fc1`, `fc2`, `norm`; also its tensors by those names."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"fc1.weight": (hidden, width), "fc1.bias": (hidden,), "fc2.weight": (out, hidden)}
    shapes |= {"fc2.bias": (out,), "norm.weight": (out,), "norm.bias": (out,)}
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    save_file(tensors, folder / "projector.safetensors")
    return Checkpoint(folder / "projector.safetensors"), tensors


def clip(size, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 16, 3, size, size), dtype=np.float32))


def hidden_state(model, pixels):
    with torch.no_grad():
        return model(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state.numpy()


@pytest.mark.parametrize("size", [96, 224])
def test_vgg16_equals_pytorch_on_the_real_weights(tmp_path, size):
    weights = {name: tensor.float() for name, tensor in load_file(VGG16_WEIGHTS).items()}
    images = np.random.default_rng(0).uniform(-120, 130, (3, 3, size, size)).astype(np.float32)
    value = torch.from_numpy(images)
    for block in vgg16.BLOCKS:
        for index, _, _ in block:
            value = torch.conv2d(
                value, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], padding=1
            )
            value = torch.relu(value)
        value = torch.max_pool2d(value, 2)
    expected = value.mean(dim=(2, 3)).numpy()
    path = tmp_path / "vgg16.onnx"
    vgg16.write(path, Checkpoint(VGG16_WEIGHTS), size)
    assert compare(run(path, images=images), expected)[0] <= 1e-5
    assert compare(run(path, images=images[:1]), expected[:1])[0] <= 1e-5  # the batch is free


@pytest.mark.parametrize(
    "shape", [SMALL, POCKET, pytest.param(VIT_L, marks=pytest.mark.full)], ids=["small", "pocket", "vit-l"]
)
def test_the_encoder_equals_transformers(tmp_path, shape):
    model = make_encoder(tmp_path, **shape)
    pixels = clip(shape["crop_size"])
    path = tmp_path / "encoder.onnx"
    vjepa2.write(path, Checkpoint(tmp_path))
    error, _ = compare(run(path, pixel_values_videos=pixels.numpy()), hidden_state(model, pixels))
    print(f"relative error {error:.2e}")
    assert error <= 1e-5


def test_the_full_size_graph_is_small_and_has_its_tables_baked(tmp_path):
    """Layers are alike, so two of ViT-L's 24 tell the node count of all."""
    nodes = {}
    for layers in (1, 2):
        make_encoder(tmp_path / str(layers), **{**VIT_L, "num_hidden_layers": layers})
        for precision in ("fp32", "fp16"):
            vjepa2.write(tmp_path / "encoder.onnx", Checkpoint(tmp_path / str(layers)), precision=precision)
            graph = onnx.load(tmp_path / "encoder.onnx", load_external_data=False).graph
            nodes[precision, layers] = len(graph.node)
            assert not {node.op_type for node in graph.node} & {"Sin", "Cos", "Tile", "Range", "Expand"}
    for precision in ("fp32", "fp16"):
        per_layer = nodes[precision, 2] - nodes[precision, 1]
        assert nodes[precision, 1] + 23 * per_layer <= 1100


def test_half_precision_keeps_layernorm_and_softmax_in_float32(tmp_path):
    model = make_encoder(tmp_path, **SMALL)
    pixels = clip(96)
    path = tmp_path / "encoder.onnx"
    vjepa2.write(path, Checkpoint(tmp_path), precision="fp16")
    _, cosine = compare(run(path, pixel_values_videos=pixels.numpy()), hidden_state(model, pixels))
    assert cosine >= 0.9995
    types = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    kind = {v.name: v.type.tensor_type.elem_type for v in types.value_info}
    for node in types.node:
        wanted = {"LayerNormalization": onnx.TensorProto.FLOAT, "Softmax": onnx.TensorProto.FLOAT}
        wanted["MatMul"] = onnx.TensorProto.FLOAT16
        if node.op_type in wanted:
            assert kind[node.output[0]] == wanted[node.op_type], node.name


def test_bfloat16_checkpoints_and_a_missing_qkv_bias_are_read(tmp_path):
    model = make_encoder(tmp_path, dtype=torch.bfloat16, qkv_bias=False, **SMALL)
    path = tmp_path / "encoder.onnx"
    vjepa2.write(path, Checkpoint(tmp_path))
    assert compare(run(path, pixel_values_videos=clip(96).numpy()), hidden_state(model, clip(96)))[0] <= 1e-5


def test_pooling_and_projector_are_those_of_pytorch(tmp_path):
    model = make_encoder(tmp_path, **SMALL)
    checkpoint, p = make_projector(tmp_path, 128)
    pixels = clip(96)
    grid = torch.from_numpy(hidden_state(model, pixels)).reshape(1, 8, 6, 6, 128).permute(0, 4, 1, 2, 3)
    pooled = torch.nn.functional.adaptive_avg_pool3d(grid, (4, 3, 3)).permute(0, 2, 3, 4, 1).reshape(1, 36, 128)
    value = torch.relu(pooled @ p["fc1.weight"].T + p["fc1.bias"]) @ p["fc2.weight"].T + p["fc2.bias"]
    expected = torch.layer_norm(value, (80,), p["norm.weight"], p["norm.bias"]).numpy()
    path = tmp_path / "encoder.onnx"
    vjepa2.write(path, Checkpoint(tmp_path), 16, (4, 3, 3), Projector.read(checkpoint, 128))
    result = run(path, pixel_values_videos=pixels.numpy())
    assert result.shape == (1, 36, 80)
    assert compare(result, expected)[0] <= 1e-5
    by_numpy = reference.video_tokens(Checkpoint(tmp_path), checkpoint, pixels.numpy(), (4, 3, 3))
    assert compare(by_numpy, expected)[0] <= 1e-5


def test_the_numpy_vgg16_that_exports_are_held_against_is_pytorchs_too(tmp_path):
    images = np.random.default_rng(0).uniform(-120, 130, (2, 3, 70, 70)).astype(np.float32)
    vgg16.write(tmp_path / "vgg16.onnx", Checkpoint(VGG16_WEIGHTS), 70)
    expected = reference.vgg16(Checkpoint(VGG16_WEIGHTS), images)
    assert compare(run(tmp_path / "vgg16.onnx", images=images), expected)[0] <= 1e-5


def test_what_does_not_fit_is_told_by_name(tmp_path):
    make_encoder(tmp_path, **SMALL)
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(RecipeError, match=r"token_grid = \[8, 5, 5\] does not divide .*\[8, 6, 6\]"):
        vjepa2.write(tmp_path / "encoder.onnx", checkpoint, 16, (8, 5, 5))
    with pytest.raises(RecipeError, match="frames = 15"):
        vjepa2.write(tmp_path / "encoder.onnx", checkpoint, 15)
    projector, _ = make_projector(tmp_path, 64)
    with pytest.raises(CheckpointError, match=r"'fc1.weight' is \[64, 64\], expected \[64, 128\]"):
        Projector.read(projector, 128)
    with pytest.raises(CheckpointError, match=r"not a two-layer projector.*keys found: features"):
        Projector.read(Checkpoint(VGG16_WEIGHTS), 128)
    with pytest.raises(CheckpointError, match=r"config.json: missing"):
        vjepa2.write(tmp_path / "encoder.onnx", Checkpoint(VGG16_WEIGHTS))


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    make_encoder(tmp_path, **SMALL)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        vjepa2.write(tmp_path / name / "encoder.onnx", Checkpoint(tmp_path))
    for file in ("encoder.onnx", "encoder.onnx.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    "layout",
    [
        {"fc1": "linear_1", "fc2": "linear_2", "norm": "layer_norm"},
        {"fc1": "0", "fc2": "2", "norm": "3"},
        {"fc1": "mlp.0", "fc2": "mlp.3", "norm": "mlp.4"},
        {"fc1": "model.multi_modal_projector.linear_1", "fc2": "model.multi_modal_projector.linear_2"},
        {"fc1": "0", "fc2": "2"},
    ],
)
def test_projectors_are_read_by_any_of_their_common_names(tmp_path, layout):
    _, p = make_projector(tmp_path, 128)
    tensors = {
        f"{layout[module]}.{kind}": tensor
        for (module, kind), tensor in ((name.split("."), tensor) for name, tensor in p.items())
        if module in layout
    }
    save_file(tensors, tmp_path / "named.safetensors")
    found = Projector.read(Checkpoint(tmp_path / "named.safetensors"), 128)
    np.testing.assert_array_equal(found.fc1_weight, p["fc1.weight"].numpy())
    np.testing.assert_array_equal(found.fc2_bias, p["fc2.bias"].numpy())
    if "norm" in layout:
        np.testing.assert_array_equal(found.norm_weight, p["norm.weight"].numpy())
    else:
        assert found.norm_weight is None and found.norm_bias is None


@pytest.mark.parametrize(
    "names",
    [
        ["fc1.weight", "fc1.bias", "fc2.weight"],  # a bias is missing
        ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"],  # a third layer
        ["fc1.weight", "fc1.bias", "linear_2.weight", "linear_2.bias"],
        ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "gate"],
    ],
)
def test_other_projectors_are_refused_with_the_keys_they_have(tmp_path, names):
    save_file({name: torch.zeros(4, 4) for name in names}, tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match=rf"keys found: .*{names[0]}") as refused:
        Projector.read(Checkpoint(tmp_path / "p.safetensors"), 4)
    assert all(name in str(refused.value) for name in names)


def test_a_projector_without_layernorm_stays_without(tmp_path):
    make_encoder(tmp_path, **SMALL)
    _, p = make_projector(tmp_path, 128)
    plain = {name: tensor for name, tensor in p.items() if "norm" not in name}
    save_file(plain, tmp_path / "plain.safetensors")
    checkpoint = Checkpoint(tmp_path / "plain.safetensors")
    path = tmp_path / "encoder.onnx"
    vjepa2.write(path, Checkpoint(tmp_path), 16, (4, 3, 3), Projector.read(checkpoint, 128))
    expected = reference.video_tokens(Checkpoint(tmp_path), checkpoint, clip(96).numpy(), (4, 3, 3))
    assert compare(run(path, pixel_values_videos=clip(96).numpy()), expected)[0] <= 1e-5


def test_tensors_of_another_network_are_refused_by_name(tmp_path):
    make_encoder(tmp_path, **SMALL)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.layer.3.norm1.weight"] = torch.ones(128)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unknown tensor 'encoder.layer.3.norm1.weight'"):
        vjepa2.write(tmp_path / "encoder.onnx", Checkpoint(tmp_path))
    assert not list(tmp_path.glob("encoder.onnx*"))
    vgg = load_file(VGG16_WEIGHTS)
    save_file({**vgg, "features.30.weight": torch.ones(512, 512, 3, 3)}, tmp_path / "vgg19.safetensors")
    with pytest.raises(CheckpointError, match=r"unknown tensor 'features.30.weight'"):
        vgg16.write(tmp_path / "vgg16.onnx", Checkpoint(tmp_path / "vgg19.safetensors"), 32)
