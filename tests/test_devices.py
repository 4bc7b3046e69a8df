"""The simulated accelerator computes as the CPU does and errs where a real device would."""

import copy

import pytest
import torch
from torch import nn

from dojo.compare import Mismatch, assert_same
from dojo.devices import no_strays, on


def test_values_and_gradients_are_the_cpus():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU()), torch.randn(5, 4)
    wanted = model(x)
    wanted.sum().backward()
    gradient = model[0].weight.grad.clone()
    with on("sim"):
        moved = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU())
        moved.load_state_dict(model.state_dict())
        moved.to("sim")
        found = moved(x.to("sim"))
        found.sum().backward()
        assert found.device.type == "sim"
        assert_same(found, wanted.detach(), device=False)
        assert_same(moved[0].weight.grad, gradient, device=False, atol=1e-5)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: torch.where(torch.tensor([True, False, True]), x, x),
        lambda x: x.masked_fill(torch.tensor([True, False, True]), 0.0),
        lambda x: x @ torch.ones(3, 3),
    ],
)
def test_tensors_of_two_devices_do_not_mix(mix):
    with on("sim"):
        x = torch.ones(3, device="sim")
        with pytest.raises(RuntimeError, match="same device"):
            mix(x)


def test_a_number_without_dimensions_may_meet_any_device():
    with on("sim"):
        assert (torch.ones(3, device="sim") * torch.tensor(2.0)).device.type == "sim"


def test_index_tensors_may_be_on_the_cpu_but_count_as_strays():
    with on("sim"):
        x = torch.ones(3, 2, device="sim")
        assert x[torch.tensor([0, 2])].device.type == "sim"
        with pytest.raises(Mismatch), no_strays():
            x[torch.arange(2)]


def test_a_move_to_the_cpu_on_the_way_counts_as_a_stray():
    with on("sim"):
        x = torch.ones(3, device="sim")
        with pytest.raises(Mismatch), no_strays():
            x.cpu().cumsum(0).to("sim")


def test_new_tensors_on_the_device_are_no_strays():
    with on("sim"):
        x = torch.ones(3, device="sim")
        with no_strays():
            x + torch.arange(3, device=x.device) + x.new_zeros(3) + torch.zeros_like(x) + torch.tensor(1.0)


def test_views_and_writes_through_them_behave_as_on_a_device():
    with on("sim"):
        x = torch.zeros(4, device="sim")
        x[1:3].fill_(1.0)
        assert x.tolist() == [0, 1, 1, 0]


def test_deep_copies_of_modules_stay_on_the_simulated_device():
    with on("sim"):
        layer = nn.Linear(3, 2).to("sim")
        layer(torch.ones(1, 3, device="sim")).sum().backward()
        with no_strays():
            twin = copy.deepcopy(nn.ModuleList([layer, layer]))
        assert twin[0] is twin[1]
        assert isinstance(twin[0].weight, nn.Parameter) and twin[0].weight.requires_grad
        assert twin[0].weight is not layer.weight and twin[0].weight.grad is not layer.weight.grad
        assert torch.equal(twin[0].weight.cpu(), layer.weight.cpu())
        assert torch.equal(twin[0].weight.grad.cpu(), layer.weight.grad.cpu())


def test_fork_rng_works_beside_the_simulated_device():
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_torch_that_cannot_simulate_a_device_skips_the_spec_and_says_so(monkeypatch):
    monkeypatch.setattr("dojo.devices.CAN_SIMULATE", False)
    with pytest.raises(pytest.skip.Exception, match=r"torch before 2.10 cannot simulate a device"), on("sim"):
        pass


def test_inference_mode_works_as_on_the_cpu():
    with on("sim"):
        x = torch.ones(3, 2, device="sim")
        with torch.inference_mode():
            assert_same(x[:, None] @ x.detach().T, torch.full((3, 1, 3), 2.0), device=False)
