from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from mapet.cli.target import load_target
from mapet.data.decode import decode_image
from mapet.data.regions import RandomCrops
from mapet.data.skipped import UnreadableImages
from mapet.data.source import Concatenation, subset
from mapet.data.sources import open_source
from mapet.data.views import FixedView
from mapet.errors import DataError, NonFiniteLossError, SettingsError, TokenizerError, TokenStoreError
from mapet.evaluation.evaluate import evaluate
from mapet.evaluation.probes.knn import KNN
from mapet.evaluation.tokens.data import LabelledTokens, TokenMaker, TokenSplit, open_tokens
from mapet.evaluation.tokens.heads import TokenMLP, token_vit
from mapet.evaluation.tokens.protocol import TokenClassification
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.build import build_store
from mapet.token_store.read import TokenStore
from mapet.token_store.token_source import OnlineTokens
from tests.data.images import write_images
from tests.tiny import LOCATION, VOCAB, tiny_tokenizer

CPU = torch.device("cpu")
QUICK = TokenClassification(width=16, epochs=1, min_steps=100, batch_size=64, lr=0.01, weight_decay=0.0)
QUICK_VIT = dataclasses.replace(QUICK, head="vit", depth=1, heads=2, lr=0.01, min_steps=40, drop_path=0.1, warmup_epochs=1)
CLASSES, GRID = 4, (3, 4)
CODES = 5 * CLASSES


def planted(seed: int, count: int = 256, hint: float = 0.7) -> TokenSplit:
    """A share `hint` of the tokens of an image is drawn from the five codes of its class, the others from all."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    own = labels[:, None] * 5 + torch.randint(5, (count, 12), generator=generator)
    noise = torch.randint(CODES, (count, 12), generator=generator)
    return TokenSplit(torch.where(torch.rand(count, 12, generator=generator) < hint, own, noise).int(), labels)


def shuffled(split: TokenSplit, seed: int) -> TokenSplit:
    """The tokens of another image, its own label."""
    order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(seed))
    return TokenSplit(split.ids[order], split.labels)


def tokens_of(train: TokenSplit, test: TokenSplit) -> LabelledTokens:
    return LabelledTokens("planted", train, test, {"vocab_size": CODES, "grid_size": [*GRID]}, CLASSES, CPU)


def accuracies(protocol: TokenClassification, train: TokenSplit, test: TokenSplit) -> dict[str, float]:
    return protocol.evaluate(tokens_of(train, test)).values


@pytest.mark.parametrize("protocol", [QUICK, QUICK_VIT], ids=["mlp", "vit"])
def test_tokens_that_tell_the_class_are_learned_and_shuffled_ones_are_not(protocol: TokenClassification) -> None:
    train, test = planted(0), planted(1)
    assert accuracies(protocol, train, test)["top1"] > 0.9
    blind = accuracies(protocol, shuffled(train, 2), shuffled(test, 3))
    assert blind["top1"] < 1 / CLASSES + 0.12
    assert set(blind) == {"top1", "top5", "mean_per_class"}


def ordered(seed: int) -> TokenSplit:
    """Images of the same two codes: the label is whether code 1 fills the first half."""
    labels = torch.randint(2, (256,), generator=torch.Generator().manual_seed(seed))
    halves = torch.arange(12)[None] < 6
    return TokenSplit((halves == labels.bool()[:, None]).int(), labels)


def test_only_the_vit_sees_where_tokens_are() -> None:
    assert accuracies(dataclasses.replace(QUICK_VIT, min_steps=120), ordered(0), ordered(1))["top1"] > 0.95
    assert accuracies(QUICK, ordered(0), ordered(1))["top1"] < 0.65


def test_the_mlp_computes_what_the_paper_says() -> None:
    model = TokenMLP(CODES, 8, CLASSES).double()
    ids = planted(0, 9).ids.long()
    expected = []
    for image in ids:
        hidden = [(model.hidden.weight @ model.embedding.weight[code] + model.hidden.bias).clamp(min=0) for code in image]
        expected.append(model.head.weight @ torch.stack(hidden).mean(dim=0) + model.head.bias)
    torch.testing.assert_close(model(ids), torch.stack(expected), rtol=0, atol=1e-12)


def test_the_vit_computes_what_the_paper_says() -> None:
    shape = {"width": 16, "depth": 2, "heads": 2, "drop_path": 0.0}
    model = token_vit(CODES, GRID, CLASSES, **shape).double().eval()
    ids = planted(0, 5).ids.long()
    tokens = torch.cat([model.cls_token.expand(5, -1, -1), model.patch_embed.weight[ids]], dim=1) + model.pos_embed
    for block in model.blocks:
        tokens = block(tokens)
    expected = model.head(model.fc_norm(tokens[:, 1:].mean(dim=1)))
    assert model.pos_embed.shape[1] == 13
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-12)


def test_the_start_and_the_training_are_functions_of_the_seed() -> None:
    train, test = planted(0), planted(1, 64, hint=0.2)
    protocol = dataclasses.replace(QUICK_VIT, min_steps=8, depth=2, drop_path=0.5)
    state = torch.random.get_rng_state()
    starts = [dataclasses.replace(protocol, seed=seed).build(CODES, GRID, CLASSES).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())
    assert not torch.equal(starts[0]["head.weight"], starts[2]["head.weight"])
    ends = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        ends.append(protocol.evaluate(tokens_of(train, test)))
    assert ends[0] == ends[1]
    torch.random.set_rng_state(state)
    dataclasses.replace(QUICK, min_steps=2).build(CODES, GRID, CLASSES)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_floor_is_the_class_most_frequent_in_training() -> None:
    train, test = planted(0), planted(1, 60)
    train = TokenSplit(train.ids, torch.where(torch.arange(256) < 100, 2, train.labels))
    test = TokenSplit(test.ids, torch.where(torch.arange(60) < 30, 1, test.labels))
    found = dataclasses.replace(QUICK, min_steps=1).evaluate(tokens_of(train, test))
    assert found.details["frequent_class"] == float((test.labels == 2).sum()) / 60 != 0.5
    assert found.details["parameters"] == CODES * 16 + 16 * 17 + 17 * CLASSES


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(NonFiniteLossError, match=r"--set lr=3e\+29"):
        accuracies(dataclasses.replace(QUICK, lr=1e30, min_steps=20), planted(0), planted(1))


def whole() -> Concatenation:
    return Concatenation([open_source(LOCATION, "train"), open_source(LOCATION, "test")], LOCATION)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    path = tmp_path_factory.mktemp("tokens") / "store"
    return build_store(whole(), tiny_tokenizer(), path, unreadable=UnreadableImages())


def test_a_tokenizer_its_store_and_a_run_give_the_same_figures(store: TokenStore, run: RunDirectory, tmp_path: Path) -> None:
    tiny_tokenizer().save(tmp_path / "tokenizer")
    short = dataclasses.replace(QUICK, min_steps=40)
    makers = [open_tokens(tmp_path / "tokenizer"), open_tokens(store.path)]
    config = json.loads(run.config.read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"tokens": str(store.path)}))
    makers.append(open_tokens(tmp_path / "run"))
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"tokenizer": str(tmp_path / "tokenizer")}))
    makers.append(open_tokens(tmp_path / "run"))
    results = [evaluate(maker, LOCATION, [short], device=CPU, folder=tmp_path / "out")[0] for maker in makers]
    assert len({json.dumps(result.figures) for result in results}) == 1
    assert [maker.source.store is not None for maker in makers] == [False, True, True, False]
    (result, *_) = results
    assert (result.classes, result.train_images, result.test_images) == (2, 40, 20)
    assert result.figures["top1"] > 0.9, "dark and bright images are told apart by any tokens"
    assert result.details["vocab_size"] == VOCAB
    kept = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")]
    assert [entry["figures"] for entry in kept] == [result.figures]
    assert "top-1" in QUICK.line(result)
    assert "most frequent class 50.0 %" in QUICK.line(result)
    assert result.protocol_hash in QUICK.line(result)


def test_tokens_are_those_of_the_fixed_view() -> None:
    tokenizer, source = tiny_tokenizer(), open_source(LOCATION, "test")
    maker = TokenMaker("tiny", OnlineTokens(tokenizer, CPU))
    split = maker.split(source, "test", device=CPU, workers=0, unreadable=UnreadableImages())
    for index in (0, 7, 19):
        view = FixedView(16)(decode_image(source.read(index)))
        assert torch.equal(split.ids[index], tokenizer.encode(view[None] / 255).flatten().int())
    assert split.labels.tolist() == source.labels.tolist()


def test_images_are_tokenised_once_for_all_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, seen = tiny_tokenizer(), []
    encode = tokenizer.tokens
    monkeypatch.setattr(tokenizer, "tokens", lambda images: (seen.append(len(images)), encode(images))[1])
    maker = TokenMaker("tiny", OnlineTokens(tokenizer, CPU))
    protocols = [dataclasses.replace(QUICK, min_steps=1, seed=seed) for seed in (0, 1)]
    results = evaluate(maker, LOCATION, protocols, device=CPU, folder=tmp_path)
    assert sum(seen) == 60
    assert len(list(tmp_path.glob("*.json"))) == len({result.protocol_hash for result in results}) == 2
    other = tiny_tokenizer(seed=1)
    evaluate(TokenMaker("tiny", OnlineTokens(other, CPU)), LOCATION, protocols, device=CPU, folder=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 4, "another tokenizer has files of its own"


def test_a_store_without_the_test_images_says_how_to_add_them(tmp_path: Path) -> None:
    path = tmp_path / "store"
    build_store(open_source(LOCATION, "train"), tiny_tokenizer(), path, unreadable=UnreadableImages())
    command = f"mapet tokenize {LOCATION} --split all --tokenizer TOK --out {path}"
    with pytest.raises(TokenStoreError, match=rf"lacks 20 of the 20 test images of .*\. Complete it .*: {re.escape(command)}$"):
        evaluate(open_tokens(path), LOCATION, [QUICK], device=CPU)


def photos(folder: Path) -> str:
    names = (f"{part}/{kind}/{number}.png" for part in ("train", "val") for kind in ("cat", "dog") for number in "12")
    write_images(folder / "photos", " ".join(names))
    return str(folder / "photos")


def test_a_store_of_other_images_is_not_filled_with_these(store: TokenStore, tmp_path: Path) -> None:
    data = photos(tmp_path)
    with pytest.raises(TokenStoreError, match="lacks 4 of the 4 training images") as refused:
        evaluate(open_tokens(store.path), data, [QUICK], device=CPU)
    assert str(store.path) not in str(refused.value).split("--out")[1]
    assert "This store is of other images; make another:" in str(refused.value)
    assert f"mapet tokenize {data} --split all --tokenizer TOK --out OTHER_TOKENS\n" in str(refused.value)


@pytest.mark.parametrize("data", ["others", "its own"])
def test_the_store_of_a_run_stays_as_it_is(run: RunDirectory, tmp_path: Path, data: str) -> None:
    own = RunDirectory(tmp_path / "run")
    build_store(open_source(LOCATION, "train"), tiny_tokenizer(), own.tokens, unreadable=UnreadableImages())
    own.config.write_text(run.config.read_text())
    tiny_tokenizer().save(own.tokenizer)
    location = photos(tmp_path) if data == "others" else LOCATION
    with pytest.raises(TokenStoreError, match="This store is the run's own") as refused:
        evaluate(open_tokens(own.tokens), location, [QUICK], device=CPU)
    lines = [line.strip() for line in str(refused.value).splitlines()]
    assert f"mapet tokenize {location} --split all --tokenizer {own.tokenizer} --out OTHER_TOKENS" in lines
    assert lines[-1] == f"mapet evaluate tokens {own.tokenizer} {location}"
    assert str(own.tokens) not in "".join(lines[1:])


def test_images_that_the_store_could_not_read_are_left_out(tmp_path: Path) -> None:
    data = photos(tmp_path)
    (tmp_path / "photos/train/cat/1.png").write_bytes(b"no image")
    both = Concatenation([open_source(data, "train"), open_source(data, "test")], data)
    build_store(both, tiny_tokenizer(), tmp_path / "store", unreadable=UnreadableImages(1))
    maker = open_tokens(tmp_path / "store")
    common = {"device": CPU, "workers": 0, "unreadable": UnreadableImages()}
    train = open_source(data, "train")
    assert maker.split(train, "training", **common).labels.tolist() == [0, 1, 1]
    with pytest.raises(DataError, match="None of the 1 training images"):
        maker.split(subset(train, [0]), "training", **common)


def test_broken_images_of_one_part_are_not_said_to_be_all(tmp_path: Path) -> None:
    data = photos(tmp_path)
    for part in ("train", "val"):
        (tmp_path / f"photos/{part}/cat/1.png").write_bytes(b"no image")
    tokenizer = tiny_tokenizer()
    with pytest.raises(DataError, match=r"train/cat/1.png(.|\n)*Only 4 of 4 training images were read; .*other parts"):
        evaluate(TokenMaker("tiny", OnlineTokens(tokenizer, CPU)), data, [QUICK], device=CPU)


def test_a_store_of_random_crops_is_refused(tmp_path: Path) -> None:
    options = {"unreadable": UnreadableImages(), "regions": RandomCrops(2, (0.5, 1.0), False, 0)}
    build_store(open_source(LOCATION, "test"), tiny_tokenizer(), tmp_path / "store", **options)
    with pytest.raises(TokenStoreError, match="holds tokens of the view"):
        open_tokens(tmp_path / "store")


def test_what_has_no_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"science": {}}')
    with pytest.raises(TokenizerError, match="its objective predicts no visual tokens"):
        open_tokens(tmp_path)
    with pytest.raises(TokenizerError, match="There is no tokenizer at"):
        open_tokens(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ['{"architecture": "vit_tiny_patch16_224"}', "[]", None])
def test_what_is_no_run_is_not_called_one(tmp_path: Path, content: str | None) -> None:
    """Such as an exported backbone, which has a config.json of timm."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"is no tokenizer, no token store and no run: .*`mapet tokenizer` made"):
        open_tokens(tmp_path)
    with pytest.raises(SettingsError, match="has no images of its own"):
        load_target("tokenizer", str(tmp_path), None, model=None, options={})


def test_a_tokenizer_may_lie_beside_a_config_of_others(tmp_path: Path) -> None:
    tiny_tokenizer().save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text("{}")
    assert open_tokens(tmp_path / "tokenizer").fingerprint == tiny_tokenizer().fingerprint


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "1.png 2.png")
    tokenizer = tiny_tokenizer()
    with pytest.raises(DataError, match="no labels"):
        evaluate(TokenMaker("tiny", OnlineTokens(tokenizer, CPU)), str(tmp_path / "images"), [QUICK], device=CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "mpl"}, "no head 'mpl' for tokens. Did you mean 'mlp'"),
        ({"precision": "fp16"}, "no precision 'fp16'"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_settings_are_checked(change: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        dataclasses.replace(QUICK, **change)


def test_protocols_refuse_what_they_do_not_evaluate(run: RunDirectory) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(SettingsError, match=r"evaluates a tokenizer, and .* is none. .*mapet evaluate tokens TOKENIZER DATA"):
        evaluate(run, LOCATION, [QUICK], device=CPU)
    with pytest.raises(SettingsError, match="'knn' evaluates a backbone, and tiny is none"):
        evaluate(TokenMaker("tiny", OnlineTokens(tokenizer, CPU)), LOCATION, [KNN()], device=CPU)
    with pytest.raises(SettingsError, match="'tokens' has no random initialisation"):
        evaluate(TokenMaker("tiny", OnlineTokens(tokenizer, CPU)), LOCATION, [QUICK], device=CPU, with_random=True)
