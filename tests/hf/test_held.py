"""What decides a model's results: plain parameters as they are, other tensors by their parts, and refusals by name."""

import pytest
import torch

import geosparse as gs
from geosparse.hf.held import held, is_plain
from geosparse.hf.identity import weight_fingerprint

from ..tiny import EXTRA, tiny_model


def names(model):
    return [name for name, _ in held(model)]


@pytest.mark.parametrize("kind", sorted(EXTRA))
def test_of_a_plain_model_the_parameters_count(kind):
    model = tiny_model(kind, tie_word_embeddings=True)
    expected = sorted(model.named_parameters())
    assert names(model) == [name for name, _ in expected]
    assert all(value.data_ptr() == part.data_ptr() for (_, value), (_, part) in zip(held(model), expected, strict=True))
    assert all(map(is_plain, model.modules()))


# A plan file holds its model's fingerprint: it has to stay what it is. The values are those of torch's CPU generator.
KNOWN = {"llama": "6a5476b7dd3cc9e2", "gemma2": "c9031e0f684d80e6", "qwen3": "1e3780913b67e88e"}


@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_fingerprints_of_plain_models_stay(kind):
    assert weight_fingerprint(tiny_model(kind)) == KNOWN[kind]


class Wrapper(torch.Tensor):
    """A tensor without memory of its own that implements nothing."""

    @staticmethod
    def __new__(cls, codes):
        made = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes = codes
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes)
        raise NotImplementedError(function)


class Flat(Wrapper):
    """The same, with its parts told."""

    def __tensor_flatten__(self):
        return ["codes"], None


class Told(Wrapper):
    """The same, with its values told."""

    def dequantize(self):
        return self.codes.float()


class Stored(torch.Tensor):
    """A tensor with memory whose class answers nothing."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ in ("__get__", "detach", "requires_grad_"):
            return super().__torch_function__(function, types, args, kwargs or {})
        raise NotImplementedError(function)


def holding(tensor):
    module = torch.nn.Linear(4, 4, bias=False)
    module._parameters["weight"] = tensor
    return torch.nn.Sequential(torch.nn.Linear(4, 4), module)


def codes(shift=0):
    return (torch.arange(16).reshape(4, 4) + shift).to(torch.int8)


@pytest.mark.parametrize("kind", [Flat, Told])
def test_tensors_without_memory_are_read_by_their_parts_or_values(kind):
    torch.manual_seed(0)
    first, again, other = (holding(kind(codes(shift))) for shift in (0, 0, 1))
    again[0] = other[0] = first[0]
    assert weight_fingerprint(first) == weight_fingerprint(again) != weight_fingerprint(other)


def test_tensors_with_memory_are_read_whatever_their_class():
    values = torch.randn(4, 4)
    first, again, other = (
        holding(torch.Tensor._make_subclass(Stored, each)) for each in (values, values.clone(), -values)
    )
    again[0] = other[0] = first[0]
    assert weight_fingerprint(first) == weight_fingerprint(again) != weight_fingerprint(other)


def test_a_class_that_tells_nothing_is_refused_by_name():
    with pytest.raises(gs.GeosparseError, match=r"1\.weight cannot be read: .*Wrapper") as caught:
        weight_fingerprint(holding(Wrapper(codes())))
    assert str(caught.value).count(". ") == 0


def test_weights_on_meta_are_refused_by_name():
    with pytest.raises(gs.GeosparseError, match=r"0\.weight are on the meta device"):
        weight_fingerprint(torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False, device="meta")))


def test_codes_in_buffers_and_attributes_count_and_positions_do_not():
    class Codes(torch.nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.register_buffer("qweight", torch.arange(8, dtype=torch.int32) * 2**20 + shift)
            self.packed = codes(shift)

    class Positions(torch.nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.register_buffer("positions", torch.arange(8) + shift)
            self.register_buffer("codes", codes(shift), persistent=False)
            self.frequencies = torch.arange(8.0) + shift

    assert names(Codes(0)) == ["packed", "qweight"]
    # One in 2**20: whole words count, not their leading bits.
    assert weight_fingerprint(Codes(0)) != weight_fingerprint(Codes(1))
    assert names(Positions(0)) == []


def test_weights_that_are_a_buffer_count():
    module = torch.nn.Linear(4, 4, bias=False)
    weight = module._parameters.pop("weight")
    module.register_buffer("weight", weight.detach())
    assert names(module) == ["weight"]
