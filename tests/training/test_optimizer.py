import jax.numpy as jnp
import numpy as np
import pytest

from training.optimizer import learning_rate_schedule, make_optimizer
from training.settings import OptimizerSettings


def test_linear_schedule():
    schedule = learning_rate_schedule(OptimizerSettings())
    for step in (0, 1, 250, 499, 500, 501, 50_000, 99_999, 100_000):
        expected = 2e-5 * (step / 500 if step < 500 else (100_000 - step) / 99_500)
        np.testing.assert_allclose(schedule(step), expected, rtol=2e-4, atol=1e-12)


def test_warmup_longer_than_the_run():
    with pytest.raises(ValueError, match="warmup_steps=500 leaves nothing of num_steps=100"):
        learning_rate_schedule(OptimizerSettings(warmup_steps=500, num_steps=100))


@pytest.mark.parametrize("bias_correction", [True, False])
def test_adamw_by_hand(bias_correction):
    """Three steps of clipped AdamW in float64; biases and norms are not decayed."""
    rng = np.random.default_rng(0)
    names = ("up_kernel", "up_bias", "norm_scale", "token")
    parameters = {name: rng.normal(size=5) for name in names}
    rate, b1, b2, epsilon, decay = 1e-2, 0.9, 0.999, 1e-6, 0.1
    settings = OptimizerSettings(
        schedule="constant", learning_rate=rate, warmup_steps=0, num_steps=10, adam_b1=b1, adam_b2=b2,
        adam_epsilon=epsilon, weight_decay=decay, adam_bias_correction=bias_correction)
    optimizer = make_optimizer(settings, learning_rate_schedule(settings))
    ours = {name: jnp.asarray(value, jnp.float32) for name, value in parameters.items()}
    state = optimizer.init(ours)
    first, second = ({name: np.zeros(5) for name in names} for _ in range(2))
    for step in range(1, 4):
        gradient = {name: rng.normal(size=5) * 3 for name in names}
        updates, state = optimizer.update(
            {name: jnp.asarray(value, jnp.float32) for name, value in gradient.items()}, state, ours)
        ours = {name: ours[name] + updates[name] for name in names}
        norm = np.sqrt(sum((value**2).sum() for value in gradient.values()))
        for name in names:
            clipped = gradient[name] / norm
            first[name] = b1 * first[name] + (1 - b1) * clipped
            second[name] = b2 * second[name] + (1 - b2) * clipped**2
            m, v = first[name], second[name]
            if bias_correction:
                m, v = m / (1 - b1**step), v / (1 - b2**step)
            direction = m / (np.sqrt(v) + epsilon)
            decays = name in ("up_kernel", "token")
            parameters[name] = parameters[name] - rate * (direction + decay * decays * parameters[name])
    for name in names:
        np.testing.assert_allclose(ours[name], parameters[name], rtol=1e-5)


TORCH_ADAMW = """
import torch

parameter = torch.nn.Parameter(torch.tensor(arguments["parameter"], dtype=torch.float64))
rate, (b1, b2), epsilon, decay = (arguments[name] for name in ("rate", "betas", "epsilon", "decay"))
adamw = torch.optim.AdamW([parameter], lr=rate, betas=(b1, b2), eps=epsilon, weight_decay=decay)
result = []
for gradient in arguments["gradients"]:
    parameter.grad = torch.tensor(gradient, dtype=torch.float64)
    adamw.step()
    result.append(parameter.tolist())
"""


def test_adamw_is_pytorchs(peer):
    """Step by step to 1e-6; without bias correction the first step is its, by the factor that the correction has."""
    rng = np.random.default_rng(1)
    parameter, gradients = rng.normal(size=6), rng.normal(size=(4, 6))
    rate, betas, epsilon, decay = 1e-2, (0.9, 0.999), 1e-6, 0.1
    torchs = peer(TORCH_ADAMW, parameter=parameter.tolist(), gradients=gradients.tolist(), rate=rate, betas=betas,
                  epsilon=epsilon, decay=decay)
    for bias_correction in (True, False):
        settings = OptimizerSettings(
            schedule="constant", learning_rate=rate, warmup_steps=0, num_steps=10, adam_b1=betas[0], adam_b2=betas[1],
            adam_epsilon=epsilon, weight_decay=decay, clip_norm=0.0, adam_bias_correction=bias_correction)
        optimizer = make_optimizer(settings, learning_rate_schedule(settings))
        ours = {"kernel": jnp.asarray(parameter, jnp.float32)}
        state = optimizer.init(ours)
        for number, gradient in enumerate(gradients if bias_correction else gradients[:1]):
            updates, state = optimizer.update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, ours)
            ours = {"kernel": ours["kernel"] + updates["kernel"]}
            expected = np.array(torchs[number])
            if not bias_correction:  # m and v are (1 - b1) g and (1 - b2) g^2
                corrected = gradient / (np.abs(gradient) + epsilon)
                raw = (1 - betas[0]) * gradient / (np.sqrt(1 - betas[1]) * np.abs(gradient) + epsilon)
                expected = expected + rate * (corrected - raw)
            np.testing.assert_allclose(ours["kernel"], expected, atol=1e-6)
