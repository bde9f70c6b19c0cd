"""Peak memory of a training run, from first principles: which arrays live at the same time, and why.

A phase of a run has moments at which most is alive. Each moment is written down as a list of arrays; the largest sum is
the run's live memory. What each array is for is said where it is listed; names are those of sqlora.train.layer and
sqlora.train.gradients, whose arrays these are. T is rows x length of a batch, H the model's width, Q and V the width of
all query and of all key heads, I the MLP's inner width, A = rows x heads x length x length the attention's weights.

MLX evaluates lazily and frees an array when its last user has run; on a GPU (and on the CPU's stream) the host issues
operations ahead of the device, and what these free stays until the device is through. So MLX's memory limit is set
above the live memory by a share (ROOM in sqlora.plan.prediction): beyond it MLX waits for the device instead of issuing
more. The peak of a GPU then lies between the live memory and a little above that limit.
"""

from __future__ import annotations

import math

from sqlora.count import sum_adapter
from sqlora.llama import GROUPS
from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.plan.prediction import Arrays, Prediction
from sqlora.plan.shape import Shape
from sqlora.plan.work import Load, Work
from sqlora.train.attention import PLAIN_ATTENTION
from sqlora.train.cuda.compiler import SIZES, attends
from sqlora.train.cuda.layers import parts_of
from sqlora.train.feed import TRANSFER_BYTES, steps_together
from sqlora.train.gradients import picks_early
from sqlora.train.staging import TURNS
from sqlora.train.upper import WAVE_TOKENS, rows_of
from sqlora.train.validation import KEPT_BYTES

# Arrays on the way to an exponential of sqlora.train.exponential, on a CPU: the power of two, the rest, the value.
_POLYNOMIAL = 3


def predict(
    shape: Shape, lora: LoraParams, params: TrainParams, work: Work, *, device: str, outside: int = 0
) -> Prediction:
    """The peak memory of a run.

    Args:
        device: cpu, cuda or metal.
        outside: bytes that the process has beside MLX's arrays; 0 on a GPU, where they do not count.
    """
    frozen = shape.layers - lora.layers if params.states_gb else 0
    token = shape.hidden * shape.itemsize if frozen else 4  # bytes of what goes in
    transferred = _transferred(params, work, token, device)
    checked = min(TRANSFER_BYTES, work.valid_tokens * token)
    # A CUDA device has those of the steps before and behind them as well, and keeps a validation's.
    ahead = TURNS if device == "cuda" else 1
    always = _always(shape, lora, frozen, device) | {"inputs of the next steps": ahead * transferred}
    training = max((_training(shape, lora, params, load, device) for load in work.train), key=_total)
    validation = max((_validation(shape, lora, load, device) for load in work.valid), key=_total)
    if device == "cuda" and work.valid_tokens * token <= KEPT_BYTES:
        always["inputs of validations"] = work.valid_tokens * token
    else:
        validation["inputs of the validation"] = checked
    phases = {"training": always | training, "validation": always | validation}
    if frozen:
        phases["frozen layers"] = _frozen_pass(shape, work, device)
    mapped = work.state_tokens * token if frozen else 0
    # Inputs are gathered and then packed; while a validation does so, the next steps' lie there packed.
    host = {"training": mapped + 2 * transferred, "validation": mapped + transferred + 2 * checked}
    return Prediction(phases, device, outside, host if device == "cpu" else {})


def adapter_size(shape: Shape, lora: LoraParams) -> int:
    """Trainable parameters."""
    return sum_adapter(shape.projections, lora.adapter, lora.layers, lora.rank, lora.targets)


def _transferred(params: TrainParams, work: Work, token: int, device: str) -> int:
    """Bytes of the steps' inputs that are transferred at once; token: of one token's."""
    together = steps_together(int(work.even_tokens * token), cuda=device == "cuda")
    return int(work.step_tokens * token) * min(together, params.iterations)


def _total(arrays: Arrays) -> int:
    return sum(arrays.values())


def _always(shape: Shape, lora: LoraParams, frozen: int, device: str) -> Arrays:
    """What is there from the first step to the last."""
    embeddings = 1 if frozen or shape.tied else 2  # tokens are inputs where no layer is frozen
    adapter = 4 * adapter_size(shape, lora)
    return {
        "weights": (shape.layers - frozen) * shape.layer_bytes
        + embeddings * shape.embedding_bytes
        + shape.hidden * shape.itemsize,
        # The vector, its scales, two moments of Adam, the start values that mlx-lm's layers hold, and the best so far.
        "adapter and optimizer": 6 * adapter,
        # Its arrays in one piece, until they are written: vector, moments and the best.
        "a checkpoint on its way": 4 * adapter,
        "places in the adapter": _places(shape, lora) if _fused(shape, lora, device) else 0,
    }


def _fused(shape: Shape, lora: LoraParams, device: str) -> bool:
    """Whether sqlora.train.fused computes the steps."""
    return device == "cuda" and _written(shape, lora) and not lora.dropout


def _places(shape: Shape, lora: LoraParams) -> int:
    """Bytes of `Taken`'s indices: of each layer's factors, group by group, and of the vector's entries."""
    numbers = 0
    for group in GROUPS:
        adapted = [name for name in group if name in lora.targets]
        if adapted:
            inputs, outputs = shape.projections[group[0]][0], sum(shape.projections[name][1] for name in group)
            rank = lora.rank * len(adapted)
            numbers += (rank + -rank % 8) * (inputs + outputs)  # with rows of zeros, up to a multiple of eight
    return 4 * (lora.layers * numbers + adapter_size(shape, lora))


def _written(shape: Shape, lora: LoraParams) -> bool:
    """Whether the engine's written-out layers compute the steps, and not automatic differentiation."""
    return shape.written and lora.adapter == "lora"


def _own_attention(shape: Shape, lora: LoraParams, load: Load, device: str) -> bool:
    """Whether attention is one of the CUDA kernels of sqlora.train.cuda, which has no weights in memory.

    Where NVRTC fails it is not, after a warning; the run then takes more than is predicted.
    """
    return (load.packed or load.length <= PLAIN_ATTENTION) and _attention_kernels(shape, lora, device)


def _attention_kernels(shape: Shape, lora: LoraParams, device: str) -> bool:
    kinds = shape.itemsize == 2 and shape.turned and shape.queries // shape.heads in SIZES
    fits = kinds and not shape.hidden % 8 and not shape.inner % 8
    return fits and _fused(shape, lora, device) and attends()


def packs(shape: Shape, lora: LoraParams, device: str, longest: int) -> bool:
    """Whether batches have examples one after another; see sqlora.train.fused.packs."""
    return longest <= PLAIN_ATTENTION and _attention_kernels(shape, lora, device)


def _kept(shape: Shape, lora: LoraParams, load: Load, device: str, going: int) -> tuple[int, int, int]:
    """Bytes of one layer's `Kept`: its input, what dropout drew, and the rest.

    Args:
        going: tokens behind the attention.
    """
    tokens, attention = load.rows * load.length, load.rows * shape.heads * load.length**2
    before = [target for target in lora.targets if target in GROUPS[0]]
    behind = [target for target in lora.targets if target not in GROUPS[0]]
    # query; key and value; x @ a of each adapted projection.
    numbers = tokens * (shape.queries + 2 * shape.keys + lora.rank * len(before))
    # middle; gate and up; likewise.
    numbers += going * (shape.hidden + 2 * shape.inner + lora.rank * len(behind))
    # mixed: only its adapter's gradient and the attention kernels ask for it, and MLX drops what nobody asks for.
    own = _own_attention(shape, lora, load, device)
    numbers += shape.queries * (tokens if own else going * ("o_proj" in lora.targets))
    if own and going < tokens:
        numbers += shape.queries * going * ("o_proj" in lora.targets)
    if load.length <= PLAIN_ATTENTION and not own:
        numbers += attention
    masks = 0
    if lora.dropout:
        masks = sum(shape.projections[one][0] * (tokens if one in before else going) for one in lora.targets)
    size = shape.itemsize
    return tokens * shape.hidden * size, masks * size, numbers * size


def _automatic(shape: Shape, lora: LoraParams) -> tuple[int, int]:
    """Numbers a token that automatic differentiation keeps of a layer beside `_kept`: all, and the adapters'."""
    targets = set(lora.targets)
    # What goes into the adapters, one norm for several of them; o_proj's is in `_kept`.
    inputs = shape.hidden * (bool(targets & {"q_proj", "k_proj", "v_proj"}) + bool(targets & {"gate_proj", "up_proj"}))
    inputs += shape.inner * ("down_proj" in targets)
    # The gradient of DoRA's lengths asks for what a projection gave before its rows got them.
    outputs = sum(shape.projections[target][1] for target in targets)
    return inputs + 2 * shape.inner + outputs * (lora.adapter == "dora"), inputs + outputs


def _dequantized(shape: Shape, lora: LoraParams) -> int:
    """Bytes of a layer's plain weights that DoRA makes of quantized ones and keeps for the way back."""
    if lora.adapter != "dora" or shape.bits is None:
        return 0
    return sum(math.prod(shape.projections[target]) for target in lora.targets) * shape.itemsize


def _plain(shape: Shape, tokens: int, device: str, *matrices: tuple[int, int]) -> int:
    """Bytes of products with quantized weights on a CPU: sqlora.quantized.

    Args:
        matrices: (inputs, outputs) of those that multiply the same rows, whose weights may be there together.
    """
    if device != "cpu" or shape.bits is None:
        return 0
    # All in float32: the weight, what it is unpacked from and, where the model's type is another, rows and product.
    moved = tokens * sum(map(sum, matrices)) if shape.itemsize < 4 else 0
    return 4 * (2 * sum(map(math.prod, matrices)) + moved)


def _plain_group(shape: Shape, tokens: int, device: str, group: int) -> int:
    """The same of a group of GROUPS."""
    return _plain(shape, tokens, device, *(shape.projections[name] for name in GROUPS[group]))


def _plain_layer(shape: Shape, tokens: int, device: str) -> int:
    """The same of a layer's products, group by group."""
    return max(_plain_group(shape, tokens, device, group) for group in range(len(GROUPS)))


def _mlp_back(shape: Shape, lora: LoraParams, load: Load, device: str, tokens: int) -> int:
    """Bytes beside the kept ones while SwiGLU's gradients are computed, of so many tokens."""
    # d_inner. A GPU's one kernel writes d_gate and d_up over gate and up, which nobody needs any more, or beside them
    # if these are one array; a CPU has sigmoid and 1 - sigmoid as well, the other steps reuse what is there.
    inner = (3 if device == "cpu" or _fused(shape, lora, device) else 1) + ("down_proj" in lora.targets)
    if device == "cpu" and shape.itemsize == 4:
        # A polynomial's arrays in place of sigmoid's; and those of SwiGLU's value, if down_proj's adapter asks.
        inner += _POLYNOMIAL - 2 + 2 * _POLYNOMIAL * ("down_proj" in lora.targets)
    if not _written(shape, lora):
        inner = 2  # both gradients; sigmoid and its product are kept
    # The gradient that came from above, and the one that goes on below.
    most = tokens * (inner * shape.inner + 2 * shape.hidden) * shape.itemsize
    # At the products there are both gradients, or one before them, and on a CPU plain weights of quantized ones.
    products = tokens * (2 * shape.inner + 2 * shape.hidden) * shape.itemsize + _plain_group(shape, tokens, device, 2)
    before = tokens * (shape.inner + 2 * shape.hidden) * shape.itemsize + _plain_group(shape, tokens, device, 3)
    return max(most, products, before) + _mask(shape, load) * shape.itemsize


def _attention_back(shape: Shape, lora: LoraParams, load: Load, device: str, going: int) -> int:
    """The same while the attention's gradients are computed; gate and up, of `going` tokens, are gone by then."""
    tokens, attention = load.rows * load.length, load.rows * shape.heads * load.length**2
    matrices = 2  # d_weights and its product with the weights; d_scores takes the place of one
    if load.length > PLAIN_ATTENTION:
        # cuDNN has a backward kernel; elsewhere MLX computes plain attention again and its gradients.
        matrices = 0 if device == "cuda" else 3
    # The gradient and middle's; d_mixed and its transposed copy; d_value.
    width = 2 * shape.hidden + 2 * shape.queries + shape.keys
    if _own_attention(shape, lora, load, device):
        # d_mixed; d_query, and d_key and d_value in parts.
        keys = shape.keys * shape.heads // shape.queries
        parts = parts_of(tokens, shape.heads, keys)
        matrices, width = 0, 2 * shape.hidden + 2 * shape.queries + 2 * shape.keys * parts
    gone = going * 2 * shape.inner
    more = gone if not _written(shape, lora) else 0
    most = (tokens * width + matrices * attention - more) * shape.itemsize
    if going == tokens:  # fewer tokens are through with their product before there are gradients of all
        most += _plain_group(shape, tokens, device, 1)
    # At the products with q, k and v their gradients are left.
    left = 2 * shape.hidden + shape.queries + 2 * shape.keys
    products = tokens * left * shape.itemsize + _plain_group(shape, tokens, device, 0)
    return max(most, products) + (_mask(shape, load) - gone) * shape.itemsize


def _mask(shape: Shape, load: Load) -> int:
    """Numbers in the attention's mask."""
    return shape.queries // shape.keys * load.length**2 if load.length <= PLAIN_ATTENTION and not load.packed else 0


def _head(shape: Shape, load: Load, device: str, *, back: bool) -> int:
    """Bytes at the output matrix: logits of the counted positions, in float32 for the loss."""
    numbers = load.counted * shape.vocab
    half = numbers * shape.itemsize if shape.itemsize < 4 else 0  # before they become float32, and their gradient
    # The fused loss of a GPU needs the logits and gives their gradient. A CPU has the logits and the shifted ones; on
    # the way back the shifted ones, their softmax and the targets' share.
    matrices = (1 + back) + (device == "cpu")
    rows = load.counted * shape.hidden * shape.itemsize  # chosen states or their gradient
    # At the product itself there are logits or their gradient, and on a CPU a quantized weight's plain one.
    plain = _plain(shape, load.counted, device, (shape.hidden, shape.vocab))
    return max(4 * numbers * matrices + half, 4 * numbers + plain) + rows


def _training(shape: Shape, lora: LoraParams, params: TrainParams, load: Load, device: str) -> Arrays:
    tokens, size = load.rows * load.length, shape.itemsize
    layers = lora.layers  # with states_gb 0, too: nobody asks for gradients below the lowest adapter
    early = _written(shape, lora) and picks_early(load.counted, tokens)
    last = load.counted if early else tokens  # of the last layer, behind its attention
    every, adapters = (0, 0) if _written(shape, lora) else _automatic(shape, lora)
    left = tokens * adapters * size  # until MLX computes the adapters' gradients, which it does last

    def layer(going: int) -> tuple[int, int]:
        """Bytes that a layer keeps, and those that its way back takes beside them."""
        state, masks, rest = _kept(shape, lora, load, device, going)
        rest += tokens * every * size + _dequantized(shape, lora)
        back = max(_mlp_back(shape, lora, load, device, going), _attention_back(shape, lora, load, device, going))
        if params.gradient_checkpointing:
            return state + masks + left, rest + back  # one layer's inner values at a time
        return state + masks + rest, back

    (kept, at_work), (kept_last, last_at_work) = layer(tokens), layer(last)
    head = _head(shape, load, device, back=True) + last * shape.hidden * size  # and the last layer's output
    below, whole = (layers - 1) * kept, (layers - 1) * kept + kept_last
    # At the last layer all is kept; at the one before, what the last kept is gone.
    moments = [(whole, max(head, last_at_work)), (below, at_work if layers > 1 else 0)]
    most, working = max(moments, key=sum)
    # Scaled and split for the layers; while batches are added up, the sum so far.
    adapter = 4 * adapter_size(shape, lora) * (2 + (params.gradient_accumulation > 1))
    return {
        "kept for the way back": most,
        "the layer at work": max(working, _lengths(shape, lora)),
        "adapter's values and gradient": adapter,
    }


def _lengths(shape: Shape, lora: LoraParams) -> int:
    """Bytes while DoRA takes the lengths of a weight's rows, in float32: the sum, its parts and their squares."""
    if lora.adapter != "dora":
        return 0
    return 3 * 4 * max(math.prod(shape.projections[target]) for target in lora.targets)


def _validation(shape: Shape, lora: LoraParams, load: Load, device: str) -> Arrays:
    tokens = load.rows * load.length
    rest = _kept(shape, lora, load, device, tokens)[2]
    # Nothing is kept for a way back, so the head or one layer with SwiGLU's value, its input and output decide.
    layer = rest + (tokens * (shape.inner + 2 * shape.hidden) + _mask(shape, load)) * shape.itemsize
    layer += _plain_layer(shape, tokens, device)
    return {
        "the layer at work": max(_head(shape, load, device, back=False), layer, _lengths(shape, lora)),
        "adapter's values": 4 * adapter_size(shape, lora),
    }


def _frozen_pass(shape: Shape, work: Work, device: str) -> Arrays:
    """The first wave: states of all its batches, weights of this layer and of the next one, a batch at work."""
    states, left, busy, plain = 0, WAVE_TOKENS, 0, 0
    for length, count in work.states:
        rows = rows_of(length)
        taken = min(count, max(1, left // length))
        left -= taken * length
        states += -(-taken // rows) * rows * length  # every batch has all its rows
        tokens, attention = rows * length, rows * shape.heads * length**2 if length <= PLAIN_ATTENTION else 0
        # In the MLP: middle, normed and the output; gate, up and SwiGLU's value. In the attention: the input, normed
        # and the weights; query, key and value, the mixed values and their transposed copy.
        polynomial = _POLYNOMIAL * (device == "cpu" and shape.itemsize == 4)
        mlp = tokens * (3 * shape.hidden + (3 + polynomial) * shape.inner)
        mixing = tokens * (2 * shape.hidden + 3 * shape.queries + 2 * shape.keys) + (1 + polynomial) * attention
        busy = max(busy, mlp, mixing)
        plain = max(plain, _plain_layer(shape, tokens, device))
        if left <= 0:
            break
    return {
        "states": states * shape.hidden * shape.itemsize,
        "weights of two layers": 2 * shape.layer_bytes,
        "the batch at work": busy * shape.itemsize + plain,
    }
