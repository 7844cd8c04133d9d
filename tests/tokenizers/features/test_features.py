from __future__ import annotations

from contextvars import copy_context

import pytest
import torch
from torch.nn import functional as F

from mapet.errors import NotAllowedError, SettingsError, TokenizerError
from mapet.registry import allow
from mapet.tokenizers.features.base import CONTRAST_FLOOR, Whitening, create_features


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_images(count: int, size: int = 32) -> torch.Tensor:
    coarse = torch.rand(count, 3, size // 3, size // 3, generator=seeded(5))
    return F.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module", params=["pixels", "coates"])
def fitted(request):
    extractor = create_features(request.param, image_size=16, patch_size=4, dim=24, **_small(request.param))
    extractor.fit(smooth_images(60, 16), seeded())
    return extractor


def _small(name: str) -> dict[str, int]:
    return {"num_filters": 32} if name == "coates" else {}


def naive_window(window: torch.Tensor) -> torch.Tensor:
    values = window.reshape(-1).double()
    return (values - values.mean()) / (values.var(correction=0) + CONTRAST_FLOOR).sqrt()


def test_whitening_gives_unit_variance_without_damping():
    samples = torch.randn(5000, 6, generator=seeded()) @ torch.randn(6, 6, generator=seeded(1)) + 50.0
    whitening = Whitening(6, 6, epsilon=0.0)
    whitening.fit(samples.split(700))
    torch.testing.assert_close(torch.cov(whitening(samples).T), torch.eye(6), atol=2e-3, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_f22_samples_that_are_all_alike_are_refused(noise: float) -> None:
    with pytest.raises(TokenizerError, match="images without contrast"):
        Whitening(8, 4, 0.1).fit([0.3 + noise * torch.randn(50, 8, generator=seeded())])


@pytest.mark.parametrize("name", ["pixels", "coates"])
@pytest.mark.parametrize("levels", [(0, 0), (128, 128), (10, 200)], ids=["black", "grey", "two greys"])
def test_f22_images_without_contrast_are_refused_at_once(name: str, levels: tuple[int, int]) -> None:
    extractor = create_features(name, image_size=32, patch_size=8)
    images = torch.tensor(levels).div(255).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    with pytest.raises(TokenizerError, match="images without contrast"):
        extractor.fit(images, seeded())


def test_shapes_and_settings(fitted):
    images = smooth_images(5, 16)
    features = fitted(images)
    assert features.shape == (5, *fitted.grid_size, fitted.dim) == (5, 4, 4, 24)
    again = create_features(**fitted.settings())
    assert not again(images).isfinite().any()
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again(images), features)


def test_fit_is_deterministic(fitted):
    again = create_features(**fitted.settings())
    again.fit(smooth_images(60, 16), seeded())
    torch.testing.assert_close(again(smooth_images(2, 16)), fitted(smooth_images(2, 16)))


def test_features_ignore_contrast_but_not_content(fitted):
    images = smooth_images(4, 16)
    features = fitted(images)
    assert (fitted(0.8 * images + 0.1) - features).norm() < 0.1 * features.norm()
    assert (fitted(images.flip(3)) - features).norm() > 0.5 * features.norm()


def test_constant_images_have_finite_features(fitted):
    assert fitted(torch.zeros(1, 3, 16, 16)).isfinite().all()


def test_pixel_windows_are_centred_on_their_patches():
    extractor = create_features("pixels", image_size=16, patch_size=4, window=6, dim=20)
    extractor.fit(smooth_images(60, 16), seeded())
    image = smooth_images(3, 16)[2:]
    padded = F.pad(image, (1, 1, 1, 1), mode="reflect")
    for row, column in [(0, 0), (1, 2), (3, 3)]:
        window = naive_window(padded[0, :, 4 * row : 4 * row + 6, 4 * column : 4 * column + 6])
        expected = extractor.whitening(window.float())
        torch.testing.assert_close(extractor(image)[0, row, column], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("window", "stride"), [(4, 1), (5, 3)])
def test_coates_equals_a_naive_computation(window, stride):
    options = {"num_filters": 10, "window": window, "stride": stride, "neighbourhood": 1.5, "dim": 8}
    extractor = create_features("coates", image_size=12, patch_size=4, **options)
    extractor.fit(smooth_images(40, 12), seeded())
    image = smooth_images(3, 12)[2]
    codes: dict[tuple[int, int], torch.Tensor] = {}
    for top in range(0, 13 - window, stride):
        for left in range(0, 13 - window, stride):
            whitened = extractor.window_whitening(naive_window(image[:, top : top + window, left : left + window]).float())
            distances = (whitened - extractor.filters).norm(dim=1)
            codes[top, left] = (distances.mean() - distances).clamp_min(0)
    for row in range(3):
        for column in range(3):
            near = [
                code
                for (top, left), code in codes.items()
                if max(abs(top + window / 2 - 4 * row - 2), abs(left + window / 2 - 4 * column - 2)) <= 3
            ]
            expected = extractor.code_whitening(torch.stack(near).mean(0))
            torch.testing.assert_close(extractor(image[None])[0, row, column], expected, atol=2e-3, rtol=1e-3)


def test_coates_neighbourhood_between_windows_takes_the_nearest():
    extractor = create_features("coates", image_size=16, patch_size=2, window=6, stride=5, neighbourhood=0.1)
    assert extractor.pooling.sum(1).allclose(torch.ones(8))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pixels", {"patch_size": 5}, "Image size 32 is not a multiple of the patch size 5.*such as 30"),
        ("pixels", {"windows": 8}, "no option 'windows'. Did you mean 'window'"),
        ("pixels", {"window": 2}, "window of 2 pixels does not fit.*Allowed: 4 to 66"),
        ("coates", {"window": 33}, "33 pixels do not fit.*1 to 32"),
        ("coates", {"num_filters": 1}, "num_filters"),
        ("pixels", {"window": "abc"}, "features 'pixels': window = 'abc' is not allowed. Allowed: a whole number"),
        ("pixels", {"window": True}, "window = True"),
        ("coates", {"epsilon": [1]}, "epsilon = .* Allowed: a number"),
        ("coates", {"dim": 0}, "at least one value; dim is 0"),
        ("test_vit", {"pretrained": "no"}, "pretrained = .* Allowed: true or false"),
        ("timm", {}, "The kind of features 'timm' needs the option 'model'"),
        ("coats", {}, "no features called 'coats'. Did you mean 'coates'"),
        ("test_vit", {"image_size": 160, "patch_size": 32}, "feature map of 10 x 10.*patch size 16, or image size 80"),
    ],
)
def test_wrong_requests(name, options, message):
    with pytest.raises(TokenizerError, match=message):
        create_features(name, **{"image_size": 32, "patch_size": 4, **options})


def test_a_class_of_the_users_own():
    name, context = "mapet.tokenizers.features.pixels:PixelFeatures", copy_context()
    with pytest.raises(NotAllowedError, match=f"add --allow {name}"):
        create_features(name, image_size=8, patch_size=4)
    context.run(allow, name, "mapet.nowhere:Features")
    assert context.run(create_features, name, image_size=8, patch_size=4).grid_size == (2, 2)
    with pytest.raises(SettingsError, match="cannot be imported"):
        context.run(create_features, "mapet.nowhere:Features", image_size=8, patch_size=4)


def test_fingerprints_cover_settings_and_tensors(fitted):
    again = create_features(**fitted.settings())
    again.load_state_dict(fitted.state_dict())
    assert again.fingerprint == fitted.fingerprint
    next(again.buffers())[0] += 1
    assert again.fingerprint != fitted.fingerprint
    assert (
        create_features("pixels", image_size=8, patch_size=4).fingerprint
        != create_features("pixels", image_size=8, patch_size=2).fingerprint
    )
