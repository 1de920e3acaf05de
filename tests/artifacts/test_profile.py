"""profile_model against brute force on tiny models, and the Profile artifact: same seed, same bytes."""

import json
from dataclasses import fields, replace

import pytest
import torch

import geosparse as gs
from geosparse.artifacts.profile import ARRAYS
from geosparse.geometry.fits import fit
from geosparse.geometry.moments import Moments, window_moments
from geosparse.hf.interface import intercepted
from geosparse.hf.layers import attention_layers
from geosparse.ops import TAILS, causal_mask, reference_attention
from geosparse.profile import capture
from geosparse.profile.capture import walk_layers
from geosparse.profile.sampling import sample_positions, window_generator

from ..tiny import VOCABULARY, WINDOW, save_tiny, tiny_model, tiny_tokenizer

TEXT = " ".join(f"{word}{number}" for number in range(40) for word in ("alpha", "Beta", "gamma;", "delta"))
LENGTH = 40
CONFIG = gs.ProfileConfig(length=LENGTH, windows=1, queries=5, budgets=(1, 4, 16), kinds=())
KINDS = ("llama", "mistral", "gemma2")


def model_of(kind="llama", **changes):
    return tiny_model(kind, vocab_size=len(VOCABULARY), **changes)


def profile_of(model, **changes):
    return gs.profile_model(model, tiny_tokenizer(), TEXT, gs.ProfileConfig(**vars(CONFIG) | changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return profile_of(model_of()).save(tmp_path_factory.mktemp("profile") / "p.safetensors")


class Oracle:
    """Attention by definition in fp64 with each layer's inputs kept, and the gradient at the output projections."""

    def __init__(self, model):
        self.model = model.double()
        self.layers = attention_layers(model)
        self.ids = gs.token_windows(tiny_tokenizer(), TEXT, LENGTH, 1)
        self.inputs = {}
        self.added = {}
        self.nll = self.loss()
        self.gradients = self.backward()

    def attend(self, layer, n_keep, tail="drop"):
        query, key, value, scaling, softcap = self.inputs[layer]
        mask = causal_mask(LENGTH, LENGTH)
        if self.layers[layer].window:
            rows = torch.arange(LENGTH)
            mask = mask & (rows[:, None] - rows[None] < self.layers[layer].window)
        budgets = [n_keep] * query.shape[1]
        arguments = {"tail": tail, "scaling": scaling, "mask": mask, "softcap": softcap}
        return reference_attention(query, key, value, budgets, **arguments).output

    def error(self, layer, n_keep, tail):
        return (self.attend(layer, n_keep, tail) - self.attend(layer, LENGTH))[0]

    def loss(self):
        """The summed loss, through this attention; `added` (layer -> tensor) moves a layer's output."""

        def handler(layer):
            def attention(module, call):
                inputs = (call.query, call.key, call.value, call.terms.scaling, call.terms.softcap)
                self.inputs.setdefault(layer, inputs)
                return self.attend(layer, LENGTH) + self.added.get(layer, 0.0)

            return attention

        handlers = {layer.module: handler(index) for index, layer in enumerate(self.layers)}
        with intercepted(self.model, handlers), torch.no_grad():
            return self.cross_entropy().item()

    def cross_entropy(self):
        logits = self.model(self.ids, use_cache=False).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, self.ids[0, 1:], reduction="sum")

    def backward(self):
        """dLoss/dz per layer, `[Hq, L, Dv]`: what arrives at the output projections of the model's own attention."""
        seen = []
        self.model.set_attn_implementation("eager")
        self.model.get_input_embeddings().weight.requires_grad_(True)
        hooks = [
            layer.module.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            for layer in self.layers
        ]
        gradients = torch.autograd.grad(self.cross_entropy(), seen)
        self.model.get_input_embeddings().weight.requires_grad_(False)
        for hook in hooks:
            hook.remove()
        return [gradient[0].unflatten(-1, (6, 8)).transpose(0, 1) for gradient in gradients]

    def move(self, layer, head, query, direction):
        """Half the difference of the loss when z of one head at one query moves by plus and minus `direction`."""
        losses = []
        for sign in (1, -1):
            moved = torch.zeros(1, 6, LENGTH, 8, dtype=torch.float64)
            moved[0, head, query] = sign * direction
            # The inputs of the layers above move too.
            self.inputs, kept = {}, self.inputs
            self.added = {layer: moved}
            losses.append(self.loss())
            self.inputs, self.added = kept, {}
        return (losses[0] - losses[1]) / 2


@pytest.fixture(params=KINDS)
def measured(request):
    profile = profile_of(model_of(request.param))
    oracle = Oracle(model_of(request.param))
    assert profile.nll == pytest.approx(oracle.nll / (LENGTH - 1), rel=1e-5)
    return profile, oracle


def positions():
    return sample_positions(LENGTH, CONFIG.queries, window_generator(CONFIG.seed, LENGTH, 0)).tolist()


def test_fisher_is_the_squared_gradient_times_the_error(measured):
    profile, oracle = measured
    for layer in range(2):
        for tail in TAILS:
            for column, budget in enumerate(profile.budgets):
                product = (oracle.error(layer, budget, tail) * oracle.gradients[layer]).sum(-1)
                expected = product[:, positions()].square().mean(-1)
                found = profile.fisher(tail)[layer, :, column]
                assert torch.allclose(found, expected, rtol=5e-3, atol=1e-9)


def test_to_first_order_the_loss_moves_as_the_gradient_says(measured):
    profile, oracle = measured
    for layer, head, tail, column in [(0, 0, "drop", 1), (0, 5, "renormalize", 0), (1, 3, "centroid", 1)]:
        error = oracle.error(layer, profile.budgets[column], tail)[head]
        for query in positions():
            moved = 50 * oracle.move(layer, head, query, error[query] / 50)
            expected = (oracle.gradients[layer][head, query] @ error[query]).item()
            assert moved == pytest.approx(expected, rel=0.01, abs=1e-6)


def test_output_error_is_what_the_projection_makes_of_the_error(measured):
    profile, oracle = measured
    for layer in range(2):
        dense = oracle.attend(layer, LENGTH)
        matrix = oracle.layers[layer].module.o_proj.weight.view(48, 6, 8)
        norm = torch.einsum("rhd,bhqd->hqr", matrix, dense).square().sum(-1)[:, positions()].mean(-1)
        assert torch.allclose(profile.mean("output_norm")[layer], norm, rtol=1e-3)
        for tail in TAILS:
            for column, budget in enumerate(profile.budgets):
                error = torch.einsum("rhd,hqd->hqr", matrix, oracle.error(layer, budget, tail))
                expected = error.square().sum(-1)[:, positions()].mean(-1)
                found = profile.mean("output_error")[0, TAILS.index(tail), layer, :, column]
                assert torch.allclose(found, expected, rtol=1e-3, atol=1e-7 * norm.max().item())


def test_windows_limit_what_a_layer_can_miss():
    profile = profile_of(model_of("gemma2"))
    assert profile.limits == (WINDOW, LENGTH)
    full = profile.budgets.index(WINDOW)
    assert profile.mean("fisher")[0, :, 0, :, full].abs().max() == 0
    assert profile.mean("fisher")[0, :, 1, :, full].min() > 0
    assert torch.allclose(profile.kept_mass()[0, :, full], torch.ones(6, dtype=torch.float64), atol=1e-5)


def test_same_seed_same_bytes(tmp_path, saved):
    again = profile_of(model_of()).save(tmp_path / "again.safetensors")
    assert again.read_bytes() == saved.read_bytes()
    other = profile_of(model_of(), seed=1).save(tmp_path / "other.safetensors")
    assert other.read_bytes() != saved.read_bytes()


def test_round_trip_through_a_file(tmp_path, saved):
    profile = gs.Profile.load(saved)
    fresh = profile_of(model_of())
    assert profile.arrays.keys() == ARRAYS.keys()
    for name, array in fresh.arrays.items():
        assert torch.equal(array.nan_to_num(-7.0), profile.arrays[name].nan_to_num(-7.0))
    assert json.loads(json.dumps(profile.metadata())) == json.loads(json.dumps(fresh.metadata()))
    assert profile.save(tmp_path / "p.safetensors").read_bytes() == saved.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_moments_are_those_of_every_token_and_sampled_query():
    profile = profile_of(model_of(), windows=2)
    windows = gs.token_windows(tiny_tokenizer(), TEXT, LENGTH, 2)
    for index, window in enumerate(windows):
        where = sample_positions(LENGTH, CONFIG.queries, window_generator(CONFIG.seed, LENGTH, index))
        for layer in walk_layers(model_of(), window, where):
            seen = torch.arange(LENGTH) <= where[:, None]
            alpha = torch.zeros(6, len(where), LENGTH)
            alpha[..., : layer.rows.alpha.shape[-1]] = layer.rows.alpha
            expected = window_moments(alpha, layer.call.value[0].float(), seen)
            for item in fields(Moments):
                found = getattr(profile.moments, item.name)[index, layer.index]
                assert torch.allclose(found, getattr(expected, item.name), rtol=1e-4, atol=1e-5), item.name
    fitted = fit(profile.moments.summed())
    assert torch.equal(profile.fits().similarity.floor, fitted.similarity.floor)
    assert profile.fits().norm.level.shape == (2, 6)


def test_a_profile_without_moments_loads_and_says_what_it_lacks(tmp_path, saved):
    old = replace(gs.Profile.load(saved), moments=None)
    profile = gs.Profile.load(old.save(tmp_path / "old.safetensors"))
    assert profile.moments is None
    assert (profile.regimes().label == gs.Profile.load(saved).regimes().label).all()
    with pytest.raises(gs.GeosparseError, match="older than the fits: make it again"):
        profile.fits()


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("norm", lambda array: array[..., :2], "has the shape"),
        ("cosine", lambda array: array[..., 1:], "has the shape"),
        ("sink_mass", lambda array: array.float(), "is not float64"),
        ("square", lambda array: array * torch.nan, "holds NaN or infinity"),
        ("tokens", lambda array: array + 1, "not of its windows"),
    ],
)
def test_moments_that_do_not_fit_are_refused(saved, name, change, reason):
    profile = gs.Profile.load(saved)
    with pytest.raises(gs.GeosparseError, match=reason):
        replace(profile, moments=replace(profile.moments, **{name: change(getattr(profile.moments, name))}))


def test_several_windows_and_bounded_statistics():
    profile = profile_of(model_of(), windows=3)
    assert profile.windows == 3
    for name in ("mass", "precision", "recall", "f1"):
        values = profile.mean(name)[~profile.mean(name).isnan()]
        assert 0 <= values.min() <= values.max() <= 1 + 1e-5
    assert (profile.mean("mass").diff(dim=-1) >= -1e-6).all()
    assert (profile.geometry("f1")[..., 0] == 1).all()


def test_profiling_leaves_the_model_as_it_was():
    model = model_of("mistral")
    ids = torch.arange(3, 43)[None]
    before, implementation = model(ids).logits, model.config._attn_implementation
    profile_of(model)
    assert torch.equal(model(ids).logits, before)
    assert model.config._attn_implementation == implementation
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_reduced_precision_is_close():
    exact, rough = profile_of(model_of()), profile_of(model_of().bfloat16())
    assert rough.nll == pytest.approx(exact.nll, rel=0.02)
    assert (rough.mean("mass") - exact.mean("mass")).abs().max() < 0.05


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"length": 4000}, "longer than the 512 that this LlamaForCausalLM allows .* smaller --length"),
        ({"length": 7}, "length must be at least 8, found 7"),
        ({"windows": 0}, "windows must be at least 1, found 0"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"random_sets": 0}, "random_sets must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**70}, "seed must be at most"),
        ({"budgets": ()}, "budgets must ascend"),
        ({"budgets": (4, 4)}, "budgets must ascend"),
        ({"budgets": (0, 4)}, "budgets must ascend"),
        ({"budgets": (40, 80)}, "budgets must start below the length 40"),
    ],
)
def test_what_cannot_be_profiled(changes, reason):
    with pytest.raises(gs.GeosparseError, match=reason):
        profile_of(model_of(), **changes)


def test_a_text_that_is_too_short():
    with pytest.raises(gs.GeosparseError, match="The text has 5 tokens, a window needs 40; give longer text"):
        gs.profile_model(model_of(), tiny_tokenizer(), "short", CONFIG)


def test_a_loss_that_is_not_finite():
    model = model_of()
    model.lm_head.weight[5] = torch.nan
    with pytest.raises(gs.GeosparseError, match=r"loss on the calibration text is nan: .*use a sound checkpoint"):
        profile_of(model)
    assert model.config._attn_implementation != "geosparse"


def test_gradients_that_overflow(monkeypatch):
    exact = capture.loss_and_slope
    monkeypatch.setattr(capture, "loss_and_slope", lambda *rest: (exact(*rest)[0], exact(*rest)[1] / 0))
    with pytest.raises(gs.GeosparseError, match=r"gradients of the model's loss overflow in torch\.float32"):
        profile_of(model_of())


def test_a_profile_fits_its_model_and_no_other(saved):
    profile = gs.Profile.load(saved)
    profile.check(model_of())
    with pytest.raises(gs.GeosparseError, match=r"differ in fingerprint .*geosparse profile"):
        profile.check(model_of(seed=1))


def damaged(saved, path, data):
    path.write_bytes(data)
    with pytest.raises(gs.GeosparseError) as caught:
        gs.Profile.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path} is not a profile, or it is damaged: ")
    assert text.endswith("; give or make another one.")
    assert "\n" not in text
    return text


def test_truncated_profiles_are_refused(tmp_path, saved):
    whole = saved.read_bytes()
    sizes = {*range(0, 64), *range(64, len(whole), max(1, len(whole) // 150)), len(whole) - 1}
    for size in sorted(sizes):
        damaged(saved, tmp_path / "cut.safetensors", whole[:size])
    damaged(saved, tmp_path / "long.safetensors", whole + b"\0")


@pytest.mark.slow
def test_flipped_bytes_load_or_are_refused(tmp_path, saved):
    whole = saved.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "flipped.safetensors"
    refused = 0
    for attempt in range(500):
        data = bytearray(whole)
        end = header if attempt % 2 else len(whole)
        data[int(torch.randint(end, (), generator=generator))] ^= 1 << int(torch.randint(8, (), generator=generator))
        path.write_bytes(data)
        try:
            profile = gs.Profile.load(path)
        except gs.GeosparseError:
            refused += 1
            continue
        # What loads is whole: it can be planned with and written again.
        if profile.length <= 10_000:
            gs.make_plan(profile, 2).save(tmp_path / "plan.json")
        profile.save(path)
    assert refused > 100


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": "geosparse.profile/1"}, "its schema is not geosparse.profile/4"),
        ({"dimensions": {"tails": ["drop"]}}, "its tails, rankings or distances are not known"),
        ({"extra": 1}, "its metadata is not complete"),
        ({"nlls": ["low"]}, "nlls is not a list of numbers"),
        ({"nlls": [1.0, 2.0]}, "lengths and nlls are not of the same number"),
        ({"lengths": [0]}, "lengths is not a list of whole numbers"),
        ({"lengths": [40, 20], "nlls": [1.0, 2.0]}, "lengths do not ascend"),
        ({"queries": 0}, "queries is not a whole number"),
        ({"selectors": ["topn", "topn"]}, "its selectors are not distinct"),
        ({"selectors": [[]]}, "no selectors"),
        ({"budgets": [4, 1, 16]}, "budgets do not ascend"),
        ({"budgets": []}, "budgets do not ascend"),
        ({"budgets": [1, 4]}, "has the shape"),
        ({"limits": [40]}, "limits do not fit the layers"),
        ({"limits": [40, 0]}, "limits is not a list of whole numbers"),
        ({"calibration": []}, "calibration is not an object"),
        ({"config": []}, "config is not an object"),
        ({"model": {}}, "the model's identity is not complete"),
    ],
)
def test_metadata_that_does_not_fit(tmp_path, saved, monkeypatch, change, reason):
    profile = gs.Profile.load(saved)
    metadata = profile.metadata() | change
    monkeypatch.setattr(gs.Profile, "metadata", lambda _: metadata)
    profile.save(tmp_path / "p.safetensors")
    assert reason in damaged(saved, tmp_path / "p.safetensors", (tmp_path / "p.safetensors").read_bytes())


def test_a_profile_of_a_selector_that_is_not_installed_is_no_damaged_file(tmp_path, saved, monkeypatch):
    metadata = gs.Profile.load(saved).metadata() | {"selectors": ["absent"]}
    monkeypatch.setattr(gs.Profile, "metadata", lambda _: metadata)
    gs.Profile.load(saved).save(tmp_path / "p.safetensors")
    with pytest.raises(gs.GeosparseError, match="cannot be used here: the selector 'absent' is not installed"):
        gs.Profile.load(tmp_path / "p.safetensors")


@pytest.mark.parametrize("name", ["mass", "output_error", "output_norm", "fisher", "entropy"])
def test_measurements_that_are_not_numbers_are_refused(saved, name):
    profile = gs.Profile.load(saved)
    arrays = {key: array.clone() for key, array in profile.arrays.items()}
    arrays[name].view(-1)[0] = torch.inf
    with pytest.raises(gs.GeosparseError, match=f"the array {name} holds NaN or infinity"):
        gs.Profile(**vars(profile) | {"arrays": arrays})


def test_files_that_are_no_profiles(tmp_path, saved):
    damaged(saved, tmp_path / "plan.json", b'{"schema": "geosparse.plan/1"}')
    damaged(saved, tmp_path / "empty", b"")
    from safetensors.torch import save

    damaged(saved, tmp_path / "weights.safetensors", save({"w": torch.zeros(2)}))
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(gs.GeosparseError, match="Cannot read"):
            gs.Profile.load(path)


LENGTHS = (20, 40, 80)


@pytest.fixture(scope="module")
def several():
    changes = {"length": None, "lengths": LENGTHS, "windows": 4, "selectors": ("topn", "sink_recent")}
    return profile_of(model_of(), **changes)


def test_several_lengths_in_one_profile(several):
    assert several.lengths == (20, 20, 20, 20, 40, 40, 80, 80)
    assert (several.length, several.windows, several.distinct_lengths) == (80, 8, LENGTHS)
    for length in LENGTHS:
        part = several.at(length)
        assert part.distinct_lengths == (length,)
        assert part.limits == (length, length)
        assert part.arrays["mass"].shape[0] == part.windows == part.calibration["windows"]
    assert torch.equal(several.fisher("drop"), several.at(80).fisher("drop"))
    with pytest.raises(gs.GeosparseError, match=r"No windows of 30 tokens in the profile, only of 20, 40, 80: ask"):
        several.at(30)


def test_one_length_of_several_is_what_it_is_alone(several):
    alone = profile_of(model_of(), lengths=(40,), length=None, windows=several.at(40).windows)
    assert several.at(40).moments.length == 40
    assert torch.equal(several.at(40).moments.norm, alone.moments.norm)
    assert torch.equal(several.at(40).moments.cosine, alone.moments.cosine)
    alone = profile_of(model_of(), lengths=(20,), length=None, windows=4, selectors=("topn",))
    for name, array in alone.arrays.items():
        part = several.at(20).arrays[name]
        part = part[:, :1] if "selectors" in ARRAYS[name] else part
        assert torch.equal(part.nan_to_num(-7.0), array.nan_to_num(-7.0))
    assert several.at(20).nlls == alone.nlls


def test_a_window_shorter_than_the_budget_keeps_everything():
    profile = profile_of(
        model_of(), length=None, lengths=(20, 80), budgets=(4, 16, 32), selectors=("topn", "sink_recent")
    )
    short = profile.at(20)
    for selector in short.selectors:
        for tail in TAILS:
            assert short.fisher(tail, selector)[..., 2].abs().max() == 0
            assert short.relative_output_error(tail, selector)[..., 2].abs().max() == 0
            assert short.fisher(tail, selector)[..., 1].max() > 0
        assert (short.kept_mass(selector)[..., 2] - 1).abs().max() < 1e-5
    for name in ("precision", "recall", "f1", "margin", "inversions"):
        assert short.geometry(name)[..., 2].isnan().all()
        assert not short.geometry(name, place="final")[..., 1].isnan().any()


def test_selectors_are_measured_beside_one_another(several):
    assert (several.kept_mass("topn") >= several.kept_mass("sink_recent") - 1e-6).all()
    assert torch.equal(several.fisher("drop", "topn"), several.fisher("drop"))
    assert not torch.equal(several.fisher("drop", "sink_recent"), several.fisher("drop"))
    with pytest.raises(gs.GeosparseError, match="no selector 'paged', but topn, sink_recent"):
        several.fisher("drop", "paged")
    for wrong, known in (("f2", "f1"), ("inverse", "inversions")):
        with pytest.raises(gs.GeosparseError, match=f"knows no '{wrong}': did you mean '{known}'"):
            several.geometry(wrong)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lengths": ()}, "lengths must ascend"),
        ({"lengths": (40, 20)}, "lengths must ascend"),
        ({"selectors": ()}, "one or more different names"),
        ({"selectors": ("topn", "topn")}, "one or more different names"),
        ({"selectors": ("top",)}, "Unknown selector 'top': did you mean 'topn'"),
    ],
)
def test_configurations_that_say_nothing(changes, reason):
    with pytest.raises(gs.GeosparseError, match=reason):
        gs.ProfileConfig(**changes)


def test_longer_windows_are_fewer_but_hold_as_many_tokens():
    config = gs.ProfileConfig(lengths=(512, 1024, 2048, 4096), windows=8, kinds=())
    assert [config.windows_of(length) for length in config.lengths] == [8, 4, 2, 2]
    assert gs.ProfileConfig(windows=1, kinds=()).windows_of(1024) == 1


def test_a_model_spread_by_a_device_map_gives_the_same_numbers(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = save_tiny(tmp_path / "model")
    names = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    places = dict.fromkeys(names, "cpu") | {"model.layers.1": "disk"}
    spread = AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=tmp_path / "disk")
    assert any(parameter.is_meta for parameter in spread.parameters())
    whole, apart = profile_of(AutoModelForCausalLM.from_pretrained(folder)), profile_of(spread)
    assert apart.model == whole.model
    for name, array in whole.arrays.items():
        assert torch.equal(apart.arrays[name].nan_to_num(-7.0), array.nan_to_num(-7.0))


def test_budgets_of_twice_the_shortest_length_and_more():
    profile = profile_of(model_of(), lengths=(8, 40), windows=2, budgets=(1, 4, 16, 32))
    short, long = (row.isnan().all() for row in profile.arrays["f1"][[0, -1], 0, 0, 0, ..., 2])
    assert short
    assert not long
