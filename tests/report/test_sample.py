"""What a report shows of training images must have the tokens that the run was trained on, whatever its view."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mapet.config import load_recipe
from mapet.config.settings import hash_of_science
from mapet.data.decode import decode_image
from mapet.data.regions import regions_of
from mapet.data.source import sample_key
from mapet.data.sources import open_source
from mapet.data.views import Rendering
from mapet.errors import DataError, NotThereError
from mapet.pretraining.pretrain import pretrain
from mapet.report import sample
from mapet.report.html import write_report
from mapet.report.reading import ReportedRun
from mapet.runtime.files import write_json
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.read import TokenStore
from mapet.token_store.token_source import OnlineTokens
from mapet.tokenizers.load import load_tokenizer
from tests.report.conftest import TINY


@pytest.fixture(scope="module", autouse=True)
def all_images():
    """As many as a user's report draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "SAMPLED_IMAGES", 1000)
        yield


@pytest.fixture(scope="module")
def views(finished, tmp_path_factory) -> dict[str, RunDirectory]:
    folder = tmp_path_factory.mktemp("views")
    return {
        name: pretrain(
            "digits",
            load_recipe("digits", [*TINY, f"view.name={name}", "view.count=2", "objective.name=mim"]),
            folder / name,
            tokenizer=finished.tokenizer,
        )
        for name in ("stored", "online")
    }


def regions(reported: ReportedRun, count: int) -> list[torch.Tensor]:
    """The first sampled images, rendered again from the files, at 16 px as model and tokenizer see them."""
    source = open_source("digits", "all")
    by_name = {source.describe(index): index for index in range(len(source))}
    regions = regions_of(reported.settings.view, reported.settings.seed)
    found = []
    for name in reported.sample.names[:count]:
        content = source.read(by_name[name])
        image = decode_image(content)
        found.append(Rendering(16)(image, regions.region(image.width, image.height, sample_key(content), 0)))
    return found


@pytest.mark.parametrize("name", ["stored", "online"])
def test_images_and_tokens_are_of_the_same_crop(views, finished, name):
    reported = ReportedRun(views[name], name)
    drawn = reported.sample
    rendered = regions(reported, 40)
    np.testing.assert_array_equal(drawn.images[:40], torch.stack(rendered).permute(0, 2, 3, 1).numpy())
    tokenizer = load_tokenizer(finished.tokenizer)
    np.testing.assert_array_equal(drawn.ids[:40], tokenizer.encode(torch.stack(rendered) / 255).numpy())
    assert len(drawn.ids) == len(drawn.images) == len(drawn.names) > 700


def test_usage_of_stored_views_counts_all_of_them(views):
    reported = ReportedRun(views["stored"], "stored")
    store = reported.tokens.store
    assert store is not None
    assert reported.usage.sum() == store.ids.size == 2 * 16 * len(store)
    assert reported.usage.tolist() == np.bincount(np.asarray(store.ids).ravel(), minlength=24).tolist()
    assert reported.counted == f"{store.ids.size:,} stored tokens of {len(store):,} images in 2 views each"


def test_usage_without_a_store_counts_the_sample(views):
    reported = ReportedRun(views["online"], "online")
    assert isinstance(reported.tokens, OnlineTokens)
    assert reported.usage.tolist() == np.bincount(reported.sample.ids.ravel(), minlength=24).tolist()
    assert reported.counted == "16,000 tokens of one crop of each of 1,000 images"


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("name", ["stored", "online"])
def test_page_shows_everything(views, tmp_path, name):
    text = write_report([views[name]], tmp_path / "page.html").read_text(encoding="utf-8")
    without_signs = name == "online"  # a run of few steps, and without a store there are no token frequencies to compare with
    assert text.count("Not shown") == 1 + without_signs  # not judged yet
    assert ("a training image drawn by the seed" in text) == (name == "stored")
    assert "codes are used" in text


def test_online_tokenizer_may_be_given_or_its_own(views, finished, tmp_path):
    own = RunDirectory(tmp_path / "own")
    write_json(own.config, views["online"].read_config() | {"tokenizer": None})
    load_tokenizer(finished.tokenizer).save(own.tokenizer)
    tokens = ReportedRun(own, "own").tokens
    assert isinstance(tokens, OnlineTokens)
    assert tokens.fingerprint == views["online"].read_config()["tokenizer_fingerprint"]


def test_images_without_tokens_are_left_out(run):
    store = TokenStore.open(run.tokens)
    drawn = ReportedRun(run, "run").sample
    held_out = 1000 - len(drawn.names)
    assert 100 < held_out < 300  # a fifth of the digits is not trained on
    assert len(drawn.names) < len(store)


def test_other_images_are_refused_in_words(run, tmp_path):
    from tests.data.images import write_images

    write_images(tmp_path / "others", "a.png b.png c.png")
    write_json(run.config, run.read_config() | {"data": str(tmp_path / "others")})
    with pytest.raises(DataError, match=r"None of 3 images drawn from .* has tokens in .*Bring the images back"):
        _ = ReportedRun(run, "run").sample


def test_objective_without_tokens_says_so(run):
    config = run.read_config()
    config["science"]["objective"] = {"name": "mask_pixels", "options": {}}
    write_json(run.config, config | {"science_hash": hash_of_science(config["science"])})
    with pytest.raises(NotThereError, match="mask_pixels predicts no visual tokens"):
        _ = ReportedRun(run, "run").tokens
