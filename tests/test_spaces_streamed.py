"""A study's model as a stream: call by call it comes to what the whole sequence gives."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.deployment.interpreter import Session
from objectives.deployment.lower import lower_streaming
from spaces.build import build, serving_model, weights_of
from spaces.errors import ModelError
from spaces.genotype import Architecture
from spaces.signature import Signature
from spaces.streamed import streamed

FLOATS = Signature("classification", 12, 3, 4, mean=(1.0, -2.0, 0.5), std=(2.0, 0.1, 1.0))
TOKENS = Signature("tagging", 12, 0, 4, vocabulary=9)


@pytest.mark.parametrize(
    ("architecture", "signature", "frames"),
    [
        (Architecture("lstm", 6, layers=2, residual=True), FLOATS, 3),
        (Architecture("gru", 6, rank=2, frame_stack=2, readout="mean"), FLOATS, 4),
        (Architecture("qrnn", 6, layers=2), replace(TOKENS, kind="tagging"), 1),
        (
            Architecture("mingru", 6),
            replace(FLOATS, kind="regression", target_mean=(5.0,) * 4, target_std=(2.0,) * 4),
            1,
        ),
    ],
)
def test_a_stream_ends_with_the_answer_of_the_whole_sequence(architecture, signature, frames, tmp_path):
    model = build(architecture, signature, 0)
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 12, 3)).astype(np.float32)
    if signature.vocabulary:
        x = random.integers(1, 9, (2, 12)).astype(np.int32)
    expected = serving_model(model, signature)(x).numpy()
    path = tmp_path / "streaming.tflite"
    path.write_bytes(lower_streaming(architecture, signature, weights_of(model), frames=frames, batch=2))
    states = streamed(architecture, signature, weights_of(model), frames).states
    state = {kept.name: np.repeat(kept.first[None], 2, axis=0) for kept in states}
    session, answers = Session(path), []
    for at in range(0, 12, frames):
        answer = session.run({"x": x[:, at : at + frames], **state})
        state = {name: answer[name] for name in state}
        answers.append(answer["y"])
    got = np.concatenate(answers, axis=1) if signature.sequences else answers[-1]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "signature", "frames", "words"),
    [
        ({"bidirectional": True}, FLOATS, 1, "work backwards in time too"),
        ({"brick": 3}, FLOATS, 1, "reads bricks of steps side by side"),
        ({"frame_stack": 2}, FLOATS, 3, "3 frames a call must divide its 12 time steps .* give one of 2, 4, 6, 12"),
        ({}, replace(FLOATS, masked=True), 2, "stream one time step a call, but got 2"),
    ],
)
def test_what_cannot_stream_says_why(more, signature, frames, words):
    with pytest.raises(ModelError, match=words):
        streamed(Architecture("gru", 6, **more), signature, {}, frames)
