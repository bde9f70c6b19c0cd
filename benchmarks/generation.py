"""Decoding beside mlx_lm's, on the same model, questions and machine, with answers of the reference's length.

    python benchmarks/generation.py --prepare TOKENS.json --wikisql FOLDER [--tokenizer tokenizer.model]
    python benchmarks/generation.py --model FOLDER --tokens TOKENS.json [--systems ours,batch,one]

The first command draws questions of WikiSQL's test part and keeps those whose reference answer the grammar admits, with
the tokenizer itself, so that the second one needs neither the pipeline's artifacts nor the tokenizer's package. Without
--tokenizer it takes Mistral's, from mistral-common.

--workers N runs ours as N ranks. The system `written` lets the model write, at most 60 tokens, and says how many of the
answers are those that --answers FILE holds, or writes that file: so two runs are compared.

The model may be random (benchmarks/training.py makes one of Mistral-7B's shape): ours computes logits, masks and the
likeliest token as ever, and then takes the reference's; mlx_lm writes as many tokens as the reference's answer has, EOS
included. Each system runs all questions twice, and the second time counts: a GPU prepares itself for new shapes in the
first.

ours: constrained by the schema, forced tokens skipped. none: ours without constraint. batch: mlx_lm's batch_generate
with the same batch size. one: mlx_lm's generate, a question at a time, over fewer questions.
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, nn

from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.utils import load_model

from sqlora.distributed.group import Group
from sqlora.distributed.launch import launched
from sqlora.distributed.rank import joined
from sqlora.generate.choose import Counts
from sqlora.generate.forward import Forward, make_forward
from sqlora.generate.run import generate
from sqlora.memory import peak_memory
from sqlora.params.generate import GenerateParams
from sqlora.text import Example
from sqlora.tokenizer import Tokenizer
from sqlora.wikisql.form import LogicalForm

SYSTEMS = "ours,none,batch,one"


@dataclass(frozen=True)
class Task:
    """The model for decoding, and the questions with their prompts and reference answers (without EOS) in tokens."""

    forward: Forward
    tokenizer: Tokenizer
    questions: list[Example]
    prompts: list[list[int]]
    answers: list[list[int]]


def main() -> None:
    """Prepare the tokens, or run the systems and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="TOKENS.json")
    parser.add_argument("--wikisql", type=Path, help="folder in the official layout")
    parser.add_argument("--tokenizer", type=Path, help="a sentencepiece model")
    parser.add_argument("--count", type=int, default=512, help="of questions (512)")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--systems", default=SYSTEMS)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--one-count", type=int, default=16, help="questions for `one` (16)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--answers", type=Path, help="JSON, for the system `written`")
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.prepare, arguments.wikisql, arguments.tokenizer, arguments.count)
        return
    if not launched(arguments.workers, None, "auto"):
        with joined() as group:
            run(arguments, group)


def run(arguments: argparse.Namespace, group: Group) -> None:
    """Run the systems; the first rank prints."""
    model, _ = load_model(arguments.model)
    if arguments.adapter:
        from sqlora.model import add_adapter

        add_adapter(model, arguments.adapter)
    model.eval()
    mx.eval(model.parameters())
    with tempfile.TemporaryDirectory() as scratch:
        task = read_task(make_forward(model), arguments.tokens, Path(scratch), arguments.count)
        tokens = sum(len(answer) + 1 for answer in task.answers) / len(task.answers)
        print(
            f"{len(task.prompts)} questions, {tokens:.1f} tokens an answer with EOS, batch size {arguments.batch_size}"
        )
        systems = arguments.systems.split(",")
        rates = {system: measure(system, model, task, arguments, group) for system in systems}
    for system, rate in rates.items():
        if system != "ours" and "ours" in rates:
            print(f"ours / {system}: {rates['ours'] / rate:.2f}")


def measure(system: str, model: nn.Module, task: Task, arguments: argparse.Namespace, group: Group) -> float:
    """Run a system several times and print the figures of each; returns the last time's questions a second."""
    rate = 0.0
    for number in range(1, arguments.rounds + 1):
        mx.reset_peak_memory()
        group.barrier()
        started = time.perf_counter()
        count, figures = RUNS[system](model, task, arguments, group)
        seconds = time.perf_counter() - started
        rate = count / seconds
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(
            f"{system:<6} run {number}: {rate:.2f} questions/s, {seconds:.2f} s, peak {peak_memory():.2f} GB  {shown}"
        )
    return rate


def ours(
    model: nn.Module, task: Task, arguments: argparse.Namespace, group: Group, constrain: str = "schema"
) -> tuple[int, Any]:
    """The generate stage's engine."""
    counts = Counts()
    params = GenerateParams(arguments.batch_size, 200, constrain, None, 1, None, "auto")
    done = generate(
        task.forward, task.tokenizer, task.questions, params, teacher=task.answers, counts=counts, group=group
    )
    wrong = sum(one.tokens != len(answer) for one, answer in zip(done, task.answers, strict=True))
    total = len(done)
    constraints = counts.grammars + counts.masks + counts.matching
    return total, {
        "wrong lengths": wrong,
        "tokens an answer": sum(one.tokens + 1 for one in done) / total,
        "decisions an answer": sum(group.each(counts.decisions)) / total,
        "steps": counts.steps,
        "prompts s": counts.prompts,
        "decoding s": counts.decoding,
        "grammars s": counts.grammars,
        "masks s (while the device computes)": counts.masks,
        "matching s": counts.matching,
        "waiting s": counts.waiting,
        "constraints' share of decoding": constraints / counts.decoding,
    }


def none(model: nn.Module, task: Task, arguments: argparse.Namespace, group: Group) -> tuple[int, Any]:
    """The same without constraint."""
    return ours(model, task, arguments, group, "none")


def written(model: nn.Module, task: Task, arguments: argparse.Namespace, group: Group) -> tuple[int, Any]:
    """What the model itself writes, under the constraint; the same answers as those in a file?"""
    params = GenerateParams(arguments.batch_size, 60, "schema", None, 1, None, "auto")
    done = [one.completion for one in generate(task.forward, task.tokenizer, task.questions, params, group=group)]
    if group.rank == 0 and not arguments.answers.exists():
        arguments.answers.write_text(json.dumps(done))
    group.barrier()
    before = json.loads(arguments.answers.read_text())
    return len(done), {"the same as in the file": sum(one == other for one, other in zip(done, before, strict=True))}


def batch(model: nn.Module, task: Task, arguments: argparse.Namespace, group: Group) -> tuple[int, Any]:
    """What mlx_lm.batch_generate does, without turning tokens into text."""
    size = arguments.batch_size
    generator = BatchGenerator(model, stop_tokens=[], completion_batch_size=size, prefill_batch_size=size)
    generator.insert(task.prompts, [len(answer) + 1 for answer in task.answers])
    tokens = steps = 0
    while responses := generator.next_generated():
        tokens += len(responses)
        steps += 1
    generator.close()
    return len(task.prompts), {"tokens an answer": tokens / len(task.prompts), "steps": steps}


def one(model: nn.Module, task: Task, arguments: argparse.Namespace, group: Group) -> tuple[int, Any]:
    """What mlx_lm.generate does, without turning tokens into text."""
    stride = max(1, len(task.prompts) // arguments.one_count)
    chosen = range(0, len(task.prompts), stride)[: arguments.one_count]
    tokens = 0
    for index in chosen:
        for _ in generate_step(mx.array(task.prompts[index]), model, max_tokens=len(task.answers[index]) + 1):
            tokens += 1
    return len(chosen), {"tokens an answer": tokens / len(chosen)}


RUNS: dict[str, Callable[..., tuple[int, dict[str, float]]]] = {
    "ours": ours,
    "none": none,
    "batch": batch,
    "one": one,
    "written": written,
}


def read_task(forward: Forward, path: Path, scratch: Path, count: int) -> Task:
    """Read what `prepare` wrote."""
    data = json.loads(path.read_text())
    (scratch / "tokenizer.model").write_bytes(base64.b64decode(data["tokenizer"]))
    rows = data["rows"][:count]
    questions = [
        Example(row["table_id"], row["question"], tuple(row["header"]), tuple(row["types"]), LogicalForm(0, 0, ()))
        for row in rows
    ]
    return Task(
        forward, Tokenizer(scratch), questions, [row["prompt"] for row in rows], [row["answer"] for row in rows]
    )


def prepare(target: Path, wikisql: Path, tokenizer_file: Path | None, count: int) -> None:
    """Write the questions, their tokens and the tokenizer."""
    from concurrent.futures import ThreadPoolExecutor

    from mistral_tokenizer import tokenizer_model

    from sqlora.generate.constraint import Constraint
    from sqlora.generate.vocabulary import make_vocabulary
    from sqlora.params.split import SplitParams
    from sqlora.split.draw import draw_split

    model = tokenizer_model(tokenizer_file)
    params = SplitParams(1, 1, count + count // 8, "tables", False, 1)
    examples = draw_split(wikisql, params).examples["test"]
    rows: list[dict[str, Any]] = []
    rejected = 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as workers:
        (Path(scratch) / "tokenizer.model").write_bytes(model)
        tokenizer = Tokenizer(Path(scratch))
        vocabulary = make_vocabulary(tokenizer, 32000)
        for example in examples:
            encoded = tokenizer.encode_example(example.prompt, example.completion)
            answer = list(encoded.tokens[encoded.prompt_tokens : -1])
            if not admits(Constraint(vocabulary, example, None, workers), answer):
                rejected += 1
                continue
            names = ("table_id", "question", "header", "types")
            row = {name: getattr(example, name) for name in names}
            rows.append(row | {"prompt": encoded.tokens[: encoded.prompt_tokens], "answer": answer})
    encoded_tokenizer = base64.b64encode(model).decode()
    target.write_text(json.dumps({"tokenizer": encoded_tokenizer, "rows": rows[:count]}))
    print(f"{len(rows[:count])} questions; of {len(examples)} drawn the grammar rejects {rejected}")


def admits(constraint: Any, answer: list[int]) -> bool:
    """Whether decoding can write exactly these tokens, those that it forces included."""
    written: list[int] = []
    while True:
        constraint.start()
        written += constraint.forced(len(answer) + 1)
        if written != answer[: len(written)]:
            return False
        constraint.start()
        if len(written) == len(answer):
            return bool(constraint.accepts())
        try:
            constraint.take(answer[len(written)])
        except ValueError:
            return False
        written.append(answer[len(written)])


if __name__ == "__main__":
    main()
