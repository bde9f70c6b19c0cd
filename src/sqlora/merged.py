"""Projections that read the same input, as one product; a GPU takes a product of two matrices as fast as of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlora.mlx import mx, nn

from mlx_lm.tuner.lora import LoRALinear

# Of a quantized weight, of MLX's affine kind: group_size and bits.
Kind = tuple[int, int] | None


@dataclass(frozen=True)
class Merged:
    """weights: by name, as `product` takes them: `weight` (outputs, inputs), of a quantized one its `scales` and maybe
    `biases`, of LoRA `a` (inputs, rank) and `b` (rank, outputs), which holds the scale; kind: None where it is plain.
    """

    weights: dict[str, mx.array]
    kind: Kind


def can_merge(modules: Sequence[nn.Module]) -> bool:
    """Whether modules, linear ones without bias or these in LoRA layers, are of one kind."""
    bases = [_base(module) for module in modules]
    if any(isinstance(base, nn.QuantizedLinear) and base.mode != "affine" for base in bases):
        return False
    return len({(_kind(base), "biases" in base, _parts(base)["weight"].dtype) for base in bases}) == 1


def merge(modules: Sequence[nn.Module], *, adapters: bool = True) -> Merged:
    """One product for all, whose outputs lie side by side in the modules' order.

    The modules' own weights become views of the merged ones, so that all are in memory once.

    Args:
        adapters: whether LoRA is part of the product.
    """
    bases = [_base(module) for module in modules]
    weights = dict(_parts(bases[0]))
    if len(bases) > 1:
        for name in weights:
            weights[name] = mx.concatenate([base[name] for base in bases])
            mx.eval(weights[name])
            start = 0
            for base in bases:
                count = base[name].shape[0]
                base[name] = weights[name][start : start + count]
                start += count
            mx.eval([base[name] for base in bases])
    dtype = weights["scales" if "scales" in weights else "weight"].dtype
    adapted = [module for module in modules if isinstance(module, LoRALinear)]
    if adapters and adapted:
        weights["a"] = mx.concatenate([module.lora_a for module in adapted], axis=1).astype(dtype)
        ranks = sum(module.lora_a.shape[1] for module in adapted)
        columns, done = [], 0
        for module, base in zip(modules, bases, strict=True):
            outputs = base.weight.shape[0]
            if isinstance(module, LoRALinear):
                rank = module.lora_b.shape[0]
                parts = [
                    mx.zeros((done, outputs)),
                    module.lora_b * module.scale,
                    mx.zeros((ranks - done - rank, outputs)),
                ]
                columns.append(mx.concatenate(parts))
                done += rank
            else:
                columns.append(mx.zeros((ranks, outputs)))
        weights["b"] = mx.concatenate(columns, axis=1).astype(dtype)
        mx.eval(weights["a"], weights["b"])
    return Merged(weights, _kind(bases[0]))


def product(inputs: mx.array, weights: dict[str, mx.array], kind: Kind, add: mx.array | None = None) -> mx.array:
    """(count, inputs) -> (count, outputs), plus `add`."""
    result = _product(inputs, weights, kind, add, transpose=True)
    return mx.addmm(result, inputs @ weights["a"], weights["b"]) if "a" in weights else result


def product_back(gradient: mx.array, weights: dict[str, mx.array], kind: Kind) -> mx.array:
    """(count, outputs) -> (count, inputs): the gradient of `product`'s inputs, without the part of LoRA."""
    return _product(gradient, weights, kind, None, transpose=False)


def _product(
    inputs: mx.array, weights: dict[str, mx.array], kind: Kind, add: mx.array | None, *, transpose: bool
) -> mx.array:
    if kind is not None:
        group_size, bits = kind
        result = mx.quantized_matmul(
            inputs,
            weights["weight"],
            scales=weights["scales"],
            biases=weights.get("biases"),
            transpose=transpose,
            group_size=group_size,
            bits=bits,
        )
        return result if add is None else result + add
    weight = weights["weight"].T if transpose else weights["weight"]
    return inputs @ weight if add is None else mx.addmm(add, inputs, weight)


def _base(module: nn.Module) -> nn.Module:
    return module.linear if isinstance(module, LoRALinear) else module


def _kind(base: nn.Module) -> Kind:
    return (base.group_size, base.bits) if isinstance(base, nn.QuantizedLinear) else None


def _parts(base: nn.Module) -> dict[str, mx.array]:
    names = ("weight", "scales", "biases") if isinstance(base, nn.QuantizedLinear) else ("weight",)
    return {name: base[name] for name in names if name in base}
