"""FP8 layers: the product and the gradient are those of bf16 within FP8's precision, compiled or not."""

import pytest
import torch
from torch import nn

from qwenvl.model.fp8 import FP8, Fp8Linear, hold_in_fp8, quantize_rows

CPU = torch.device("cpu")


def frozen_linear(bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96, bias=bias, dtype=torch.bfloat16)).requires_grad_(False)


def output_and_gradient(
    module: nn.Module, gradient_size: float = 1.0, rows: int = 40
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    states = torch.randn(1, rows, 64, dtype=torch.bfloat16, requires_grad=True)
    output = module(states)
    output.backward(torch.randn_like(output) * gradient_size)
    return output.detach(), states.grad


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("bias", [False, True])
def test_product_and_gradient_are_those_of_bf16(bias: bool):
    linear = frozen_linear(bias)
    expected = output_and_gradient(linear)
    assert hold_in_fp8(linear, CPU) == 1
    assert linear[0].weight.dtype == FP8
    for found, plain in zip(output_and_gradient(linear), expected, strict=True):
        assert found.shape == plain.shape and found.dtype == torch.bfloat16
        assert 0 < relative_error(found, plain) < 0.05


def test_gradients_far_below_the_smallest_number_of_fp8_are_kept():
    linear = frozen_linear()
    _, expected = output_and_gradient(linear, 1e-7)
    hold_in_fp8(linear, CPU)
    _, found = output_and_gradient(linear, 1e-7)
    assert relative_error(found, expected) < 0.05


def test_each_row_has_its_own_scale_and_rows_of_zeros_stay_zeros():
    rows = torch.stack([torch.full((8,), 1e-6), torch.full((8,), 1e3), torch.zeros(8)])
    values, scale = quantize_rows(rows)
    torch.testing.assert_close(values.float() * scale, rows)


def test_a_compiled_layer_is_one_graph_that_other_lengths_do_not_compile_again():
    linear = frozen_linear()
    hold_in_fp8(linear, CPU)
    plain = {rows: output_and_gradient(linear, rows=rows) for rows in (40, 33, 57)}
    graphs = []

    def count_graphs(graph: torch.fx.GraphModule, inputs: list) -> object:
        graphs.append(graph)
        return graph.forward

    linear[0].compile(backend=count_graphs, dynamic=True, fullgraph=True)
    for rows, (output, gradient) in plain.items():
        found, found_gradient = output_and_gradient(linear, rows=rows)
        assert torch.equal(found, output) and torch.equal(found_gradient, gradient)
    assert len(graphs) == 1


def test_trained_layers_and_layers_of_other_kinds_stay_as_they_are():
    module = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8).requires_grad_(False))
    assert hold_in_fp8(module, CPU) == 1
    assert type(module[0]) is nn.Linear and type(module[1]) is nn.LayerNorm and type(module[2]) is Fp8Linear
