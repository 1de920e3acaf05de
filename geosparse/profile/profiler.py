"""profile_model: one forward and one backward pass per window, the geometry of sampled queries, and a second pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..artifacts.interplay import Interplay
from ..artifacts.profile import ARRAYS, Profile
from ..artifacts.tail_moments import TAIL_ARRAYS, TailMoments
from ..errors import GeosparseError
from ..geometry.moments import Moments
from ..hf.adapters import inner_model
from ..hf.identity import identify
from ..hf.layers import AttentionLayer, attention_layers, check_context
from ..hf.modes import evaluating
from ..ops.selectors import EXACT, MEASURED, SELECTORS
from ..ops.serving import warn_once
from ..plan.make_plan import make_plan
from ..text.kinds import KINDS
from ..utils.bounds import check_whole
from ..utils.files import check_writable
from ..utils.parallel import mapped
from ..utils.progress import steps, track
from ..utils.provenance import versions
from .arrays import KvHead, joined, kv_heads, measure
from .calibration import CalibrationWindow, calibration_json, calibration_windows, check_kinds, texts_by_kind
from .capture import forward_backward
from .checkpoints import Parts, Window, process_group, process_rank, wait_for_all
from .sampling import evenly, sample_positions, window_generator
from .second_pass import interplay_of_window, mean_interplay

__all__ = ["ProfileConfig", "config_json", "profile_model", "profile_to_file"]

DEFAULT_BUDGETS = tuple(2**exponent for exponent in range(10))
FEWEST_WINDOWS = 2
# The second pass: windows, sampled queries of each, tokens per head of its plan as a fraction, the longest windows.
SECOND_WINDOWS, SECOND_QUERIES, SECOND_DENSITY_DIVISOR, SECOND_LENGTH = 4, 128, 32, 4096
KIND_QUERIES = 32
"""Sampled queries of a window of a built-in kind."""
# What the forward and backward pass counts on the progress bar, in layers measured.
PASS_STEPS = 30


class _Only(int):
    """The one of `lengths`, as a configuration says it of itself: `dataclasses.replace` hands it back unasked."""


@dataclass(frozen=True)
class ProfileConfig:
    """How to profile.

    Attributes:
        length: The one entry of `lengths`, None of several; where it is given, `lengths` becomes it alone.
        windows: Windows of the shortest length, evenly spaced over the text; of a longer one as many as hold about as
            many tokens, but at least 2 (or `windows`, where that is less).
        queries: Query positions sampled per window, stratified over the window.
        budgets: The N at which every head is measured; those of the longest length or more are left out.
        random_sets: Random rankings per query for the controls of the geometry.
        seed: Seed of the sampled positions and random sets.
        lengths: Tokens per window, ascending.
        geometry_queries: How many of the sampled positions serve the geometry, evenly spaced among them; the final
            position always does. The errors are measured at all of them.
        selectors: Words of `ops.SELECTORS` whose mass and errors are measured.
        second_pass: Measure what the errors of heads do to each other, with a plan active, on up to 4 of the windows:
            the geometry does not need it, plans lose much less with it.
        kinds: Built-in kinds of text (`text.kinds`) that are measured beside the text that is given, one window each,
            for robust plans; () for none.
    """

    length: int | None = None
    windows: int = 4
    queries: int = 64
    budgets: tuple[int, ...] = DEFAULT_BUDGETS
    random_sets: int = 8
    seed: int = 0
    lengths: tuple[int, ...] = (1024,)
    geometry_queries: int = 12
    selectors: tuple[str, ...] = MEASURED
    second_pass: bool = True
    kinds: tuple[str, ...] = tuple(KINDS)

    def __post_init__(self) -> None:
        """Refuse what cannot be profiled."""
        if self.length is not None and not (isinstance(self.length, _Only) and self.lengths != (self.length,)):
            object.__setattr__(self, "lengths", (self.length,))
        lengths = tuple(check_whole("length", length, 8) for length in self.lengths)
        if not lengths or list(lengths) != sorted(set(lengths)):
            raise GeosparseError(f"lengths must ascend, found {list(lengths)}.")
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "length", _Only(lengths[0]) if len(lengths) == 1 else None)
        least = {"windows": 1, "queries": 1, "random_sets": 1, "seed": 0, "geometry_queries": 1}
        for name, bound in least.items():
            object.__setattr__(self, name, check_whole(name, getattr(self, name), bound))
        object.__setattr__(self, "budgets", tuple(check_whole("budgets", budget) for budget in self.budgets))
        if not self.budgets or min(self.budgets) < 1 or list(self.budgets) != sorted(set(self.budgets)):
            raise GeosparseError(f"budgets must ascend from at least 1, found {list(self.budgets)}.")
        if self.budgets[0] >= lengths[0]:
            raise GeosparseError(f"budgets must start below the length {lengths[0]}, found {list(self.budgets)}.")
        if not self.selectors or len(set(self.selectors)) < len(self.selectors):
            raise GeosparseError(f"selectors are one or more different names, found {list(self.selectors)}.")
        for selector in self.selectors:
            SELECTORS.check(selector)
        check_kinds(self.kinds)

    @property
    def longest(self) -> int:
        """Tokens of the longest windows."""
        return self.lengths[-1]

    def windows_of(self, length: int) -> int:
        """How many windows of `length` tokens to take."""
        return max(min(FEWEST_WINDOWS, self.windows), round(self.windows * self.lengths[0] / length))


def config_json(config: ProfileConfig) -> dict[str, Any]:
    """A configuration as a profile holds it: one length is in `lengths` alone, however it was given."""
    return asdict(config) | {"length": None}


def profile_model(
    model: Any,
    tokenizer: Any,
    texts: str | Sequence[str] | Mapping[str, str | Sequence[str]],
    config: ProfileConfig | None = None,
    *,
    show_progress: bool = False,
) -> Profile:
    """Measure every head of `model` on calibration text.

    Args:
        model: A transformers causal language model, or a PeftModel around one; it is not changed, and measured in
            evaluation mode.
        tokenizer: Its tokenizer.
        texts: A text, or documents that are joined; or several kinds of text by name, each of these. Windows of the
            built-in kinds of text are measured beside it, unless `config.kinds` says otherwise.
        config: How to profile.
        show_progress: A progress bar on a terminal.

    Raises:
        GeosparseError: The text is too short, the architecture is not supported, or the loss is not finite.
    """
    model = inner_model(model)
    with evaluating(model):
        return _profile(model, tokenizer, texts, ProfileConfig() if config is None else config, None, show_progress)


def profile_to_file(
    path: Path | str,
    model: Any,
    tokenizer: Any,
    texts: str | Sequence[str] | Mapping[str, str | Sequence[str]],
    config: ProfileConfig | None = None,
    *,
    show_progress: bool = False,
) -> Profile:
    """`profile_model`, saved to `path`; a run that was stopped goes on where it was when it is started again.

    Every finished window waits in the folder `path` + ".parts", which is removed at the end. The file is the same, bit
    for bit, however often the run was stopped, and however many processes of `accelerate launch` or `torchrun` share
    it: each takes its share of the windows, the first one writes the file.

    Raises:
        GeosparseError: As `profile_model`; or `path` cannot be written.
    """
    path = check_writable(path)
    parts = path.with_name(f"{path.name}.parts")
    model = inner_model(model)
    with process_group(), evaluating(model):
        profile = _profile(model, tokenizer, texts, ProfileConfig() if config is None else config, parts, show_progress)
        if process_rank()[0] == 0:
            profile.save(path)
            shutil.rmtree(parts, ignore_errors=True)
        wait_for_all()
    return profile


def _profile(
    model: Any,
    tokenizer: Any,
    texts: str | Sequence[str] | Mapping[str, str | Sequence[str]],
    config: ProfileConfig,
    folder: Path | None,
    show_progress: bool,
) -> Profile:
    """`profile_model`; with a folder for the finished windows, resumed and shared between processes."""
    layers = attention_layers(model)
    warn_once(model.get_input_embeddings().weight.device)
    check_context(model, config.longest, "give a smaller --length")
    kinds = texts_by_kind(texts)
    windows = calibration_windows(tokenizer, kinds, config)
    about: dict[str, Any] = {
        "model": identify(model).to_json(),
        "calibration": calibration_json(kinds, windows, config.lengths),
        "config": config_json(config),
        "provenance": versions(),
    }
    parts = None if folder is None else Parts(folder, about | {"dtype": str(model.dtype)})
    results = _measure(model, layers, windows, config, parts, show_progress)
    profile = Profile(
        arrays={name: torch.stack([window.arrays[name] for window in results]) for name in ARRAYS},
        moments=Moments.stack([window.moments.widened(config.longest) for window in results]),
        budgets=_budgets(config),
        lengths=tuple(len(window.tokens) for window in windows),
        queries=config.queries,
        limits=tuple(min(layer.window or config.longest, config.longest) for layer in layers),
        nlls=tuple(window.nll for window in results),
        selectors=config.selectors,
        tail_moments=TailMoments(*(torch.stack([window.arrays[name] for window in results]) for name in TAIL_ARRAYS)),
        **about | {"model": identify(model)},
    )
    if not config.second_pass:
        return profile
    return replace(profile, interplay=_second_pass(model, layers, windows, profile, parts, show_progress))


def _second_pass(
    model: Any,
    layers: Sequence[AttentionLayer],
    windows: Sequence[CalibrationWindow],
    profile: Profile,
    parts: Parts | None,
    show_progress: bool,
) -> Interplay | None:
    """The interplay of heads under a plan, on windows of the longest length that is not above SECOND_LENGTH."""
    length = max((length for length in profile.distinct_lengths if length <= SECOND_LENGTH), default=None)
    if length is None:
        return None
    selector = EXACT if EXACT in profile.selectors else None
    plan = make_plan(profile.at(length), max(1.0, length / SECOND_DENSITY_DIVISOR), selector=selector)
    rank, processes = process_rank() if parts is not None else (0, 1)
    indices = [index for index, window in enumerate(windows) if len(window.tokens) == length]
    indices = [indices[part] for part in evenly(SECOND_WINDOWS, len(indices))]
    results: dict[int, Interplay] = {}
    for index in track(indices[rank::processes], "second pass", show_progress and rank == 0):
        number, _, window = windows[index]
        part = None if parts is None else parts.load_second(index)
        if part is None:
            positions = sample_positions(
                length, SECOND_QUERIES, window_generator(profile.config["seed"], length, number)
            )
            part = interplay_of_window(model, layers, plan, window, positions, profile.budgets)
            if parts is not None:
                parts.save_second(index, part)
        results[index] = part
    if parts is not None and processes > 1:
        wait_for_all()
        for index in indices:
            part = results.get(index) or parts.load_second(index)
            if part is None:
                raise GeosparseError(f"The windows in {parts.folder} are not complete: start the command again.")
            results[index] = part
    return mean_interplay([results[index] for index in indices])


def _measure(
    model: Any,
    layers: Sequence[AttentionLayer],
    windows: Sequence[CalibrationWindow],
    config: ProfileConfig,
    parts: Parts | None,
    show_progress: bool,
) -> list[Window]:
    """The arrays and losses of all windows, of which this process measures its share."""
    rank, processes = process_rank() if parts is not None else (0, 1)
    grams = [_gram(layer) for layer in layers]
    done: dict[int, Window] = {}
    assigned = range(rank, len(windows), processes)
    work = sum(len(windows[index].tokens) for index in assigned) * (len(layers) + PASS_STEPS)
    with steps(work, "profile", show_progress and rank == 0) as advance:
        for index in assigned:
            window = windows[index]
            result = None if parts is None else parts.load(index)
            if result is not None:
                advance(len(window.tokens) * (len(layers) + PASS_STEPS))
            else:
                result = _window_arrays(model, layers, grams, window, config, advance)
                if parts is not None:
                    parts.save(index, result)
            done[index] = result
    if parts is not None and processes > 1:
        wait_for_all()
        for index in set(range(len(windows))) - done.keys():
            result = parts.load(index)
            if result is None:
                raise GeosparseError(f"The windows in {parts.folder} are not complete: start the command again.")
            done[index] = result
    return [done[index] for index in range(len(windows))]


def _budgets(config: ProfileConfig) -> tuple[int, ...]:
    return tuple(n for n in config.budgets if n < config.longest)


def _window_arrays(
    model: Any,
    layers: Sequence[AttentionLayer],
    grams: Sequence[torch.Tensor],
    window: CalibrationWindow,
    config: ProfileConfig,
    advance: Callable[[int], object],
) -> Window:
    """One window, measured; of a built-in kind the errors only, at fewer queries."""
    length = len(window.tokens)
    generator = window_generator(config.seed, length, window.number)
    positions = sample_positions(
        length, min(config.queries, KIND_QUERIES) if window.built_in else config.queries, generator
    )
    queries = torch.cat([positions, torch.tensor([length - 1], dtype=torch.int64, device="cpu")])
    loss, calls, gradients = forward_backward(model, layers, window.tokens, queries, positions)
    advance(length * PASS_STEPS)
    chosen = [*evenly(config.geometry_queries, len(positions)), len(positions)]
    budgets = _budgets(config)

    def heads() -> Iterator[KvHead]:
        for call, gradient, gram in zip(calls, gradients, grams, strict=True):
            noise = torch.rand(
                config.random_sets, len(queries), length, generator=generator, dtype=torch.float32, device="cpu"
            )
            yield from kv_heads(call, gradient, gram, chosen, noise[:, chosen])

    parts = mapped(
        lambda head: measure(head, budgets, config.selectors, with_geometry=not window.built_in),
        heads(),
        parallel=all(call.key.device.type == "cpu" for call in calls),
    )
    per_layer, moments = [], []
    for layer in layers:
        arrays_of_heads, moments_of_heads = zip(*islice(parts, layer.kv_heads), strict=True)
        per_layer.append(joined(arrays_of_heads))
        moments.append(Moments.cat(moments_of_heads))
        advance(length)
    axes = {name: dimensions.index("layers") for name, dimensions in ARRAYS.items()} | dict.fromkeys(TAIL_ARRAYS, 1)
    arrays = {name: torch.stack([part[name] for part in per_layer], axis) for name, axis in axes.items()}
    arrays = {name: array.double() if name in TAIL_ARRAYS else array.float() for name, array in arrays.items()}
    return Window(arrays, Moments.stack(moments), loss / (length - 1))


def _gram(layer: AttentionLayer) -> torch.Tensor:
    """`[Hq, Dv, Dv]`: e^T gram e = |W_O^h e|^2, what a head's error weighs in the residual stream."""
    matrix = layer.output_matrix().view(-1, layer.heads, layer.value_dim)
    return torch.einsum("rhd,rhe->hde", matrix, matrix)
