"""Learning rate, momentum and decay of averaged weights: pure functions of the iteration.
Source: Darknet's src/network.c, get_current_rate; onecycle and the warm-up of YOLOv5's recipes."""

import math

import numpy as np

from yolov4.cfg import Net

FACTORS = {"steps": "scales", "step": "scale", "exp": "gamma", "poly": "power"}  # of a policy


def learning_rate(iteration: int, net: Net) -> float:
    """Rate of the update that ends `iteration`, counted from 1: burn-in, then the policy."""
    return net.learning_rate * _factor(iteration, net)


def check_rates(network):
    """Raises ValueError with line and key where a learning rate of the training is beyond 1e12.
    It is highest where burn-in, a step or the training begins or ends."""
    net = network.net
    for iteration in (1, net.burn_in, *net.steps, net.max_batches):
        if iteration in range(1, net.max_batches + 1):
            try:
                rate = learning_rate(iteration, net)
            except ArithmeticError:
                rate = math.inf
            if not abs(rate) <= 1e12:
                key = "power" if iteration < net.burn_in else FACTORS.get(net.policy, "policy")
                raise ValueError(
                    f"{network.where(net, key)} {key}={getattr(net, key)} makes the learning rate "
                    f"{rate:g} in iteration {iteration}, expected at most 1e12"
                )


def bias_rate(iteration, net):
    """Learning rate of the biases: that of the weights, but in burn-in with burn_in_bias_rate."""
    rate = learning_rate(iteration, net)
    return _warm_up(net.burn_in_bias_rate or rate, rate, iteration, net)


def momentum(iteration, net):
    """Momentum of the update: that of [net], but in burn-in with burn_in_momentum."""
    return _warm_up(net.burn_in_momentum or net.momentum, net.momentum, iteration, net)


def ema_decay(iteration, decay):
    """Share that averaged weights keep in an iteration: rises from 0 to `decay`, as in YOLOv5."""
    return decay * (1 - math.exp(-iteration / 2000))


def _warm_up(start, value, iteration, net):
    """Linear from `start` to `value` in burn-in."""
    return start + (value - start) * min(iteration / max(net.burn_in, 1), 1.0)


def _factor(iteration, net):
    if iteration < net.burn_in:
        return (iteration / net.burn_in) ** net.power
    match net.policy:
        case "steps":
            pairs = zip(net.steps, net.scales, strict=True)
            return math.prod(scale for step, scale in pairs if step <= iteration)
        case "step":
            return net.scale ** (iteration // net.step)
        case "exp":  # in float32, as in Darknet: it shows after some thousand iterations
            return float(np.float32(net.gamma)) ** iteration
        case "poly":
            return max(0.0, 1 - iteration / net.max_batches) ** net.power
        case "sigmoid":
            # where exp would overflow, the rate is 0
            return 1 / (1 + math.exp(min(net.gamma * (iteration - net.step), 700)))
        case "sgdr":
            done, length = iteration, net.sgdr_cycle or net.max_batches
            while done > length:  # each cycle is sgdr_mult times as long as the last
                done, length = done - length, length * net.sgdr_mult
            return _cosine(done, length, net.learning_rate_min / net.learning_rate)
        case "onecycle":
            length = net.max_batches - net.burn_in
            return _cosine(iteration - net.burn_in, length, net.final_fraction)
    return 1.0  # constant; Darknet treats "sig" as that too


def _cosine(done, length, lowest):
    """From 1 at 0 down to `lowest` at `length`, along half a cosine."""
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * done / length)) / 2
