"""Greedy batched decoding that stops at EOS, with mlx-lm's continuous batching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlora.mlx import nn

from mlx_lm.generate import BatchGenerator

from sqlora.params.generate import GenerateParams
from sqlora.progress import progress
from sqlora.tokenizer import Tokenizer


@dataclass(frozen=True)
class Completion:
    """completion: the text without EOS; stopped: whether EOS ended it, rather than max_tokens; tokens: without EOS."""

    completion: str
    stopped: bool
    tokens: int


def generate(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[str], params: GenerateParams, *, label: str = "generate"
) -> list[Completion]:
    """Complete every prompt with the likeliest token at each step until EOS or `params.max_tokens`.

    Returns:
        In the order of the prompts.
    """
    encoded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    # Prompts of like length are processed together with little padding; rows that finish make room for the next.
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    generator = BatchGenerator(
        model,
        max_tokens=params.max_tokens,
        stop_tokens=[[tokenizer.eos]],
        completion_batch_size=params.batch_size,
        prefill_batch_size=params.batch_size,
    )
    index_of = dict(zip(generator.insert([encoded[index] for index in order]), order, strict=True))
    tokens: list[list[int]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)
    with progress(label, total=len(prompts), unit="question") as bar:
        while responses := generator.next_generated():
            for response in responses:
                index = index_of[response.uid]
                if response.finish_reason == "stop":
                    stopped[index] = True
                else:
                    tokens[index].append(response.token)
                if response.finish_reason:
                    bar.update()
    generator.close()
    return [Completion(tokenizer.decode(ids), stop, len(ids)) for ids, stop in zip(tokens, stopped, strict=True)]
