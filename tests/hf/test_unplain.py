"""Models that are quantized, adapted or parametrized: the same promises as for plain ones, kind by kind."""

import copy

import pytest
import torch

import geosparse as gs
from geosparse.hf.adapters import inner_model
from geosparse.hf.identity import identify, weight_fingerprint
from geosparse.hf.layers import attention_layers
from geosparse.measure.loss import score
from geosparse.profile.capture import forward_backward

from ..tiny import tiny_tokenizer, tokens
from ..unplain import (
    KINDS,
    NF4,
    ROUNDING,
    Packed,
    adapted,
    bitsandbytes,
    fill,
    library,
    plain,
    quanto,
    replaced,
    torchao,
)

# What the libraries and torch's own quantization say about themselves.
pytestmark = [
    pytest.mark.filterwarnings("default::FutureWarning"),
    pytest.mark.filterwarnings("default::DeprecationWarning"),
]
TEXT = "Tensors that are not plain are read as what they do, and not as what they are made of. " * 8


CONFIG = gs.ProfileConfig(length=48, windows=1, queries=4, geometry_queries=2, kinds=())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plain")


@pytest.fixture(scope="module")
def plain_profile():
    return gs.profile_model(plain(), tiny_tokenizer(), TEXT, CONFIG)


def off(found, expected):
    """The largest difference over the largest value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def logits(model, ids, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


def everything(model):
    return gs.sparsified(model, gs.Plan.uniform(model, 10**6))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_budget_is_dense(kind, folder):
    model, ids = KINDS[kind](0, folder).eval(), tokens(2, 40)
    dense, allowed = logits(model, ids), 5e-2 if kind in ROUNDING else 1e-3
    with everything(model):
        assert off(logits(model, ids), dense) <= allowed
        with torch.no_grad():
            cache = model(ids[:, :-1], use_cache=True).past_key_values
            step = model(ids[:, -1:], past_key_values=cache, use_cache=True).logits
    assert torch.equal(logits(model, ids), dense)
    with torch.no_grad():
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        dense_step = model(ids[:, -1:], past_key_values=cache, use_cache=True).logits
    assert off(step, dense_step) <= allowed


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_profiled_planned_scored_and_generates(kind, folder, plain_profile):
    model = KINDS[kind](0, folder)
    profile = gs.profile_model(model, tiny_tokenizer(), TEXT, CONFIG)
    for name, array in profile.arrays.items():
        # Some entries are infinite or empty by their meaning, whatever the weights.
        assert bool(torch.isfinite(array).any()) == bool(torch.isfinite(plain_profile.arrays[name]).any()), name
        assert not (torch.isnan(array).all() and array.numel()), name
    assert all(0 < loss < 20 for loss in profile.nlls)
    plan = gs.make_plan(profile, 6)
    model.eval()
    with torch.no_grad(), gs.sparsified(model, plan) as receipt:
        model(tokens(1, 40))
    assert receipt.density < 1
    found = score(model, plan, tokens(1, 30))
    assert 0 < found["sparse"]["nll"] < 20
    with gs.sparsified(model, plan):
        new = model.generate(input_ids=tokens(1, 20), max_new_tokens=3, do_sample=False)
    assert new.shape[1] > 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_is_of_the_weights(kind, folder):
    model, again, other = (KINDS[kind](seed, folder) for seed in (0, 0, 1))
    before = weight_fingerprint(model)
    assert before == weight_fingerprint(again) != weight_fingerprint(other)
    logits(model.eval(), tokens(1, 20))
    with everything(model):
        logits(model, tokens(1, 20))
        assert weight_fingerprint(model) == before
    assert weight_fingerprint(model) == before
    assert before != weight_fingerprint(plain()) or kind == "parametrized"
    with pytest.raises(gs.GeosparseError, match="another model"):
        gs.Plan.uniform(model, 4).check(other)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("lora-embeddings", "lora-merged")])
def test_the_output_matrix_is_what_the_module_does(kind, folder):
    model = KINDS[kind](0, folder)
    expected = _dequantized(inner_model(model).model.layers[0].self_attn.o_proj)
    layer = attention_layers(model)[0]
    modes = [module.training for module in model.modules()]
    matrix = layer.output_matrix()
    # fp32: exact; bf16 and the scale of fixed activations: half a step of 2^-8 and of 1/127. 4-bit kernels of CPUs with
    # bf16 round the code's value, the block's scale and their product to bf16, by 2^-9 each.
    allowed = 1e-2 if "static" in kind else 4e-3 if kind in ROUNDING else 1e-5
    if "nf4" in kind or "fp4" in kind:
        allowed = 3 * 2**-9
    assert off(matrix, expected) <= allowed
    assert torch.equal(matrix, layer.output_matrix())  # no dropout of an adapter
    assert not matrix.requires_grad
    assert [module.training for module in model.modules()] == modes


def _dequantized(module):
    """The weight of an output projection by the library that made it, adapters included."""
    if hasattr(module, "modules_to_save"):
        return module.modules_to_save["default"].weight
    if hasattr(module, "ia3_l"):
        return _dequantized(module.base_layer) * module.ia3_l["default"]
    if hasattr(module, "lora_A"):
        matrix = _dequantized(module.base_layer)
        matrix = matrix + module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
        if module.use_dora["default"]:
            matrix = matrix * (module.lora_magnitude_vector["default"].weight / matrix.norm(dim=1))[:, None]
        return matrix
    if isinstance(module, Packed) or hasattr(module, "weight_scale"):
        return module.dequantize()
    if callable(module.weight):
        return module.weight().dequantize()
    state = getattr(module.weight, "quant_state", None)
    if state is not None:  # before the first call, which may reorder the codes
        return library("bitsandbytes").functional.dequantize_4bit(module.weight.data, state)
    if hasattr(module.weight, "SCB"):
        return module.weight.CB * module.weight.SCB[:, None] / 127
    if getattr(module, "qweight", None) is not None:
        return module.qweight.dequantize()
    dequantize = getattr(module.weight, "dequantize", None)
    plain_class = type(module.weight) in (torch.nn.Parameter, torch.Tensor)
    return module.weight if plain_class or dequantize is None else dequantize()


@pytest.mark.parametrize(
    "kind", ["torchao-int8", "torchao-int8-dynamic", "bitsandbytes-nf4", "bitsandbytes-int8", "torch-dynamic", "packed"]
)
def test_gradients_of_the_loss_are_those_of_a_plain_model_with_these_weights(kind, folder):
    model = KINDS[kind](0, folder)
    same = plain()
    for name, module in list(same.named_modules()):
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(_dequantized(model.get_submodule(name)).float(), requires_grad=False)
    window, places = tokens(1, 40)[0], torch.tensor([10, 20, 30])
    loss, _, found = forward_backward(model, attention_layers(model), window, places, places)
    expected_loss, _, expected = forward_backward(same, attention_layers(same), window, places, places)
    rounds = kind in ROUNDING
    assert abs(loss - expected_loss) <= (5e-2 if rounds else 1e-4) * expected_loss
    for ours, true in zip(found, expected, strict=True):
        assert float((ours - true).norm() / true.norm()) <= (0.15 if rounds else 1e-4)


def test_weights_quantized_while_sparsified_are_used():
    model, ids = plain(), tokens(1, 20)
    gs.sparsify_(model, gs.Plan.uniform(model, 10**6))
    library("torchao.quantization").quantize_(model, library("torchao.quantization").Int8WeightOnlyConfig())
    expected = torchao(0, "Int8WeightOnlyConfig")
    for length in (1, 20):  # one row goes to the CPU kernel where weights are plain
        assert off(logits(model, ids[:, :length]), logits(expected, ids[:, :length])) <= 1e-4
    gs.restore_(model)
    assert torch.equal(logits(model, ids), logits(expected, ids))
    assert {type(part) for part in model.modules() if isinstance(part, torch.nn.Linear)} == {torch.nn.Linear}


@pytest.mark.parametrize("frozen", ["qint8", "qint4"])
def test_quanto_has_one_fingerprint_frozen_or_not(frozen):
    assert weight_fingerprint(quanto(0, frozen)) == weight_fingerprint(quanto(0, frozen, freeze=False))


def test_parametrized_and_pruned_weights_count_as_what_they_are(folder):
    model = KINDS["parametrized"](0, folder)
    for layer in model.model.layers:
        torch.nn.utils.parametrize.remove_parametrizations(layer.self_attn.o_proj, "weight")
    assert weight_fingerprint(model) == weight_fingerprint(KINDS["parametrized"](0, folder))
    model = KINDS["pruned"](0, folder)
    torch.nn.utils.prune.remove(model.model.layers[0].self_attn.o_proj, "weight")
    assert weight_fingerprint(model) == weight_fingerprint(KINDS["pruned"](0, folder))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("bitsandbytes")])
def test_saved_and_loaded_by_transformers_bitsandbytes_is_the_same_model(kind, folder, tmp_path):
    model = KINDS[kind](0, folder)
    expected = weight_fingerprint(model)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded, _ = gs.load_model(str(tmp_path))
    assert weight_fingerprint(loaded) == expected
    gs.Plan.uniform(KINDS[kind](0, folder), 4).check(loaded)


def test_a_state_dict_of_torchao_and_quanto_is_the_same_model(tmp_path):
    model = torchao(0, "Int8WeightOnlyConfig")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = plain(1)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=False), assign=True)
    assert weight_fingerprint(other) == weight_fingerprint(model)
    frozen = quanto(0, "qint8")
    torch.save(frozen.state_dict(), tmp_path / "state.pt")
    other = quanto(1, "qint8", freeze=False)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=False), assign=True)
    assert weight_fingerprint(other) == weight_fingerprint(frozen)


def test_the_fingerprint_follows_the_adapter_that_serves():
    model = adapted(plain())
    base, first = weight_fingerprint(plain()), weight_fingerprint(model)
    with model.disable_adapter():
        assert weight_fingerprint(model) == base
        assert identify(model).architecture == "LlamaForCausalLM"
    plan = gs.Plan.uniform(model, 4)
    model.add_adapter("other", library("peft").LoraConfig(r=4, target_modules=["o_proj"]))
    fill(model, "other", 5)
    assert weight_fingerprint(model) == first
    model.set_adapter("other")
    other = weight_fingerprint(model)
    assert len({base, first, other}) == 3
    with pytest.raises(gs.GeosparseError, match="fingerprint"):
        plan.check(model)
    model.base_model.set_adapter(["default", "other"])
    assert weight_fingerprint(model) not in (base, first, other)
    model.set_adapter("default")
    plan.check(model)


def test_a_merged_adapter_is_the_model_with_its_weights():
    model = adapted(plain(), merge=True)
    merged = weight_fingerprint(model)
    assert merged == weight_fingerprint(adapted(plain()).merge_and_unload())
    with model.disable_adapter():  # is taken out of the weights again
        assert off(logits(model.eval(), tokens(1, 20)), logits(plain(), tokens(1, 20))) <= 1e-4


def test_an_adapter_saved_and_loaded_under_another_name_is_the_same_model(tmp_path):
    model = adapted(plain())
    model.save_pretrained(tmp_path)
    loaded = library("peft").PeftModel.from_pretrained(plain(), tmp_path, adapter_name="mine")
    assert weight_fingerprint(loaded) == weight_fingerprint(model)


def test_adapters_merged_and_switched_while_sparsified_serve():
    model, ids = adapted(plain()).eval(), tokens(1, 20)
    model.add_adapter("other", library("peft").LoraConfig(r=4, target_modules=["o_proj"]))
    fill(model, "other", 5)
    twin = copy.deepcopy(model).eval()
    model.eval()
    gs.sparsify_(model, gs.Plan.uniform(model, 10**6))
    for change in ("merge_adapter", "unmerge_adapter", "set_adapter", "merge_adapter"):
        for each in (model, twin):
            getattr(each, change)(*(["other"] if change == "set_adapter" else []))
        for length in (1, 20):
            assert off(logits(model, ids[:, :length]), logits(twin, ids[:, :length])) <= 1e-4
    gs.restore_(model)
    assert torch.equal(logits(model, ids), logits(twin, ids))


def test_a_peft_model_and_the_model_inside_it_are_one():
    model = adapted(plain()).eval()
    inside = model.get_base_model()
    assert identify(model) == identify(inside)
    gs.sparsify_(model, gs.Plan.uniform(inside, 4))
    with pytest.raises(gs.GeosparseError, match="already sparsified"):
        gs.sparsify_(inside, gs.Plan.uniform(model, 4))
    receipt = logits(model, tokens(1, 20)), logits(inside, tokens(1, 20))
    assert torch.equal(*receipt)
    gs.restore_(inside)
    with pytest.raises(gs.GeosparseError, match="not sparsified"):
        gs.restore_(model)


def test_an_adapter_made_by_transformers_itself_serves():
    library("peft")
    model, ids = plain(), tokens(1, 20)
    model.add_adapter(library("peft").LoraConfig(r=4, target_modules=["o_proj"]), "mine")
    fill(model, "mine", 1)
    model.eval()
    dense = logits(model, ids)
    assert weight_fingerprint(model) != weight_fingerprint(plain())
    with everything(model):
        assert off(logits(model, ids), dense) <= 1e-4
    model.disable_adapters()
    assert weight_fingerprint(model) == weight_fingerprint(plain())


def test_virtual_tokens_are_refused_by_name():
    peft = library("peft")
    model = peft.get_peft_model(plain(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    for call in (gs.Plan.uniform, gs.sparsify_):
        with pytest.raises(gs.GeosparseError, match=r"PROMPT_TUNING.*get_base_model\(\)"):
            call(model, 4)
    with everything(model.get_base_model()):
        logits(model.get_base_model(), tokens(1, 8))


def test_a_projection_without_sizes_is_found_and_its_missing_gradient_is_named():
    model = replaced(0, Packed)
    dense = logits(model, tokens(1, 20))
    assert isinstance(attention_layers(model)[0].projection, Packed)
    with everything(model):
        assert off(logits(model, tokens(1, 20)), dense) <= 1e-4
    with pytest.raises(gs.GeosparseError, match="no backward pass"):
        gs.profile_model(model, tiny_tokenizer(), TEXT, CONFIG)


def test_nested_scales_of_four_bit_weights_count(folder):
    model = bitsandbytes(0, folder, **NF4, bnb_4bit_use_double_quant=True)
    before = weight_fingerprint(model)
    model.model.layers[0].mlp.up_proj.weight.quant_state.offset *= 2
    assert weight_fingerprint(model) != before
