"""The learning rate against Darknet's own for every policy, and the one-cycle that Darknet does not have."""

import pytest

from yolov4.cfg import parse_cfg
from yolov4.schedule import bias_rate, learning_rate, momentum
from yolov4.sections import Net


def test_every_policy_of_darknet(golden):
    for name, case in golden("learning_rate.json").items():
        net = parse_cfg("[net]\n" + "\n".join(f"{key}={value}" for key, value in case["net"].items())).net
        for iteration, rate in case["learning_rate"].items():
            assert learning_rate(int(iteration), net) == pytest.approx(rate, rel=1e-6, abs=1e-20), (name, iteration)


def test_onecycle_climbs_in_burn_in_and_falls_along_a_cosine():
    net = Net(learning_rate=0.01, burn_in=100, max_batches=1100, policy="onecycle", final_fraction=0.05)
    assert learning_rate(50, net) == pytest.approx(0.01 * 0.5**4)
    assert learning_rate(100, net) == pytest.approx(0.01)
    assert learning_rate(600, net) == pytest.approx(0.01 * 1.05 / 2)
    assert learning_rate(1100, net) == pytest.approx(0.0005)


def test_steps_multiply():
    net = Net(learning_rate=1.0, policy="steps", steps=(10, 20), scales=(0.1, 0.5))
    assert [learning_rate(i, net) for i in (9, 10, 19, 20)] == pytest.approx([1, 0.1, 0.1, 0.05])


def test_momentum_and_the_rate_of_biases_start_apart_in_burn_in():
    net = Net(learning_rate=0.01, burn_in=10, power=1, momentum=0.9, burn_in_momentum=0.5, burn_in_bias_rate=0.1)
    assert [momentum(i, net) for i in (0, 5, 10, 11)] == pytest.approx([0.5, 0.7, 0.9, 0.9])
    # from 0.1 along a line to what the rate of the others is there, which climbs itself
    assert [bias_rate(i, net) for i in (0, 5, 10)] == pytest.approx([0.1, (0.1 + 0.005) / 2, 0.01])


def test_without_the_keys_they_are_those_of_all():
    net = Net(learning_rate=0.01, burn_in=10, momentum=0.9)
    assert all(momentum(i, net) == 0.9 and bias_rate(i, net) == learning_rate(i, net) for i in range(1, 20))
