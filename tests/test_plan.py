"""Claims about `svrt plan`: costs read from the files, published rates, memory and floors, and what is printed."""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import onnx
import onnxruntime
import pytest
import svrt
import torch
from onnx import TensorProto, helper
from rich.console import Console
from safetensors.torch import save_file
from svrt.bundle import (
    DECODER,
    ENCODER,
    SCHEMA,
    VGG16,
    Bundle,
    DecoderSpec,
    EncoderSpec,
    FileRecord,
    Manifest,
    SamplerSpec,
    write_manifest,
)
from svrt.errors import BundleError, SvrtError
from svrt.exporter.costs import (
    GraphCosts,
    Operation,
    context_size,
    decoder_costs,
    graph_costs,
    prompt_tokens,
)
from svrt.exporter.devices import DEVICES, Device, Rates, find
from svrt.exporter.measure import Measurement, measure
from svrt.exporter.plan import Costs, Part, plan, plan_here, plans, show
from svrt.models import vgg16, vjepa2
from svrt.models.checkpoint import Checkpoint
from svrt.models.graph import Graph
from svrt.runtime.decoder import Decoder, model_parameters, silence
from torch.utils.flop_counter import FlopCounterMode
from transformers import VJEPA2Config, VJEPA2Model

VGG16_WEIGHTS = Path(str(files("svrt.models.pocket") / "weights" / "vgg16.safetensors"))
PREFIX, SUFFIX = "<|im_start|>user\n", "\nWhat did the ball do?<|im_end|>\n<|im_start|>assistant\n"
LLAMA_3B = {"layers": 28, "width": 3072, "feed_forward": 8192, "heads": 24, "kv_heads": 8, "vocabulary": 128256}
ODD = {"layers": 3, "width": 512, "feed_forward": 1376, "heads": 8, "kv_heads": 2, "vocabulary": 5000}
SLOW = Rates(fp32=1e9, fp16=2e9, int8=4e9, bandwidth=1e9)


def encoder_checkpoint(folder: Path, layers: int, **changes: int) -> Checkpoint:
    """A V-JEPA 2 encoder of zeros at ViT-L's width, as transformers saves one."""
    shape = {"crop_size": 256, "hidden_size": 1024, "num_attention_heads": 16, **changes, "num_hidden_layers": layers}
    config = VJEPA2Config(frames_per_clip=16, pred_num_hidden_layers=1, **shape)
    with torch.device("meta"):
        model = VJEPA2Model(config)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    zeros = {
        k: torch.zeros(v.shape, dtype=torch.float16) for k, v in model.state_dict().items() if "predictor" not in k
    }
    save_file(zeros, folder / "model.safetensors")
    return Checkpoint(folder)


def encoder_costs(folder: Path, layers: int, **changes: int) -> GraphCosts:
    path = folder / f"{layers}.onnx"
    vjepa2.write(path, encoder_checkpoint(folder / f"checkpoint-{layers}", layers, **changes), precision="fp16")
    return graph_costs(path)


def write_llama(path: Path, layers: int, width: int, feed_forward: int, heads: int, kv_heads: int, vocabulary: int):
    """A GGUF in float16 whose tensors are a hole in the file: its header says all, at any size."""
    head_dim = width // heads
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("none")
    tensors = {"token_embd.weight": (vocabulary, width), "output_norm.weight": (width,)}
    for i in range(layers):
        of_layer = {
            "attn_norm": (width,),
            "attn_q": (width, width),
            "attn_k": (kv_heads * head_dim, width),
            "attn_v": (kv_heads * head_dim, width),
            "attn_output": (width, width),
            "ffn_norm": (width,),
            "ffn_gate": (feed_forward, width),
            "ffn_up": (feed_forward, width),
            "ffn_down": (width, feed_forward),
        }
        tensors |= {f"blk.{i}.{name}.weight": shape for name, shape in of_layer.items()}
    total = 0
    for name, shape in tensors.items():
        dtype = np.dtype(np.float16 if len(shape) > 1 else np.float32)
        size = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(name, shape, dtype, size)
        total += -(-size // 32) * 32
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + total)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Bundle:
    """A bundle of real graphs, VGG-16 at 64 pixels and two layers of V-JEPA 2, and the packaged decoder."""
    folder = tmp_path_factory.mktemp("bundle")
    vgg16.write(folder / VGG16, Checkpoint(VGG16_WEIGHTS), 64, "fp16")
    small = {"crop_size": 96, "hidden_size": 128, "num_attention_heads": 2}
    checkpoint = encoder_checkpoint(folder.with_name("encoder-checkpoint"), 2, **small)
    vjepa2.write(folder / ENCODER, checkpoint, 16, (8, 3, 3))
    (folder / DECODER).symlink_to(smollm2)
    norm: dict[str, Any] = {"scale": 255.0, "mean": [0.5] * 3, "std": [0.2] * 3}
    manifest = Manifest(
        schema=SCHEMA,
        name="small",
        svrt="0",
        sampler=SamplerSpec(16, 64, "haar", 2, 64, "rgb", **norm),
        encoder=EncoderSpec(16, 96, "crop", 109, [8, 3, 3], **norm),
        decoder=DecoderSpec(PREFIX, SUFFIX, 40, 576),
        files={
            name: FileRecord((folder / name).stat().st_size, "0" * 64, "fp16") for name in (VGG16, ENCODER, DECODER)
        },
        provenance={},
        parity={},
    )
    write_manifest(folder, manifest)
    return Bundle.load(folder, verify=False)


@pytest.fixture(scope="module")
def costs(bundle: Bundle) -> Costs:
    return Costs.read(bundle)


def test_the_full_encoder_is_1_65_tflop_counted_by_hand(tmp_path: Path) -> None:
    """Layers are alike, so one and two of ViT-L's 24 tell the cost of all."""
    one, two = encoder_costs(tmp_path, 1), encoder_costs(tmp_path, 2)
    tokens, width = 2048, 1024
    layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width  # Q, K, V, proj 4 x; MLP 8 x; scores and mix
    assert two.flops - one.flops == layer
    assert one.flops == layer + 2 * tokens * (3 * 2 * 16 * 16) * width
    assert round((one.flops + 23 * layer) / 1e12, 2) == 1.66
    assert two.weights - one.weights == pytest.approx(2 * (12 * width**2 + 9 * width) + 4 * 4 * width, rel=1e-4)


def test_an_encoder_costs_what_pytorch_counts(tmp_path: Path) -> None:
    shape = {"crop_size": 96, "hidden_size": 128, "num_attention_heads": 2}
    config = VJEPA2Config(frames_per_clip=16, pred_num_hidden_layers=1, num_hidden_layers=3, **shape)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = VJEPA2Model(config).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(pixel_values_videos=torch.empty(1, 16, 3, 96, 96), skip_predictor=True)
    assert encoder_costs(tmp_path, 3, **shape).flops == counter.get_total_flops()


def test_vgg16_costs_31_gflop_a_frame_as_pytorch_counts(tmp_path: Path) -> None:
    path = tmp_path / VGG16
    vgg16.write(path, Checkpoint(VGG16_WEIGHTS), 224, "fp16")
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        value = torch.empty(1, 3, 224, 224)
        for block in vgg16.BLOCKS:
            for _, channels, filters in block:
                value = torch.conv2d(value, torch.empty(filters, channels, 3, 3), padding=1)
            value = torch.max_pool2d(value, 2)
    assert graph_costs(path).flops == counter.get_total_flops()
    assert round(counter.get_total_flops() / 1e9, 1) == 30.7
    assert graph_costs(path, 8).flops == 8 * counter.get_total_flops()
    assert graph_costs(path).weights == 2 * vgg16.PARAMETERS


@pytest.mark.parametrize(("name", "batch"), [(VGG16, 3), (ENCODER, 1)])
def test_the_activation_peak_is_that_of_the_arrays_a_run_makes(bundle: Bundle, name: str, batch: int) -> None:
    """Every value is fetched from a real run; at each step those still wanted are added up, one by one."""
    model = onnx.load(str(bundle.file(name)))
    made = [output for node in model.graph.node for output in node.output]
    ends = {value.name for value in model.graph.output}
    shape = [dim.dim_value or batch for dim in model.graph.input[0].type.tensor_type.shape.dim]
    arrays = {model.graph.input[0].name: np.zeros(shape, np.float32)}
    model.graph.output.extend(onnx.ValueInfoProto(name=output) for output in made if output not in ends)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    arrays |= dict(zip(made, session.run(made, arrays), strict=True))
    owner = {name: name for name in arrays}
    for node in model.graph.node:
        if node.op_type in ("Reshape", "Flatten", "Identity"):
            owner[node.output[0]] = owner[node.input[0]]
    held = {owner[name] for name in (model.graph.input[0].name, *ends)}
    peak = 0
    for step, _ in enumerate(model.graph.node):
        born = {owner[name] for node in model.graph.node[: step + 1] for name in node.output}
        wanted = {
            owner[name] for node in model.graph.node[step:] for name in (*node.input, *node.output) if name in owner
        }
        alive = (born | {model.graph.input[0].name}) & (wanted | held)
        peak = max(peak, sum(arrays[name].nbytes for name in alive))
    assert graph_costs(bundle.file(name), batch).activations == peak


def small_graph(path: Path, rows: int, columns: int) -> GraphCosts:
    """[rows, columns] times a square weight, then an addition."""
    with Graph(path, "small") as graph:
        value = graph.linear(graph.input("x", [rows, columns]), np.zeros((columns, columns), np.float32), None, "w")
        graph.output(graph.node("Add", [value, value]), "y", [rows, columns])
    return graph_costs(path)


def test_a_product_takes_its_arithmetic_or_the_reading_of_its_weights(tmp_path: Path) -> None:
    many, one = small_graph(tmp_path / "many.onnx", 1000, 100), small_graph(tmp_path / "one.onnx", 1, 100)
    assert many.floor_s(SLOW) == pytest.approx(2 * 1000 * 100 * 100 / 1e9)
    assert one.floor_s(SLOW) == pytest.approx(4 * 100 * 100 / 1e9)  # 40 kB of weights outweigh 20,000 operations


def test_op_by_op_every_value_is_written_and_read(tmp_path: Path) -> None:
    costs = small_graph(tmp_path / "one.onnx", 1, 100)
    product, addition = 4 * (100 + 100 * 100 + 100), 4 * 3 * 100
    assert costs.unfused_s(SLOW) == pytest.approx((product + addition) / 1e9)
    assert costs.activations == 4 * 300  # input, product and output: the input's holder still has it


def test_products_of_quantized_values_are_charged_as_int8(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.zeros((64, 64), np.int8), "weight")
    scale = onnx.numpy_helper.from_array(np.float32(1), "scale")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["dq"]),
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["dw"]),
        helper.make_node("MatMul", ["dq", "dw"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [32, 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "int8", ends[:1], ends[1:], [weight, scale])
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / "int8.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    costs = graph_costs(path)
    product = costs.operations[-1]
    assert (product.precision, product.flops, product.weights) == ("int8", 2 * 32 * 64 * 64, 64 * 64)
    assert costs.floor_s(SLOW) == pytest.approx(product.flops / 4e9)


def test_a_file_that_is_no_graph_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "torn.onnx").write_bytes(b"\x08\x08\x12\xff")
    with pytest.raises(BundleError, match=r"torn\.onnx: .*export the bundle again"):
        graph_costs(tmp_path / "torn.onnx")
    with pytest.raises(BundleError, match=r"torn\.onnx: not a whole GGUF"):
        decoder_costs(tmp_path / "torn.onnx")


def test_llama_3_2_3b_is_read_from_its_header(tmp_path: Path) -> None:
    costs = decoder_costs(write_llama(tmp_path / "3b.gguf", **LLAMA_3B))
    assert costs.parameters == 3_212_749_824  # as its model card says: 3.21 B
    assert costs.kv_bytes == 2 * 28 * 8 * 128 * 2
    assert costs.block_bytes == 2 * costs.block_parameters == 2 * (costs.parameters - 128256 * 3072 - 57 * 3072)
    assert costs.tied and costs.head_bytes == costs.embedding_bytes == 2 * 128256 * 3072
    assert costs.flops(1, 0, 1) == 2 * (costs.block_parameters + 128256 * 3072) + 4 * 28 * 3072
    assert costs.flops(3, 10, 0) == 2 * costs.block_parameters * 3 + 4 * 28 * 3072 * (11 + 12 + 13)


@pytest.mark.parametrize(("positions", "batch"), [(200, 128), (600, 64), (1000, 300)])
def test_cache_and_scratch_are_what_llama_cpp_reports(tmp_path: Path, positions: int, batch: int) -> None:
    path = write_llama(tmp_path / "odd.gguf", **ODD)
    lines: list[str] = []
    log = llama_cpp.llama_log_callback(lambda _, text, __: lines.append(text.decode(errors="replace")))
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    try:
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), model_parameters(llama_cpp))
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_outputs_max = positions, 1
        parameters.n_batch = parameters.n_ubatch = batch
        context = llama_cpp.llama_init_from_model(model, parameters)
        size = llama_cpp.llama_n_ctx(context)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
    finally:
        silence(llama_cpp)
    found = {kind: float(mib) for kind, mib in re.findall(r"(\w+) buffer size *= *([\d.]+) MiB", "".join(lines))}
    costs = decoder_costs(path)
    assert context_size(positions) == size
    assert costs.kv_bytes * size == pytest.approx(found["KV"] * 2**20, abs=0.006 * 2**20)  # logged to 0.01 MiB
    scratch = (found["compute"] + found["output"]) * 2**20
    assert costs.compute_bytes(batch, positions) == pytest.approx(scratch, rel=0.03)


def test_prompt_tokens_are_those_of_the_decoder(smollm2: Path) -> None:
    counted = prompt_tokens(smollm2, PREFIX, SUFFIX)
    with Decoder(smollm2, prefix=PREFIX, suffix=SUFFIX, max_tokens=1, video_tokens=1, threads=1) as decoder:
        generation = decoder.generate(np.zeros((1, decoder.width), np.float32))
    assert counted.prefix + counted.suffix == generation.prompt_tokens
    assert counted.prefix == 3  # <|im_start|>, user, line end


def test_published_figures_of_nvidia_are_reproduced() -> None:
    nano, nx, agx = (DEVICES[name].rates for name in ("orin-nano-8gb-super", "orin-nx-16gb-super", "agx-orin-64gb"))
    assert [round(rate / 1e12) for rate in (nano.fp16, nano.int8, 2 * nano.int8)] == [17, 33, 67]
    assert round(2 * nx.int8 / 1e12) == 157 - 80  # published for GPU and DLAs; the DLAs' share
    assert round(2 * agx.int8 / 1e12) == 170
    assert round(2 * DEVICES["orin-nano-8gb"].rates.int8 / 1e12) in (40, 41)
    assert DEVICES["thor-t5000"].rates.fp16 * 8 == 2070e12
    for device in DEVICES.values():
        assert 3e9 < device.memory < 137e9 and 34e9 <= device.rates.bandwidth <= 273e9
        assert len(device.basis) == 4 and all(": " in line for line in device.basis)


def test_the_page_about_plans_lists_the_devices_with_their_figures() -> None:
    page = (Path(svrt.__file__).parent / "docs" / "plan.md").read_text()
    for name, device in DEVICES.items():
        gbs, fp16 = device.rates.bandwidth / 1e9, device.rates.fp16 / 1e12
        tflops = f"{fp16:.0f}" if fp16 == round(fp16) else f"{fp16:.1f}"
        assert re.search(rf"^\| `{name}` \| \d+ GiB \| {gbs:g} GB/s \| {tflops} TFLOP/s \|", page, re.MULTILINE), name


def test_an_unknown_device_is_answered_with_the_names() -> None:
    with pytest.raises(SvrtError, match=r"'xavier' is not known; one of orin-nano-4gb, .*agx-orin-64gb, .*, this$"):
        find("xavier")


def with_memory(memory: int) -> Device:
    return replace(DEVICES["orin-nano-8gb"], memory=memory)


def test_the_verdict_is_by_what_is_left(costs: Costs) -> None:
    needed = plan(costs, with_memory(8 << 30), costs.longest()).memory.needed
    for memory, verdict in (
        (needed - 1, "does not fit"),
        (needed, "tight"),
        (int(needed / 0.901), "tight"),
        (int(needed / 0.899), "fits"),
    ):
        found = plan(costs, with_memory(memory), costs.longest()).memory
        assert (found.verdict, found.spare) == (verdict, memory - needed)


def test_memory_parts_by_hand(costs: Costs, bundle: Bundle) -> None:
    found = plan(costs, DEVICES["orin-nano-8gb"], costs.longest()).memory
    part = {item.name: item.bytes for item in found.parts}
    assert part["VGG-16 weights"] == 2 * vgg16.PARAMETERS
    # 30 layers, 3 heads of 64, float16; 3 + 72 + 13 + 40 positions rounded up to 256
    assert part["KV cache"] == 2 * 30 * 3 * 64 * 2 * 256
    assert part["candidates"] == 64 * (64 * 64 * (3 + 4 + 12) + 96 * 96 * 3 + 320 * 180 * 3)
    assert part["decoder weights"] == bundle.file(DECODER).stat().st_size + costs.decoder.embedding_bytes
    assert found.needed == sum(part.values())


def test_floors_by_hand(costs: Costs) -> None:
    rates = DEVICES["orin-nano-8gb"].rates
    stages = {s.name: s for s in plan(costs, DEVICES["orin-nano-8gb"], costs.longest()).stages}
    assert stages["sample"].flops == 16 * costs.vgg16.flops  # 64 frames and 64 motion maps, 8 at a time
    assert stages["sample"].floor_ms == pytest.approx(16 * costs.vgg16.floor_s(rates) * 1e3)
    decoder, gbs = costs.decoder, rates.bandwidth
    read = decoder.block_bytes + decoder.head_bytes
    cached = sum(3 + 72 + 13 + step for step in range(39))
    assert stages["generate"].floor_ms == pytest.approx((39 * read + cached * 2 * 30 * 3 * 64 * 2) / gbs * 1e3)
    video, suffix = (decoder.flops(72, 3, 0) / rates.int8, decoder.flops(13, 75, 0) / rates.int8)
    passes = [max(seconds, decoder.block_bytes / gbs) for seconds in (video, suffix)]
    assert stages["prefill"].floor_ms == pytest.approx((sum(passes) + decoder.head_bytes / gbs) * 1e3)


def test_a_clip_with_no_more_frames_than_keyframes_needs_no_vgg16(costs: Costs) -> None:
    short = replace(costs.longest(), candidates=16)
    sample = plan(costs, DEVICES["orin-nano-8gb"], short).stages[0]
    assert (sample.flops, sample.floor_ms) == (0, 0)


def test_a_faster_device_has_lower_floors(bundle: Bundle) -> None:
    by_name = {each.device: each for each in plans(bundle)}
    assert list(by_name) == list(DEVICES)
    names = ("orin-nano-8gb", "orin-nano-8gb-super", "agx-orin-64gb", "thor-t5000")
    for slower, faster in pairwise(names):
        for one, other in zip(by_name[slower].stages, by_name[faster].stages, strict=True):
            assert other.floor_ms < one.floor_ms
            assert one.unfused_ms is None or one.unfused_ms >= one.floor_ms


MEASURED = Measurement(
    threads=2,
    load=0.1,
    fp32=2e11,
    bandwidth=2e10,
    candidates=60,
    generated=12,
    video_tokens=72,
    size=[400, 400],
    stages_ms={"decode": [9, 9, 9], "sample": [900, 800, 950], "encode": [70, 90, 80], "prefill": [50, 60, 70],
               "generate": [120, 110, 100], "total": [1200, 1100, 1300]},
    backends={"sampler": "onnxruntime cpu", "encoder": "onnxruntime cpu", "decoder": "llama.cpp CPU"},
    base_bytes=100_000_000,
    peak_bytes=400_000_000,
)  # fmt: skip


def test_measured_stages_are_held_against_their_floors(costs: Costs) -> None:
    found = plan_here(costs, MEASURED)
    assert found.check is not None
    floors = {stage.name: stage.floor_ms for stage in found.stages}
    assert [stage.name for stage in found.check.stages] == ["sample", "encode", "prefill", "generate"]
    for stage, median in zip(found.check.stages, (900, 80, 60, 110), strict=True):
        assert (stage.measured_ms, stage.floor_ms, stage.runs) == (median, floors[stage.name], 3)
        assert stage.ratio == pytest.approx(median / floors[stage.name])
    sample = found.stages[0]
    assert sample.flops == pytest.approx(120 / 8 * costs.vgg16.flops)  # the clip's own 60 candidates
    own = sum(part.bytes for part in found.memory.parts if part.name != "system")
    assert found.check.predicted_bytes == own and found.check.ratio == pytest.approx(4e8 / own)
    assert Part("process", 100_000_000, "Python and libraries") in found.memory.parts


@pytest.mark.parametrize(("load", "words"), [(0.1, "the machine was idle"), (3.0, "measure again when it is idle")])
def test_a_measurement_on_a_busy_machine_says_so(costs: Costs, load: float, words: str) -> None:
    out = StringIO()
    show([plan_here(costs, replace(MEASURED, load=load))], Console(file=out, width=80))
    assert words in " ".join(out.getvalue().split())


def test_a_decoder_on_a_gpu_is_not_held_against_the_processor(costs: Costs) -> None:
    backends = {**MEASURED.backends, "decoder": "llama.cpp CUDA0 (Orin)"}
    found = plan_here(costs, replace(MEASURED, backends=backends)).check
    assert found is not None and [stage.name for stage in found.stages] == ["sample", "encode"]


def numbers(value: Any) -> Iterator[float]:
    """Every number of a JSON document, those inside its texts too."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, str):
        yield from (float(found.replace(",", "")) for found in NUMBER.findall(value))
    elif isinstance(value, (int, float)):
        yield value


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@pytest.mark.parametrize("device", ["orin-nano-8gb", None, "this"])
def test_every_printed_figure_is_in_the_json(bundle: Bundle, costs: Costs, device: str | None) -> None:
    found = [plan_here(costs, MEASURED)] if device == "this" else plans(bundle, device)
    values = list(numbers(json.loads(json.dumps([each.to_json() for each in found]))))
    values += [1e3 / each.token_ms for each in found] + [-value for value in values]
    written = {f"{v * unit:,.{digits}f}" for v in values for unit in (1, 1e-6, 1e-9) for digits in (0, 1, 2)}
    written |= {f"{v:g}" for v in values}
    out = StringIO()
    show(found, Console(file=out, width=80, highlight=False))
    printed = NUMBER.findall(out.getvalue())
    assert len(printed) > 30
    assert [number for number in printed if number.rstrip(",") not in written] == []
    assert max(len(line) for line in out.getvalue().splitlines()) <= 80


def test_the_whole_bundle_is_planned_without_its_weights(tmp_path: Path, bundle: Bundle) -> None:
    """Graphs are read without the files beside them: those may be gigabytes, and elsewhere."""
    alone = tmp_path / ENCODER
    alone.write_bytes(bundle.file(ENCODER).read_bytes())
    assert graph_costs(alone) == graph_costs(bundle.file(ENCODER))


def test_operations_without_products_cost_no_arithmetic(bundle: Bundle) -> None:
    kinds: dict[str, set[bool]] = {}
    operation: Operation
    for operation in graph_costs(bundle.file(ENCODER)).operations:
        kinds.setdefault(operation.kind, set()).add(operation.flops > 0)
    assert {kind for kind, costly in kinds.items() if True in costly} == {"MatMul"}


@pytest.mark.full
def test_this_machine_is_measured(pocket: Bundle) -> None:
    found = measure(pocket.path)
    assert found.fp32 > 1e9 and found.bandwidth > 1e9
    assert 0 < found.base_bytes < found.peak_bytes
    assert all(len(runs) == 3 and min(runs) > 0 for runs in found.stages_ms.values())
    check = plan_here(Costs.read(pocket), found).check
    assert check is not None and len(check.stages) == 4
