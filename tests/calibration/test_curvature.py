"""Traces of the Gauss-Newton matrix, against what they estimate."""

import pytest
import torch
from small_programs import CHANNELS, SIZE, grouped, traced
from torch import nn
from torch.func import functional_call, jacrev

from dmq_fx.calibration.curvature import Traces
from dmq_fx.errors import CalibrationError
from dmq_fx.recipe.language import WeightSpec


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 2, 1)

    def forward(self, sample, timestep):
        return self.second(torch.tanh(self.first(sample))) * (1 + timestep // 1000).reshape(-1, 1, 1, 1)


class Same:
    """The same two rows in every minibatch."""

    def __init__(self, value=1.0):
        sample = torch.randn(2, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * value
        self.arguments = (sample, torch.tensor([1, 2]))

    def draw(self, iteration):
        return self.arguments


@pytest.fixture(scope="module")
def program():
    return grouped(traced(Net()), (WeightSpec(bits=4), None))


def weights(program):
    return [planned.site.weight for planned in program.plan.sites]


def test_probes_average_to_the_trace(program):
    """2 / d tr(JᵀJ) of the loss |e - e*|² / d, mean over the rows, from the whole Jacobian."""
    module, arguments = program.traced.graph_module, Same().arguments
    exact = []
    for name in weights(program):

        def output(weight, name=name):
            found = functional_call(module, {name: weight}, arguments)
            return (found[0] if isinstance(found, (tuple, list)) else found).flatten()

        weight = module.get_parameter(name).detach()
        jacobian = jacrev(output)(weight).detach().flatten(1)
        exact.append(float(jacobian.square().sum()) * 2 / len(jacobian))
    traces = Traces(program, weights(program), Same(), seed=0)
    for _ in range(300):
        traces.probe()
    assert traces.mean().tolist() == pytest.approx(exact, rel=0.1)
    spread = traces.relative_error()
    assert ((traces.mean() / torch.tensor(exact, dtype=torch.float64) - 1).abs() < 5 * spread).all()


def test_the_gauss_newton_matrix_is_the_hessian_at_full_precision(program):
    """The second derivative of the loss along its weights, where the prediction is its own target."""
    module, arguments = program.traced.graph_module, Same().arguments
    name = weights(program)[0]
    weight = module.get_parameter(name).detach().double()
    tensors = {key: value.detach().double() for key, value in module.named_parameters()}
    rows = (arguments[0].double(), arguments[1])

    def predict(value):
        found = functional_call(module, tensors | {name: value}, rows)
        return found[0] if isinstance(found, (tuple, list)) else found

    target = predict(weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, along = torch.autograd.functional.vhp(lambda value: (predict(value) - target).square().mean(), weight, direction)
    _, forward = torch.autograd.functional.jvp(predict, weight, direction)
    assert float((along * direction).sum()) == pytest.approx(2 * float(forward.square().mean()), rel=1e-9)


def test_probes_depend_on_their_number_alone(program):
    one, two = (Traces(program, weights(program), Same(), seed=3) for _ in range(2))
    one.probe()
    one.probe()
    two.done = 1
    two.probe()
    first = Traces(program, weights(program), Same(), seed=3)
    first.probe()
    torch.testing.assert_close(first.sums + two.sums, one.sums, rtol=1e-12, atol=0.0)
    assert all(p.grad is None for p in program.traced.graph_module.parameters())


def test_a_gradient_that_is_not_finite_is_named(program):
    with pytest.raises(CalibrationError, match="the gradient of this weight is not finite") as error:
        Traces(program, weights(program), Same(torch.inf), seed=0).probe()
    assert error.value.where == weights(program)[0]
