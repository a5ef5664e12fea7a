"""The learning rate and the momentum, pure functions of the iteration.
Source: Darknet's src/network.c, get_current_rate; onecycle (one half of a cosine) and what else starts apart in burn-in
as in recipes after Darknet."""

import math

import numpy as np

from yolov4.sections import Net


def learning_rate(iteration: int, net: Net) -> float:
    """Rate of the update that ends `iteration`, counted from 1: burn-in by the power, then the policy of [net]."""
    if iteration < net.burn_in:
        return net.learning_rate * (iteration / net.burn_in) ** net.power
    return net.learning_rate * _factor(iteration, net)


def bias_rate(iteration: int, net: Net) -> float:
    """Rate of the biases: that of the others, but for burn-in with burn_in_bias_rate."""
    rate = learning_rate(iteration, net)
    return _from(net.burn_in_bias_rate or rate, rate, iteration, net)


def momentum(iteration: int, net: Net) -> float:
    """Momentum: that of [net], but for burn-in with burn_in_momentum."""
    return _from(net.burn_in_momentum or net.momentum, net.momentum, iteration, net)


def _from(start: float, value: float, iteration: int, net: Net) -> float:
    """From `start` to `value` along a line in burn-in, then `value`."""
    done = iteration / net.burn_in if iteration < net.burn_in else 1.0
    return start + (value - start) * done


def _factor(iteration: int, net: Net) -> float:
    match net.policy:
        case "constant" | "sig":  # Darknet does not know the name sig and goes on with constant
            return 1.0
        case "steps":
            passed = [scale for step, scale in zip(net.steps, net.scales, strict=True) if step <= iteration]
            return math.prod(passed)
        case "step":
            return net.scale ** (iteration // net.step)
        case "exp":
            return float(np.float32(net.gamma)) ** iteration  # 32 bits show after some thousand iterations
        case "poly":
            return max(0.0, 1 - iteration / net.max_batches) ** net.power
        case "sigmoid":
            return 1 / (1 + math.exp(net.gamma * (iteration - net.step)))
        case "sgdr":
            lowest = net.learning_rate_min / net.learning_rate
            return _cosine(*_cycle(iteration, net), lowest)
        case "onecycle":
            return _cosine(iteration - net.burn_in, net.max_batches - net.burn_in, net.final_fraction)


def _cycle(iteration: int, net: Net) -> tuple[int, int]:
    """(iterations since the last restart, length of this cycle) of sgdr; each cycle is sgdr_mult times the last"""
    start, length = 0, net.sgdr_cycle or net.max_batches
    while start + length < iteration:
        start, length = start + length, length * net.sgdr_mult
    return iteration - start, length


def _cosine(done: int, length: int, lowest: float) -> float:
    """From 1 at 0 down to `lowest` at `length`, along half a cosine."""
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * done / length)) / 2
