import numpy as np
import pytest

from mapet.data.labels import checked_labels, labels_of_texts, listed_classes, number_labels
from mapet.errors import DataError


def numbered(texts: list[str], classes: tuple[str, ...] | None = None) -> tuple[list[int] | None, tuple[str, ...] | None]:
    def describe(index: int) -> str:
        return f"image {index}"

    labels, names = number_labels(labels_of_texts(texts, classes, describe), None, describe)
    assert labels is None or labels.dtype == np.int64
    return None if labels is None else labels.tolist(), names


def test_numbers_stay_and_names_are_numbered():
    assert numbered(["10", "2", "0"]) == ([10, 2, 0], None)
    assert numbered(["1", "0"], ("cat", "dog")) == ([1, 0], ("cat", "dog"))
    assert numbered(["dog", "cat", "dog"]) == ([1, 0, 1], ("cat", "dog"))
    assert numbered(["dog", "dog"], ("eel", "cat", "dog")) == ([2, 2], ("eel", "cat", "dog"))


@pytest.mark.parametrize("texts", [[], ["", ""], ["-1", "-1"], ["-1", ""]])
def test_no_labels(texts):
    assert numbered(texts) == (None, None)


@pytest.mark.parametrize(
    ("texts", "classes", "message"),
    [
        (["0", ""], None, r"image 1 has no label \(-1\); allowed: 0 or more\. Label all images so, or none"),
        (["cat", ""], None, r"image 1 has no label \(-1\); allowed: 0 to 0"),
        (["0", "9" * 15], None, r"image 1 has the label 999999999999999; allowed: below 10,000,000"),
        (["0", "-2"], None, r"image 1 has the label -2; allowed: 0 or more"),
        (["0", "2"], ("cat", "dog"), r"image 1 has the label 2; allowed: 0 to 1, as there are 2 class names"),
        (["cat", "cow"], ("cat", "dog"), r"image 1 is labelled 'cow', which is none of the 2 classes known \(cat, dog\)"),
    ],
)
def test_labels_that_do_not_fit(texts, classes, message):
    with pytest.raises(DataError, match=message):
        numbered(texts, classes)


def test_unknown_is_known_for_arrays_too():
    assert checked_labels(np.array([-1, -1]), ("cat",), str) is None
    assert checked_labels(np.array([0, 0]), ("cat",), str) is not None


def test_listed_classes(tmp_path):
    assert listed_classes(tmp_path) is None
    (tmp_path / "classes.txt").write_text("cat\n n02  dog, hound \r\n\n \n")
    assert listed_classes(tmp_path) == ("cat", "n02 dog, hound")
    (tmp_path / "labels.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"labels\.txt holds class names in another encoding than UTF-8"):
        listed_classes(tmp_path)


@pytest.mark.parametrize("texts", [["0", "0.0", "1"], ["01", "1", "0"], ["0.", "1.000", "1"]], ids=str)
def test_numbers_in_several_forms_are_one_class(texts: list[str]) -> None:
    """R3: 0 and 0.0 are not two classes."""
    labels = labels_of_texts(texts, None, str)
    assert labels.names is None
    assert labels.numbers.tolist() == [int(float(text)) for text in texts]


@pytest.mark.parametrize("pair", [("1", "01"), ("1", "1.0"), ("Cat", "cat"), ("big cat", "big_cat")], ids=str)
def test_names_that_differ_in_form_are_named(pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """R3: they stay two classes, with a line."""
    assert len(labels_of_texts(["owl", *pair], None, lambda index: f"image {index}").names or ()) == 3
    said = capsys.readouterr().err
    assert "are two classes" in said
    assert "image 1" in said
    labels_of_texts(["1.5", "15", "cat", "cats", "10", "1"], None, str)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["nan", "NaN", "None", "null", "N/A"])
def test_what_stands_for_no_label_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """R17: a class made of missing labels passes with a line."""
    labels_of_texts(["cat", name, "dog", name], None, lambda index: f"image {index}")
    assert f"'{name}' is taken as a class (2 images, the first image 1)" in capsys.readouterr().err
    labels_of_texts(["cat", "", "nano", "banana"], None, str)
    assert capsys.readouterr().err == ""


def test_a_class_name_forges_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """F25."""
    labels_of_texts(["a\nmapet: done", "A\nmapet: done"], None, str)
    assert r"'A\nmapet: done' and 'a\nmapet: done' are two classes" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"labelled 'x\\ny', which is none of the 1 classes known \(a\\nb\)"):
        labels_of_texts(["x\ny"], ("a\nb",), str)
