"""The products with a frozen weight, plain or quantized, and the way back through them."""

from __future__ import annotations

from sqlora.mlx import mx, nn


def product(inputs: mx.array, linear: nn.Module, add: mx.array | None = None) -> mx.array:
    """inputs @ weight.T + add, for a plain or quantized weight."""
    if isinstance(linear, nn.QuantizedLinear):
        return _plus(_quantized(inputs, linear, transpose=True), add)
    return inputs @ linear.weight.T if add is None else mx.addmm(add, inputs, linear.weight.T)


def product_back(gradient: mx.array, linear: nn.Module, add: mx.array | None = None) -> mx.array:
    """gradient @ weight + add: the gradient with respect to `product`'s inputs."""
    if isinstance(linear, nn.QuantizedLinear):
        return _plus(_quantized(gradient, linear, transpose=False), add)
    return gradient @ linear.weight if add is None else mx.addmm(add, gradient, linear.weight)


def _quantized(inputs: mx.array, linear: nn.QuantizedLinear, *, transpose: bool) -> mx.array:
    return mx.quantized_matmul(
        inputs,
        linear.weight,
        scales=linear.scales,
        biases=linear.get("biases"),
        transpose=transpose,
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    )


def _plus(value: mx.array, add: mx.array | None) -> mx.array:
    return value if add is None else add + value
