"""The hash of the weights that ran: the same for equal states on every machine, another for any other bit."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from torch import Tensor, nn
from weight_files import Net

from harness.weights import state_sha256


class Holder(nn.Module):
    """A module with one buffer."""

    def __init__(self, value: Tensor, name: str = "value") -> None:
        super().__init__()
        self.register_buffer(name, value)


def hashed(value: Tensor, name: str = "value") -> str:
    return state_sha256(Holder(value, name))


def test_equal_states_have_equal_hashes() -> None:
    torch.manual_seed(0)
    first, second = Net(), Net()
    assert state_sha256(first) != state_sha256(second)
    second.load_state_dict(first.state_dict())
    assert state_sha256(first) == state_sha256(second)
    assert state_sha256(first) == state_sha256(first.to(memory_format=torch.preserve_format).eval())


def test_the_hash_is_the_same_on_every_machine() -> None:
    content = b"value torch.float32 (3,)\n" + struct.pack("<3f", 0, 1, 2)
    assert hashed(torch.arange(3.0)) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_bit_changes_the_hash(dtype: torch.dtype) -> None:
    value = torch.linspace(1, 2, 5).to(dtype)
    bits = value.clone().view(torch.uint8)
    bits[0] ^= 1
    assert hashed(value) != hashed(bits.view(dtype))
    assert hashed(value) == hashed(value.clone())


def test_name_type_and_shape_are_part_of_the_hash() -> None:
    value = torch.zeros(4)
    others = [value.view(2, 2), value.view(1, 4), value.int(), torch.zeros(2, dtype=torch.float64), torch.zeros(0)]
    hashes = [hashed(value), hashed(value, "other"), *map(hashed, others)]
    assert len(set(hashes)) == len(hashes)


def test_layout_is_not_part_of_the_hash() -> None:
    value = torch.rand(2, 3, 4, 4)
    assert hashed(value) == hashed(value.contiguous(memory_format=torch.channels_last))
    assert hashed(value[:, 1]) == hashed(value[:, 1].clone())


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(3),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.zeros(0, 3),
        torch.tensor([1 + 2j]),
        torch.ones(2).to(torch.float8_e4m3fn),
    ],
    ids=lambda value: f"{value.dtype} {tuple(value.shape)}",
)
def test_every_kind_of_tensor_is_hashed(value: Tensor) -> None:
    assert len(hashed(value)) == 64


def test_state_that_is_no_tensor_is_left_out() -> None:
    class Extra(Net):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

        def set_extra_state(self, state: object) -> None: ...

    extra, plain = Extra(), Net()
    extra.load_state_dict(plain.state_dict(), strict=False)
    assert state_sha256(extra) == state_sha256(plain)
