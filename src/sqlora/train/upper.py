"""The base model in two parts: the layers below the lowest adapted one, which training never changes, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from sqlora.mlx import mx, nn, tree_flatten, tree_unflatten

import numpy as np
from mlx_lm.models.base import create_attention_mask
from numpy.typing import NDArray

from sqlora.distributed.group import ALONE, Group
from sqlora.llama import supports
from sqlora.model import load_lazily
from sqlora.prefetch import ask_for, places_of
from sqlora.progress import progress
from sqlora.runtime import has_cuda
from sqlora.train.buckets import bucket_of
from sqlora.train.cuda.kernels import kernels_for
from sqlora.train.interruption import Interrupted
from sqlora.train.layer import Layer
from sqlora.train.states import StateStore, key_of

# Of one wave through the frozen layers, at least: its states are in memory together.
WAVE_TOKENS = 131_072
BATCH_TOKENS = 2_048
# Of the last wave's states, on CUDA: so many bytes are written while the trained layers are read. They lie in memory
# beside those; training's own room (sqlora.plan.prediction) is larger.
_WRITTEN_LATER = 500_000_000

Item = tuple[str, tuple[int, ...]]
"""An example's key and the tokens that go into the model."""


class Upper(nn.Module):
    """The trained part of a model: its top layers, the last norm and the output matrix.

    Args:
        model: loaded lazily; it loses its frozen layers.
        frozen: how many lower layers are left out. With 0 the embedding stays, and inputs are tokens.
    """

    def __init__(self, model: nn.Module, frozen: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        model.model.layers = model.model.layers[frozen:]
        self.model = model
        self.frozen = frozen
        self.checkpointing = False

    @property
    def layers(self) -> list[nn.Module]:
        """The layers that are left; where mlx-lm looks for those to adapt."""
        layers: list[nn.Module] = self.model.model.layers
        return layers

    def load(self, group: Group = ALONE) -> None:
        """Read the weights of this part, and of no other, into memory.

        Args:
            group: ranks that read the files once together: each reads some of the layers and gets the rest as messages.
        """
        parts = [*self.layers, self.model.model.norm]
        if "lm_head" in self.model:
            parts.append(self.model.lm_head)
        if not self.frozen or "lm_head" not in self.model:
            parts.append(self.model.model.embed_tokens)
        mx.async_eval([part.parameters() for part in parts[group.rank : group.rank + 1]])
        for first in range(0, len(parts), group.size):
            # Each has its own on its way to the device before the first message, and the next from the files meanwhile.
            mine, following = first + group.rank, first + group.rank + group.size
            if mine < len(parts):
                _read(parts[mine], parts[following : following + 1])
            if group.size > 1:
                for reader, part in enumerate(parts[first : first + group.size]):
                    _exchange(part, reader, group)

    def states(self, inputs: mx.array) -> mx.array:
        """States (rows, length, width), or tokens (rows, length) if no layer is frozen -> the last layer's output."""
        state = self.model.model.embed_tokens(inputs) if inputs.ndim == 2 else inputs
        for layer in self.layers:
            run = nn.utils.checkpoint(layer) if self.checkpointing else layer
            state = run(state, attention_mask(layer, state, self.model.args))
        return state

    def adapter(self) -> dict[str, Any]:
        """The trainable parameters, as a tree."""
        tree: dict[str, Any] = self.trainable_parameters()  # type: ignore[no-untyped-call]
        return tree

    def logits(self, states: mx.array) -> mx.array:
        """The last layer's output (…, width) -> (…, vocabulary), in float32."""
        head = self.model.lm_head if "lm_head" in self.model else self.model.model.embed_tokens.as_linear
        logits: mx.array = head(self.model.model.norm(states)).astype(mx.float32)
        return logits


def fill_store(
    store: StateStore,
    folder: Path,
    frozen: int,
    examples: Sequence[Sequence[int]],
    buckets: Sequence[int],
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Run the frozen layers over the examples that the store lacks; returns how many these were.

    Two layers' weights are in memory at a time: the one that computes and the next, which is read meanwhile. An
    example's states depend on its own bucket only, not on what else is computed: all batches of a bucket have one
    shape, so a run that was killed and repeated gets the same bits. On CUDA the last states may be on their way to the
    store's files when this returns (StateStore.add).

    Args:
        folder: of the converted model.
        examples: what goes into the model, without the last token.
        buckets: lengths to which batches are padded.
        stop: asked before each batch.

    Raises:
        Interrupted: `stop` said so; what earlier waves gave is stored.
    """
    missing = list({key_of(tokens): tuple(tokens) for tokens in examples if key_of(tokens) not in store}.items())
    if not missing:
        return 0
    missing.sort(key=lambda item: (bucket_of(len(item[1]), buckets), item[0]))
    total = len(missing) * frozen
    with progress("frozen layers", total=total, unit="example-layer") as bar:
        waves = list(_waves(missing, buckets))
        for number, wave in enumerate(waves, 1):
            batches = list(_batches(wave, buckets))
            model, _ = load_lazily(folder)
            states = [embed(model.model.embed_tokens, mx.array(tokens)) for _, tokens in batches]
            mx.eval(states)
            layers, args = model.model.layers, model.args
            del model
            for index in range(frozen):
                layer, layers[index] = layers[index], None  # its weights go when the layer is through
                _read(layer, layers[index + 1 : min(index + 2, frozen)])
                _through(layer, args, states, stop)
                del layer
                bar.update(len(wave))
            done = [(items, states.pop(0)) for items, _ in batches]
            most = _WRITTEN_LATER if number == len(waves) and has_cuda() else 0
            later = [done.pop() for _ in range(_last_of(done, most))][::-1]
            store.add(_rows(done))
            if later:
                store.add(_rows([(items, _numpy(state)) for items, state in later]), later=True)
            del later
            mx.clear_cache()
    return len(missing)


def embed(embedding: nn.Module, tokens: mx.array) -> mx.array:
    """Tokens (…) -> states (…, width)."""
    weight = embedding.weight
    kernels = kernels_for(weight.dtype, weight.shape[1:]) if type(embedding) is nn.Embedding else None
    states: mx.array = kernels.rows(weight, tokens.reshape(-1)) if kernels else embedding(tokens)
    return states.reshape(*tokens.shape, -1)


def _last_of(done: Sequence[tuple[list[Item], mx.array]], most_bytes: int) -> int:
    """How many of the last batches have no more bytes than that together."""
    count = size = 0
    for _, state in reversed(done):
        size += state.nbytes
        if size > most_bytes:
            break
        count += 1
    return count


def _rows(done: list[tuple[list[Item], Any]]) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Each example's states out of the batches, which the list loses as they come."""
    while done:
        items, state = done.pop(0)
        rows = _numpy(state) if isinstance(state, mx.array) else state
        for row, (key, tokens) in enumerate(items):
            yield key, rows[row, : len(tokens)]


def _read(module: nn.Module, following: Sequence[nn.Module]) -> None:
    """Have a module's weights in memory, and begin to read those of the next one."""
    mx.eval(module.parameters())
    places = places_of(weights for _, weights in cast(list[tuple[str, mx.array]], tree_flatten(module.parameters())))
    mx.async_eval([one.parameters() for one in following])  # the driver takes a while, in which a file can be read
    ask_for(places)


def _exchange(module: nn.Module, reader: int, group: Group) -> None:
    """Give every rank the weights that one of them has read."""
    arrays = cast(list[tuple[str, mx.array]], tree_flatten(module.parameters()))
    received = []
    for name, array in arrays:
        received.append((name, group.from_rank(reader, array)))
        mx.async_eval(received[-1][1])  # one by one, so that all ranks have them in one order
    mx.eval([array for _, array in received])  # before the next module's, for all take memory twice until the next line
    module.update(tree_unflatten(received))


def _through(layer: nn.Module, args: Any, states: list[mx.array], stop: Callable[[], bool]) -> None:
    """Replace each batch's states (rows, length, width) by those behind the layer."""
    window = args.sliding_window if getattr(layer, "use_sliding", False) else None
    written = Layer(layer) if supports([layer]) else None
    for number, state in enumerate(states):
        if stop():
            raise Interrupted
        if written:
            rows, length, width = state.shape
            frame = written.frame((rows, length), state.dtype, window)
            states[number] = written.forward(state.reshape(-1, width), frame, {})[0].reshape(state.shape)
        else:
            states[number] = layer(state, attention_mask(layer, state, args))
        # One batch is computed while the next is prepared; more at once would take more memory.
        mx.async_eval(states[number])
        if number:
            mx.eval(states[number - 1])
    mx.eval(states)


def attention_mask(layer: nn.Module, state: mx.array, args: Any) -> Any:
    """Causal, and within the window where the layer has one."""
    window = args.sliding_window if getattr(layer, "use_sliding", False) else None
    return create_attention_mask(state, None, window_size=window)


def state_dtype(config: dict[str, Any]) -> str:
    """numpy's name for the type in which a model's states are kept."""
    return {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}[config["torch_dtype"]]


def _numpy(state: mx.array) -> NDArray[np.generic]:
    return np.asarray(state.view(mx.uint16) if state.dtype == mx.bfloat16 else state)


def rows_of(length: int) -> int:
    """Of a batch of that length in the frozen layers, however many examples it has."""
    return max(1, BATCH_TOKENS // length)


def _waves(items: list[Item], buckets: Sequence[int]) -> Iterator[list[Item]]:
    wave: list[Item] = []
    tokens = 0
    for item in items:
        length = bucket_of(len(item[1]), buckets)
        if wave and tokens + length > WAVE_TOKENS:
            yield wave
            wave, tokens = [], 0
        wave.append(item)
        tokens += length
    yield wave


def _batches(wave: list[Item], buckets: Sequence[int]) -> Iterator[tuple[list[Item], NDArray[np.int32]]]:
    by_bucket: dict[int, list[Item]] = {}
    for item in wave:
        by_bucket.setdefault(bucket_of(len(item[1]), buckets), []).append(item)
    for length, items in by_bucket.items():
        rows = rows_of(length)
        for start in range(0, len(items), rows):
            chosen = items[start : start + rows]
            tokens = np.zeros((rows, length), dtype=np.int32)  # always this shape, whatever is left
            for row, (_, example) in enumerate(chosen):
                tokens[row, : len(example)] = example
            yield chosen, tokens
