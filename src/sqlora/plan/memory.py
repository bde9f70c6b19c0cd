"""Peak memory of a training run, from first principles: which arrays live at the same time, and why.

A phase of a run has moments at which most is alive. Each moment is written down as a list of arrays; the largest sum is
the run's live memory. What each array is for is said where it is listed; names are those of sqlora.train.layer and
sqlora.train.gradients, whose arrays these are. T is rows x length of a batch, H the model's width, Q and V the width of
all query and of all key heads, I the MLP's inner width, A = rows x heads x length x length the attention's weights.

MLX evaluates lazily and frees an array when its last user has run; on a GPU (and on the CPU's stream) the host issues
operations ahead of the device, and what these free stays until the device is through. The engine therefore sets MLX's
memory limit `ROOM` above the live memory: beyond it MLX waits for the device instead of issuing more. The peak then lies
between the live memory and that limit, and the middle is what is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.plan.shape import Shape
from sqlora.plan.work import Load, Work
from sqlora.train.layer import PLAIN_ATTENTION
from sqlora.train.upper import BATCH_TOKENS, WAVE_TOKENS

ROOM = 0.1  # share of the live memory that operations issued ahead may take

Arrays = dict[str, int]  # what for -> bytes


@dataclass(frozen=True)
class Prediction:
    """phases: name -> the arrays of its largest moment; outside: bytes of the process that MLX does not hold, which a
    CPU's memory includes; mapped: bytes of the states' files that are mapped while training.
    """

    phases: dict[str, Arrays]
    outside: int
    mapped: int

    @property
    def live(self) -> int:
        """Bytes that MLX has to hold at least."""
        return max(sum(arrays.values()) for arrays in self.phases.values())

    @property
    def limit(self) -> int:
        """MLX's memory limit for the run, in bytes."""
        return int(self.live * (1 + ROOM))

    @property
    def peak(self) -> int:
        """Bytes: of what MLX holds on a GPU, of the whole process on a CPU."""
        resident = 0
        for name, arrays in self.phases.items():
            mapped = self.mapped if name != "frozen layers" else 0
            resident = max(resident, int(sum(arrays.values()) * (1 + ROOM / 2)) + mapped)
        return resident + self.outside

    @property
    def largest(self) -> str:
        """The phase that decides."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))


def predict(
    shape: Shape, lora: LoraParams, params: TrainParams, work: Work, *, device: str, outside: int = 0
) -> Prediction:
    """The peak memory of a run.

    Args:
        device: cpu, cuda or metal.
        outside: bytes that the process has beside MLX's arrays; 0 on a GPU, where they do not count.
    """
    frozen = shape.layers - lora.layers if params.states_gb else 0
    always = _always(shape, lora, frozen)
    phases = {
        "training": max((_training(shape, lora, params, load, frozen, device) for load in work.train), key=_total),
        "validation": max((_validation(shape, lora, load, frozen, device) for load in work.valid), key=_total),
    }
    phases = {name: always | arrays for name, arrays in phases.items()}
    if frozen:
        phases["frozen layers"] = _frozen_pass(shape, work, device)
    mapped = work.state_tokens * shape.hidden * shape.itemsize if frozen and device == "cpu" else 0
    return Prediction(phases, outside, mapped)


def adapter_size(shape: Shape, lora: LoraParams) -> int:
    """Trainable parameters."""
    return lora.layers * lora.rank * sum(sum(shape.projections[target]) for target in lora.targets)


def _total(arrays: Arrays) -> int:
    return sum(arrays.values())


def _always(shape: Shape, lora: LoraParams, frozen: int) -> Arrays:
    """What is there from the first step to the last."""
    embeddings = 1 if frozen or shape.tied else 2  # tokens are inputs where no layer is frozen
    adapter = 4 * adapter_size(shape, lora)
    return {
        "weights": (shape.layers - frozen) * shape.layer_bytes
        + embeddings * shape.embedding_bytes
        + shape.hidden * shape.itemsize,
        # The vector, its scales, two moments of Adam, the start values that mlx-lm's layers hold, and the best so far.
        "adapter and optimizer": 6 * adapter,
    }


def _kept(shape: Shape, lora: LoraParams, load: Load) -> tuple[int, int, int]:
    """Bytes of one layer's `Kept`: its input, what dropout drew, and the rest."""
    tokens, attention = load.rows * load.length, load.rows * shape.heads * load.length**2
    # query and mixed; key and value; middle; gate and up; x @ a of each adapted projection.
    width = 2 * shape.queries + 2 * shape.keys + shape.hidden + 2 * shape.inner + lora.rank * len(lora.targets)
    weights = attention if load.length <= PLAIN_ATTENTION else 0
    masks = sum(shape.projections[target][0] for target in lora.targets) if lora.dropout else 0
    if not shape.written:
        # Automatic differentiation also keeps both norms, projections before rotation and LoRA, and SwiGLU's parts.
        width += 2 * shape.hidden + 2 * shape.queries + 2 * shape.keys + 3 * shape.inner
    size = shape.itemsize
    return tokens * shape.hidden * size, tokens * masks * size, (tokens * width + weights) * size


def _mlp_back(shape: Shape, load: Load, device: str) -> int:
    """Bytes beside the kept ones while SwiGLU's gradients are computed, the largest moment of a layer's way back."""
    tokens = load.rows * load.length
    # On a GPU one kernel turns d_inner into d_gate and d_up. A CPU computes d_inner, sigmoid, activated, gradient * up
    # and the factor of both one by one; the rest reuses what is there.
    inner = 5 if device == "cpu" else 3
    return tokens * (inner * shape.inner + shape.hidden) * shape.itemsize  # and the gradient itself


def _attention_back(shape: Shape, load: Load, device: str) -> int:
    """The same while the attention's gradients are computed; gate and up are gone by then."""
    tokens, attention = load.rows * load.length, load.rows * shape.heads * load.length**2
    if load.length <= PLAIN_ATTENTION:
        matrices = 3  # d_weights, its product with the weights, d_scores
    else:
        # cuDNN has a backward kernel; elsewhere MLX computes plain attention again and its gradients.
        matrices = 0 if device == "cuda" else 5
    # gradient and middle; d_mixed, its transposed copy and d_query; d_key and d_value; what is gone.
    width = 2 * shape.hidden + 3 * shape.queries + 2 * shape.keys - 2 * shape.inner
    return (tokens * width + matrices * attention) * shape.itemsize


def _head(shape: Shape, load: Load, device: str, *, back: bool) -> int:
    """Bytes at the output matrix: logits of the counted positions, in float32 for the loss."""
    numbers = load.counted * shape.vocab
    half = numbers * shape.itemsize if shape.itemsize < 4 else 0  # before they become float32, and their gradient
    if device == "cpu":
        matrices = 3 if back else 2  # shifted logits, softmax, the targets' share of the gradient; logits and shifted
    else:
        matrices = 2 if back else 1  # the fused loss needs the logits and gives their gradient
    rows = 3 * load.counted * shape.hidden * shape.itemsize  # chosen states, normed, and the gradient
    return 4 * numbers * matrices + half + rows


def _training(shape: Shape, lora: LoraParams, params: TrainParams, load: Load, frozen: int, device: str) -> Arrays:
    tokens = load.rows * load.length
    state, masks, rest = _kept(shape, lora, load)
    layers = shape.layers if not params.states_gb else lora.layers
    inputs = state if frozen else tokens * 4
    if params.gradient_checkpointing:
        kept, again = layers * (state + masks), rest  # one layer's inner values at a time
    else:
        kept, again = layers * (state + masks + rest), 0
    back = max(_mlp_back(shape, load, device), _attention_back(shape, load, device))
    head = _head(shape, load, device, back=True) + state  # and the last layer's output
    adapter = 4 * adapter_size(shape, lora)
    return {
        "kept for the way back": kept,
        "the layer at work": max(head, again + back),
        "inputs of the next step": inputs,
        # Scaled and split for the layers; while batches are added up, the sum so far.
        "adapter's values and gradient": adapter * (2 + (params.gradient_accumulation > 1)),
    }


def _validation(shape: Shape, lora: LoraParams, load: Load, frozen: int, device: str) -> Arrays:
    tokens = load.rows * load.length
    state, _, rest = _kept(shape, lora, load)
    # Nothing is kept for a way back, so the head or one layer decides; the training step before may not be done.
    return {
        "states": 2 * state if frozen else state + tokens * 4,
        "the layer at work": max(_head(shape, load, device, back=False), rest + tokens * shape.inner * shape.itemsize),
        "adapter's values": 4 * adapter_size(shape, lora),
    }


def _frozen_pass(shape: Shape, work: Work, device: str) -> Arrays:
    """One wave: states of all its batches, two layers' weights, and two batches on their way."""
    wave = batch = 0
    left = WAVE_TOKENS
    for length, count in work.states:
        rows = max(1, BATCH_TOKENS // length)
        taken = min(count, max(1, left // length))
        left -= taken * length
        wave += -(-taken // rows) * rows * length  # every batch has all its rows
        batch = max(batch, rows * length)
    load = Load(1, batch, 0)
    rows_load = max(
        (Load(max(1, BATCH_TOKENS // length), length, 0) for length, _ in work.states),
        key=lambda one: one.rows * one.length**2,
    )
    attention = rows_load.rows * shape.heads * rows_load.length**2 if rows_load.length <= PLAIN_ATTENTION else 0
    tokens = load.length
    # normed, gate, up and inner, middle and the output; the attention's part is smaller unless its weights are not.
    width = max(3 * shape.hidden + 3 * shape.inner, 0)
    side = 2 * shape.queries + 2 * shape.keys + 2 * shape.hidden
    work_bytes = max(tokens * width, tokens * side + attention) * shape.itemsize
    return {
        "states": wave * shape.hidden * shape.itemsize,
        "weights of two layers": min(2, shape.layers) * shape.layer_bytes,
        "two batches": 2 * work_bytes,
    }
