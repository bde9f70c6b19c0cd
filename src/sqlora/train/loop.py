"""The training loop: completion-only loss, Adam, validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from sqlora.mlx import mx, nn, optimizers

from sqlora.errors import SqloraError
from sqlora.memory import peak_memory
from sqlora.params.train import TrainParams
from sqlora.progress import progress
from sqlora.tokenizer import Encoded
from sqlora.train.batches import Batch, batch_indices, make_batch


@dataclass(frozen=True)
class Report:
    """A row of loss.csv. Losses are means per counted token, in nats; valid_loss is None between validations."""

    iteration: int
    train_loss: float | None
    valid_loss: float | None
    tokens_per_second: float | None
    peak_memory_gb: float

    def row(self) -> dict[str, object]:
        """For csv.DictWriter."""
        return {name: "" if value is None else value for name, value in asdict(self).items()}


def train_adapter(
    model: nn.Module, train: Sequence[Encoded], valid: Sequence[Encoded], params: TrainParams
) -> list[Report]:
    """Train the model's trainable parameters in place.

    Returns:
        The reports, the first of them (iteration 0) a validation before training.

    Raises:
        SqloraError: if the loss is not finite.
    """
    step = make_step(model, params)
    lengths = [len(example.tokens) for example in train]
    validate = partial(validation_loss, model, valid, params.batch_size)
    reports = [Report(0, None, validate(), None, peak_memory())]
    losses, tokens, seconds = [], 0, 0.0
    with progress("train", total=params.iterations, unit="step") as bar:
        for iteration in range(1, params.iterations + 1):
            started = time.perf_counter()
            chosen = batch_indices(iteration - 1, lengths, params.batch_size, params.seed)
            batch = make_batch([train[index] for index in chosen])
            # Dropout is a function of seed and step, like the order, so that a resumed run repeats it.
            mx.random.seed(params.seed * 1_000_003 + iteration)
            losses.append((step(batch), len(batch.targets)))
            if not math.isfinite(losses[-1][0]):
                raise SqloraError(
                    "params.yaml",
                    found=f"a loss of {losses[-1][0]} at iteration {iteration}, training examples {chosen}",
                    expected="a finite loss",
                    next_step="Lower train.learning_rate or lora.scale; with float16, try convert.dtype bfloat16.",
                )
            tokens += batch.real_tokens
            seconds += time.perf_counter() - started
            last = iteration == params.iterations
            valid_loss = validate() if last or iteration % params.validate_every == 0 else None
            if last or valid_loss is not None or iteration % params.report_every == 0:
                mean = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
                reports.append(Report(iteration, round(mean, 4), valid_loss, round(tokens / seconds, 1), peak_memory()))
                bar.set_postfix_str(f"loss {mean:.3f}, {tokens / seconds:.0f} tokens/s, {peak_memory():.2f} GB")
                losses, tokens, seconds = [], 0, 0.0
            bar.update()
    return reports


def validation_loss(model: nn.Module, examples: Sequence[Encoded], batch_size: int) -> float:
    """Mean loss per counted token over all examples; leaves the model in training mode if it was."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    order = sorted(examples, key=lambda example: len(example.tokens))
    for start in range(0, len(order), batch_size):
        batch = make_batch(order[start : start + batch_size])
        total += _number(completion_loss(model, batch)) * len(batch.targets)
        count += len(batch.targets)
    model.train(training)
    if not math.isfinite(total):
        raise SqloraError(
            "validation",
            found=f"a loss of {total}",
            expected="a finite loss",
            next_step="Lower train.learning_rate or lora.scale; with float16, try convert.dtype bfloat16.",
        )
    return round(total / count, 4)


def completion_loss(model: nn.Module, batch: Batch) -> mx.array:
    """Mean cross-entropy of the counted tokens; logits are computed for these positions only."""
    hidden = model.model(mx.array(batch.inputs))
    counted = hidden.reshape(-1, hidden.shape[-1])[mx.array(batch.positions)]
    # A model whose embeddings are tied has no output matrix of its own.
    head = model.model.embed_tokens.as_linear if model.args.tie_word_embeddings else model.lm_head
    logits = head(counted).astype(mx.float32)
    return nn.losses.cross_entropy(logits, mx.array(batch.targets), reduction="mean")


def make_step(model: nn.Module, params: TrainParams) -> Callable[[Batch], float]:
    optimizer = optimizers.Adam(learning_rate=params.learning_rate)
    loss_and_gradients = nn.value_and_grad(model, completion_loss)
    model.train()

    def step(batch: Batch) -> float:
        loss, gradients = loss_and_gradients(model, batch)
        optimizer.update(model, gradients)
        mx.eval(loss, model.trainable_parameters(), optimizer.state)
        return _number(loss)

    return step


def _number(value: mx.array) -> float:
    number = value.item()
    assert isinstance(number, float)
    return number
