"""What is drawn for augmentation: ranges, shares, and that it comes from the generator alone.
Source of what is expected: Darknet's src/data.c, and cases worked by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from yolov4 import draws

NET = SimpleNamespace(flip=1, hue=0.1, saturation=1.5, exposure=1.5, letter_box=0, blur=0, gaussian_noise=0)


def test_noise_only_brightens():
    noise = draws.draw_noise(np.random.default_rng(0), (200, 100), 20)
    assert noise.shape == (100, 200, 3) and noise.dtype == np.uint8
    assert 0.48 < (noise == 0).mean() < 0.54  # the negative half is cut off
    assert abs(noise[noise > 0].mean() - 20 * np.sqrt(2 / np.pi)) < 0.6
    assert draws.draw_noise(np.random.default_rng(0), (200, 100), 0) is None
    strong = [draws.draw_noise(np.random.default_rng(0), (50, 50), sigma) for sigma in (127, 300)]
    assert np.array_equal(*strong)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("corner", range(4))
def test_push_to_corner(corner, flip):
    left, right = (0, -3), (-3, 0)
    horizontal = [(left, right, left, right), (right, left, right, left)][flip][corner]
    vertical = [(0, 5), (0, 5), (5, 0), (5, 0)][corner]
    pushed = draws.push_to_corner((7, -10, 2, 3, flip, 0.1, 1.2, 1.3), corner)
    assert pushed == (*horizontal, *vertical, flip, 0.1, 1.2, 1.3)


def drawn(net=NET, size=(416, 416), image_size=(500, 375), count=3000, **head):
    head = SimpleNamespace(**{"jitter": 0.3, "resize": 1.0, **head})
    rng = np.random.default_rng(1)
    return np.array([draws.draw_crop(rng, net, head, image_size, size) for _ in range(count)])


def test_draws_of_jitter_flip_and_colours():
    params = drawn()
    for column, limit in ((0, 150), (1, 150), (2, 112), (3, 112)):  # 375 * 0.3 = 112.5, truncated
        assert -limit <= params[:, column].min() < -limit + 5 and limit - 5 < params[:, column].max() <= limit
        assert abs(params[:, column].mean()) < 6
    assert 0.46 < params[:, 4].mean() < 0.54
    assert np.abs(params[:, 5]).max() <= 0.1 and np.abs(params[:, 5].mean()) < 0.01
    for column in (6, 7):
        assert params[:, column].min() >= 1 / 1.5 and params[:, column].max() <= 1.5
        assert 0.46 < (params[:, column] > 1).mean() < 0.54
    assert np.array_equal(params, drawn())


@pytest.mark.parametrize(("resize", "low", "high"), [(1.5, -125, 83), (0.5, -250, 0), (1.0, 0, 0)])
def test_draws_of_resize(resize, low, high):
    params = drawn(jitter=0.0, resize=resize)
    assert low - 1 <= params[:, 0].min() <= low + 2 and high - 2 <= params[:, 0].max() <= high
    near, far = params[:, [0, 2]], params[:, [1, 3]]
    np.testing.assert_allclose(near[:, 0] / 500, near[:, 1] / 375, atol=0.006)  # one draw for left and top
    np.testing.assert_allclose(far[:, 0] / 500, far[:, 1] / 375, atol=0.006)
    assert high == low or abs(np.corrcoef(near[:, 0], far[:, 0])[0, 1]) < 0.1


def test_letter_box_widens_to_the_network():
    net = SimpleNamespace(**{**vars(NET), "letter_box": 1})
    assert (drawn(net, jitter=0.0, count=5)[:, :4] == (0, 0, -62, -62)).all()
    assert (drawn(net, size=(416, 208), jitter=0.0, count=5)[:, :4] == (-125, -125, 0, 0)).all()


def test_draws_of_cut_blur_and_noise():
    rng = np.random.default_rng(0)
    cuts = np.array([draws.draw_cut(rng, (160, 416)) for _ in range(4000)])
    assert cuts.min(0).tolist() == [32, 83] and cuts.max(0).tolist() == [128, 332]
    net = SimpleNamespace(blur=7, gaussian_noise=30)
    effects = [draws.draw_effects(rng, net) for _ in range(3000)]
    assert {blur for blur, _ in effects} == {0, 1, 7} and {noise for _, noise in effects} == {0, 30}
    assert 0.3 < np.mean([blur == 1 for blur, _ in effects]) < 0.37
    assert draws.draw_effects(rng, NET) == (0, 0)
