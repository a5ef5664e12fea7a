"""The learning rate against Darknet's own for every policy, and what Darknet does not have."""

import pytest

from yolov4.cfg import Net, parse_cfg
from yolov4.schedule import bias_rate, check_rates, ema_decay, learning_rate, momentum


def test_every_policy_of_darknet(golden):
    for name, case in golden("learning_rate.json").items():
        keys = (f"{key}={value}" for key, value in case["net"].items())
        net = parse_cfg("\n".join(("[net]", *keys))).net
        rates = {i: learning_rate(int(i), net) for i in case["learning_rate"]}
        assert rates == pytest.approx(case["learning_rate"], rel=1e-6, abs=1e-20), name


def test_onecycle_climbs_in_burn_in_and_falls_along_a_cosine():
    keys = {"learning_rate": 0.01, "burn_in": 100, "max_batches": 1100, "final_fraction": 0.05}
    net = Net(**keys, policy="onecycle")
    rates = [learning_rate(i, net) for i in (50, 100, 600, 1100)]
    assert rates == pytest.approx([0.01 * 0.5**4, 0.01, 0.01 * 1.05 / 2, 0.0005])


def test_momentum_and_the_rate_of_biases_start_apart_in_burn_in():
    keys = {"learning_rate": 0.01, "burn_in": 10, "power": 1, "momentum": 0.9}
    net = Net(**keys, burn_in_momentum=0.5, burn_in_bias_rate=0.1)
    assert [momentum(i, net) for i in (0, 5, 10, 11)] == pytest.approx([0.5, 0.7, 0.9, 0.9])
    # linear from 0.1 to the other rate, which climbs itself
    assert [bias_rate(i, net) for i in (0, 5, 10)] == pytest.approx([0.1, (0.1 + 0.005) / 2, 0.01])
    net = Net(**keys)
    assert all(momentum(i, net) == 0.9 for i in range(1, 20))
    assert all(bias_rate(i, net) == learning_rate(i, net) for i in range(1, 20))


def test_ema_decay_rises():
    assert ema_decay(0, 0.9) == 0 and ema_decay(2000, 0.9) == pytest.approx(0.9 * (1 - 0.36788))


def test_sigmoid_ends_at_zero_however_long_the_training_is():
    net = Net(policy="sigmoid", gamma=0.01, step=1000)
    assert learning_rate(1000, net) == 0.0005 and learning_rate(500_000, net) < 1e-30


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ("policy=exp\ngamma=1e3", r"3: \[net\] gamma=1000"),
        ("policy=step\nscale=10", r"3: \[net\] scale=10"),
        ("policy=steps\nscales=1e9,1e9\nsteps=8,9", r"3: \[net\] scales=.* in iteration 9"),
        ("policy=poly\npower=-1", r"3: \[net\] power=-1"),
        ("burn_in=90\npower=-1e3", r"3: \[net\] power=-1000.* in iteration 1"),
        ("policy=sgdr\nlearning_rate=0", r"2: \[net\] policy=sgdr"),
    ],
)
def test_a_learning_rate_that_overflows_is_refused_with_line_and_key(keys, place):
    with pytest.raises(ValueError, match=f"^cfg:{place}"):
        check_rates(parse_cfg(f"[net]\n{keys}\nmax_batches=1000\n"))
