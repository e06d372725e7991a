"""The steps of an upload, one by one and as a pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trifed.config.settings import WireSettings
from trifed.federation.client_update import ClientState
from trifed.federation.compression import make_compression
from trifed.federation.messages import Header
from trifed.federation.run_folder import RunFolder
from trifed.federation.state_tensors import state_of, state_tensors
from trifed.federation.upload import (
    RECEIVED,
    RESIDUAL,
    ClipAndNoise,
    ErrorFeedback,
    UploadPipeline,
    UploadStep,
    upload_pipeline,
)

SIZE = 20_000
LAYOUT = (("a.lora_C.weight", (100, 100)), ("head.weight", (100, 100)))
RNG = np.random.default_rng(0)
REFERENCE = RNG.standard_normal(SIZE).astype(np.float32)
CHANGE = RNG.standard_normal(SIZE).astype(np.float32)
VALUES = REFERENCE + CHANGE


def header(round_number: int) -> Header:
    return Header("upload", "0123456789ab", "fedcba9876543210", round_number, 0, 40)


def no_noise(round_number):
    return np.zeros


def seeded_by_round(round_number):
    return np.random.default_rng(round_number).standard_normal


# -- clip and noise


@pytest.mark.parametrize("clip", [0.5, 1e3])
def test_a_change_is_clipped_to_the_norm_and_a_shorter_one_is_left(clip):
    step = ClipAndNoise(clip, 1.0, no_noise)
    change = step.apply(VALUES, REFERENCE, 1, {}) - REFERENCE
    length = np.linalg.norm(CHANGE)
    np.testing.assert_allclose(change, CHANGE * min(1, clip / length), atol=1e-6)
    assert np.linalg.norm(change) <= clip * 1.0001


def test_noise_has_the_standard_deviation_clip_times_multiplier():
    """The standard error of the deviation of n numbers is σ/√(2n); five of them."""
    noise = ClipAndNoise(0.5, 3.0, seeded_by_round).apply(REFERENCE, REFERENCE, 1, {}) - REFERENCE
    assert noise.std() == pytest.approx(1.5, rel=5 / np.sqrt(2 * SIZE))
    assert abs(noise.mean()) < 5 * 1.5 / np.sqrt(SIZE)


def test_each_round_has_noise_of_its_own_and_nothing_is_remembered():
    step = ClipAndNoise(1.0, 1.0, seeded_by_round)
    one, again, other = (step.apply(VALUES, REFERENCE, number, {}) for number in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert step.settle(one, one, {"x": one}).keys() == {"x"}


def test_a_change_that_is_not_finite_is_sent_as_none():
    values = np.full(SIZE, np.nan, np.float32)
    np.testing.assert_array_equal(ClipAndNoise(1.0, 1.0, no_noise).apply(values, REFERENCE, 1, {}), REFERENCE)


# -- error feedback


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_delivered_changes_and_the_residual_add_up_to_the_wanted_changes(bits):
    rng, compression = np.random.default_rng(1), make_compression(LAYOUT, WireSettings(bits=bits))
    pipeline, memory = upload_pipeline((), compression), {}
    wanted, delivered = np.zeros(SIZE), np.zeros(SIZE)
    for number in range(1, 51):
        change = (rng.standard_normal(SIZE) + 0.1).astype(np.float32)
        payload, memory = pipeline.encode(header(number), REFERENCE + change, REFERENCE, memory)
        delivered += compression.decode(payload, header(number), REFERENCE)[1] - REFERENCE
        wanted += change
    np.testing.assert_allclose(delivered + memory[RESIDUAL], wanted, atol=1e-3)
    assert np.abs(memory[RESIDUAL]).max() < 0.3 * np.abs(wanted).max()


def test_error_feedback_starts_from_nothing_and_keeps_other_memory():
    step = ErrorFeedback()
    assert step.apply(VALUES, REFERENCE, 1, {}) is VALUES
    memory = step.settle(VALUES, REFERENCE, {RECEIVED: REFERENCE})
    np.testing.assert_array_equal(memory[RESIDUAL], VALUES - REFERENCE)
    assert memory[RECEIVED] is REFERENCE
    np.testing.assert_array_equal(step.apply(VALUES, REFERENCE, 2, memory), VALUES + (VALUES - REFERENCE))


# -- the pipeline


def test_the_empty_pipeline_sends_the_values_and_remembers_nothing():
    pipeline = upload_pipeline((), make_compression(LAYOUT, WireSettings(bits=32)))
    assert pipeline.steps == []
    payload, memory = pipeline.encode(header(1), VALUES, REFERENCE, {})
    sent = pipeline.compression.decode(payload, header(1), REFERENCE)[1]
    assert sent.tobytes() == VALUES.tobytes()
    assert memory == {} and pipeline.receive(VALUES, memory) == {}


def test_the_base_step_is_the_identity():
    step, memory = UploadStep(), {"x": VALUES}
    assert step.apply(VALUES, REFERENCE, 1, memory) is VALUES
    assert step.settle(VALUES, REFERENCE, memory) is memory


@pytest.mark.parametrize(
    ("noise", "bits", "identity", "remembers"),
    [
        (False, 32, "full-precision", False),
        (False, 1, "error-feedback | quantise bits=1", True),
        (True, 32, "clip-and-noise clip=1 z=0.82 | full-precision", True),
        (True, 4, "clip-and-noise clip=1 z=0.82 | error-feedback | quantise bits=4", True),
    ],
)
def test_identity_and_the_memory_of_downloads(noise, bits, identity, remembers):
    steps = [ClipAndNoise(1.0, 0.82, no_noise)] if noise else []
    pipeline = upload_pipeline(steps, make_compression(LAYOUT, WireSettings(bits=bits)))
    assert pipeline.identity == identity
    assert (RECEIVED in pipeline.receive(VALUES, {})) == remembers


def test_error_feedback_comes_after_noise_so_residuals_hold_noised_values_alone():
    """Two clients with other data but the same noised change send the same bytes and remember the same."""

    class Scripted(ClipAndNoise):
        def apply(self, values, reference, round_number, memory):
            return reference + CHANGE * round_number

    results = []
    for values in (VALUES, -VALUES):
        pipeline = upload_pipeline([Scripted(1.0, 1.0, no_noise)], make_compression(LAYOUT, WireSettings(bits=1)))
        memory, sent = {}, []
        for number in (1, 2):
            payload, memory = pipeline.encode(header(number), values, REFERENCE, memory)
            sent.append(pipeline.compression.decode(payload, header(number), REFERENCE)[1].tobytes())
        results.append((sent, memory[RESIDUAL].tobytes()))
    assert results[0] == results[1]


def test_steps_are_applied_in_order():
    class Add(UploadStep):
        def apply(self, values, reference, round_number, memory):
            return values + round_number

    class Double(UploadStep):
        def apply(self, values, reference, round_number, memory):
            return values * 2

    compression = make_compression(LAYOUT, WireSettings(bits=32))
    for steps, wanted in (([Add(), Double()], (VALUES + 3) * 2), ([Double(), Add()], VALUES * 2 + 3)):
        payload, _ = UploadPipeline(steps, compression).encode(header(3), VALUES, REFERENCE, {})
        np.testing.assert_array_equal(compression.decode(payload, header(3), REFERENCE)[1], wanted)


def test_the_memory_is_saved_and_restored_with_the_client(tmp_path):
    """An interrupted client sends the bytes that an uninterrupted one sends; file names of arrays stay."""
    pipeline = upload_pipeline((), make_compression(LAYOUT, WireSettings(bits=1)))
    memory = pipeline.encode(header(1), VALUES, REFERENCE, pipeline.receive(REFERENCE, {}))[1]
    state = ClientState({"head.bias": torch.zeros(3)}, {}, 4, memory)
    folder = RunFolder.create(tmp_path / "run")
    folder.write_tensors("state.safetensors", state_tensors(state), {})
    arrays = folder.read_arrays("state.safetensors")
    assert {name for name in arrays if name.startswith("wire/")} == {"wire/received", "wire/owed"}
    restored = state_of({name: torch.from_numpy(array) for name, array in arrays.items()}, 4).memory
    one, other = (pipeline.encode(header(2), VALUES + 1, REFERENCE, kept)[1] for kept in (memory, restored))
    assert one[RESIDUAL].tobytes() == other[RESIDUAL].tobytes()
