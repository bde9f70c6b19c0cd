"""What a training step is made of: its time by batch length, the host's share, compilation, peak memory.

    python benchmarks/step.py [--settings 1x4,4x16] [--shape mistral] [--files MODEL_FOLDER]
    python benchmarks/step.py --profile [--settings 1x4,4x16]

A setting is BATCHxLAYERS: so many layers of the shape with random weights, and random states as inputs, so no model is
needed. Each setting is timed with projections merged and not; on a GPU with sqlora's kernels and not, with its steps
compiled and not, with MLX's memory limit as training sets it and without, and with CUDA's memory pool kept. --files
times reading the weights of a converted model, by the stream that reads; --operations what single operations cost the
host. --profile lists a GPU's kernels in steps of length 100, with sqlora's own and not, and for how long the device has
none to run; PyTorch's profiler records them (CUPTI), which costs the host some time.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlora.mlx import mx

import numpy as np
from mlx_lm.models import llama
from train_params import train_params

from sqlora.params.lora import LoraParams
from sqlora.prefetch import prefetch
from sqlora.runtime import cut_graphs
from sqlora.tokenizer import Encoded
from sqlora.train.buckets import Planned
from sqlora.train.cuda import kernels
from sqlora.train.feed import Ready, transfer
from sqlora.train.lora import add_lora
from sqlora.train.loss import make_batch
from sqlora.train.step import Stepper
from sqlora.train.upper import Upper

# Of the 1,000 examples of the WikiSQL split in Mistral's tokens: the lengths that training pads to, and their shares.
LENGTHS = (77, 84, 89, 94, 100, 108, 118, 132, 159, 221)
SHARES = (0.15, 0.13, 0.12, 0.1, 0.1, 0.1, 0.1, 0.1, 0.07, 0.03)
SHAPES = {
    "mistral": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
    "demo": {"hidden_size": 320, "intermediate_size": 864, "num_attention_heads": 10, "num_key_value_heads": 5},
}
GPU = mx.default_device().type == mx.DeviceType.gpu
USABLE = kernels.usable  # to put it back


def main() -> None:
    """Print a block of lines for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default="1x4,4x16" if GPU else "1x2,4x8")
    parser.add_argument("--shape", choices=list(SHAPES), default="mistral" if GPU else "demo")
    parser.add_argument("--files", type=Path)
    parser.add_argument("--operations", action="store_true", help="time what single operations cost, and nothing else")
    parser.add_argument("--profile", action="store_true", help="list a GPU's kernels, and nothing else")
    arguments = parser.parse_args()
    # As the train stage does for the largest of them: MLX reads it once in a process.
    cut_graphs(max(int(setting.split("x")[0]) for setting in arguments.settings.split(",")))
    if arguments.operations:
        time_operations()
        return
    if arguments.files:
        time_reading(arguments.files)
    for setting in arguments.settings.split(","):
        batch, layers = map(int, setting.split("x"))
        if arguments.profile:
            for own in (True, False):
                profile_steps(arguments.shape, batch, layers, own=own)
            continue
        for variant in ("compiled, fused, kernels", "compiled, fused", "compiled", "") if GPU else ("fused", ""):
            time_steps(arguments.shape, batch, layers, variant)
            mx.clear_cache()


def time_steps(shape: str, batch: int, layers: int, variant: str) -> None:
    """Time steps of one length, of mixed lengths, and one step's parts."""
    if "kernels" not in variant:
        kernels.usable = lambda _: False  # type: ignore[assignment]
    stepper = build(shape, batch, layers, compiled="compiled" in variant, fused="fused" in variant)
    kernels.usable = USABLE
    weights = mx.get_active_memory()
    width = SHAPES[shape]["hidden_size"]
    started = time.perf_counter()
    ready = {length: inputs(batch, length, width) for length in LENGTHS}
    for one in ready.values():
        mx.eval(stepper.step([one]))
    first = time.perf_counter() - started
    print(f"{batch}x{layers} {variant or 'plain'}: first step of each length {first:.2f} s in all", flush=True)
    each = [1e3 * timed(lambda _, one=one: stepper.step([one])) for one in ready.values()]
    print("  ms a step by length  " + "  ".join(f"{n}: {ms:.2f}" for n, ms in zip(LENGTHS, each, strict=True)))
    order = random.Random(1).choices(LENGTHS, SHARES, k=200)
    print(f"  mixed lengths        {1e3 * timed(lambda n: stepper.step([ready[order[n % 200]]]), 100):.2f} ms")
    started = time.perf_counter()
    for _ in range(20):
        mx.async_eval(stepper.step([ready[100]]))
        issued = time.perf_counter()
    mx.synchronize()
    print(f"  issuing              {1e3 * (issued - started) / 20:.2f} ms of the host for a step of length 100")
    # About what must live; training's own limit is 30% above it (sqlora.plan.prediction).
    needed = weights + layers * batch * LENGTHS[-1] * 54_176 * 2 + 600_000_000
    for limit, pool in ((1.3, False), (None, False), (1.3, True), (None, True)) if GPU else ((None, False),):
        if pool:
            keep_pool(int(1.3 * needed))
        before = mx.set_memory_limit(int(limit * needed)) if limit else None
        mx.clear_cache()
        mx.reset_peak_memory()
        rate = 1e3 * timed(lambda n: stepper.step([ready[order[n % 200]]]), 100)
        name = (f"limit {limit * needed / 1e9:.2f} GB" if limit else "no limit") + ", pool kept" * pool
        print(f"  peak, {name:<27}{mx.get_peak_memory() / 1e9:.2f} GB at {rate:.2f} ms a step", flush=True)
        if before is not None:
            mx.set_memory_limit(before)


def profile_steps(shape: str, batch: int, layers: int, *, own: bool, count: int = 20) -> None:
    """Print what a GPU does in a step: its kernels, those that take most first, and the time between them.

    Args:
        own: with sqlora's kernels.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.zeros(1, device="cuda")  # the profiler begins with PyTorch's CUDA
    if not own:
        kernels.usable = lambda _: False  # type: ignore[assignment]
    stepper = build(shape, batch, layers, compiled=True, fused=True)
    kernels.usable = USABLE
    ready = inputs(batch, 100, SHAPES[shape]["hidden_size"])
    timed(lambda _: stepper.step([ready]))
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        seconds = timed(lambda _: stepper.step([ready]), count)
        mx.synchronize()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    events = sorted((one for one in events if one.get("cat") == "kernel"), key=lambda one: one["ts"])
    count += 1  # `timed` has one before
    busy: dict[str, list[float]] = defaultdict(list)
    idle, end = 0.0, float("inf")
    for one in events:
        busy[one["name"].removeprefix("void ")[:70]].append(one["dur"])
        idle, end = idle + max(0.0, one["ts"] - end), one["ts"] + one["dur"]
    total = sum(map(sum, busy.values())) / count
    print(
        f"{batch}x{layers}{', own kernels' * own}: {1e3 * seconds:.2f} ms a step, {len(events) / count:.0f} kernels "
        f"that take {total / 1e3:.2f} ms, {idle / count / 1e3:.2f} ms between them",
        flush=True,
    )
    for name, each in sorted(busy.items(), key=lambda item: -sum(item[1]))[:20]:
        print(f"  {sum(each) / count:8.1f} us in {len(each) / count:5.1f} of {sum(each) / len(each):7.1f}  {name}")


def keep_pool(size: int) -> None:
    """Let the first device's default memory pool keep so many bytes that nobody uses.

    MLX allocates from that pool (cudaMallocAsync) and leaves it as CUDA makes it: at every synchronization it gives
    what is free back to the driver, and the next allocation has to map memory again.
    """
    driver, pool, value = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(), ctypes.c_uint64(size)
    release_threshold = 4  # of CUmemPool_attribute
    assert driver.cuInit(0) == 0
    assert driver.cuDeviceGetDefaultMemPool(ctypes.byref(pool), 0) == 0
    assert driver.cuMemPoolSetAttribute(pool, release_threshold, ctypes.byref(value)) == 0


def build(shape: str, batch: int, layers: int, *, compiled: bool, fused: bool) -> Stepper:
    """Layers with random weights, rank 8 on q and v."""
    arguments = llama.ModelArgs(
        model_type="llama",
        num_hidden_layers=layers,
        rms_norm_eps=1e-5,
        vocab_size=32_000 if shape == "mistral" else 4_096,
        tie_word_embeddings=False,
        **SHAPES[shape],
    )
    model = llama.Model(arguments)
    model.set_dtype(mx.bfloat16 if GPU else mx.float32)
    upper = Upper(model, 0)
    upper.freeze()
    mx.eval(upper.parameters())
    lora = LoraParams(adapter="lora", layers=layers, rank=8, scale=20.0, dropout=0.0, targets=("q_proj", "v_proj"))
    add_lora(upper, lora, 1)
    params = train_params(batch_size=batch)
    return Stepper(upper, lora, params, compiled=compiled, fused=fused)


def inputs(batch: int, length: int, width: int) -> Ready:
    """A batch on the device, every token of it counted."""

    # Random: with zeros a GPU's steps are a tenth quicker than a run's (docs/decisions.md).
    rng = np.random.default_rng(length)

    def fetch(chosen: Sequence[int], starts: Sequence[int], tokens: int) -> np.ndarray:
        states = rng.standard_normal((tokens, width), dtype=np.float32)
        return (states.view(np.uint32) >> 16).astype(np.uint16) if GPU else states  # a bfloat16 is a float's first half

    examples = [Encoded(tuple(range(3, 4 + length)), length // 2)] * batch
    ready = transfer([make_batch(examples, Planned(list(range(batch)), length, batch, 0), fetch, "all")])[0]
    mx.eval(ready.inputs, ready.positions, ready.targets, ready.weights, ready.places)
    return ready


def timed(step: Callable[[int], tuple[mx.array, mx.array]], count: int = 20) -> float:
    """Seconds a step; the next is issued while one runs, as in training."""
    previous = step(0)
    started = time.perf_counter()
    for number in range(count):
        loss = step(number)
        mx.eval(previous)
        previous = loss
    mx.eval(previous)
    return (time.perf_counter() - started) / count


def time_operations(count: int = 200) -> None:
    """What one operation of a chain costs the host to issue, and in all: the best of five chains, compiled on a GPU."""
    dtype = mx.bfloat16 if GPU else mx.float32

    def random_array(*shape: int) -> mx.array:
        return (mx.random.normal(shape) * 0.02).astype(dtype)

    state, weight, low, norm = random_array(384, 1024), random_array(1024, 1024), random_array(1024, 8), mx.ones(1024)
    heads, keys = random_array(4, 8, 384, 128), random_array(4, 8, 96, 128)
    operations: dict[str, tuple[mx.array, Callable[[mx.array], mx.array]]] = {
        "addition": (state, lambda x: x + state),
        "RMSNorm": (state, lambda x: mx.fast.rms_norm(x, norm.astype(dtype), 1e-5)),
        "product": (state, lambda x: x @ weight.T),
        "product and addition": (state, lambda x: mx.addmm(state, x, weight.T)),
        "two products of rank 8": (state, lambda x: (x @ low) @ low.T),
        "two products of attention": (heads, lambda x: (x @ keys.swapaxes(-1, -2)) @ keys),
        "rotary part": (heads, lambda x: mx.fast.rope(x, 128, traditional=False, base=1e4, scale=1.0, offset=0)),
        "softmax": (heads, lambda x: mx.softmax(x, axis=-1, precise=True)),
    }
    for name, (first, operation) in operations.items():

        def chain(first: mx.array = first, operation: Callable[[mx.array], mx.array] = operation) -> mx.array:
            for _ in range(count):
                first = operation(first)
            return first

        run = mx.compile(chain) if GPU else chain
        mx.eval(run())
        best = (float("inf"), 0.0)
        for _ in range(5):
            started = time.perf_counter()
            mx.async_eval(run())
            issued = time.perf_counter()
            mx.synchronize()
            best = min(best, (time.perf_counter() - started, issued - started))
        whole, issuing = (1e6 * seconds / count for seconds in best)
        print(f"{name:<26} issuing {issuing:6.1f} µs, in all {whole:7.1f} µs", flush=True)


def time_reading(folder: Path) -> None:
    """Read some layers by the default stream, others by the CPU's, others by that and prefetched, and use them."""
    for number, (name, stream) in enumerate(
        (("default stream", None), ("CPU stream", mx.cpu), ("CPU stream, prefetched", mx.cpu))
    ):
        weights: dict[str, mx.array] = {}
        for file in sorted(folder.glob("*.safetensors")):
            loaded = mx.load(str(file), stream=stream) if stream else mx.load(str(file))
            assert isinstance(loaded, dict)
            weights |= loaded
        layers = [(int(key.split(".")[2]), value) for key, value in weights.items() if key.startswith("model.layers.")]
        count = max(1, max(layer for layer, _ in layers) // 4)
        arrays = [value for layer, value in layers if layer // count == number]
        size = sum(array.nbytes for array in arrays) / 1e9
        started = time.perf_counter()
        mx.eval(arrays)
        read = time.perf_counter()
        if "prefetched" in name:
            prefetch(arrays)
        mx.eval([array.sum() for array in arrays])
        used = time.perf_counter()
        print(f"{name}: {size:.2f} GB read in {read - started:.2f} s, first used in {used - read:.2f} s", flush=True)


if __name__ == "__main__":
    main()
