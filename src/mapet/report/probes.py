"""What the pre-training was worth, in words: probes of the backbone against the same backbone at random initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mapet.evaluation.copies import copies_line
from mapet.evaluation.intervals import is_distinguishable
from mapet.evaluation.protocol import METRICS, Result

_NAMES = {
    "knn": "k-NN",
    "linear": "linear probe",
    "attentive": "attentive probe",
    "logistic": "logistic regression",
    "fewshot": "few-shot",
    "finetune": "fine-tuning",
    "segment": "segmentation",
    "tokens": "token classification",
    "classify": "classification",
}
_POOLS = {"mean": "mean of the patches", "cls": "class token", "both": "class token and mean"}


def protocol_name(result: Result) -> str:
    """The protocol in a word or two."""
    name = str(result.protocol["name"])
    return _NAMES.get(name, name)


def protocol_words(result: Result) -> str:
    """The settings that distinguish the protocol from others of its name, without its hash; "" for none."""
    pool, share = result.pool, result.protocol.get("share")
    preset = result.preset if share is None else f"{100 * share:g} % of the labels"
    metric = None if result.metric == "top1" else METRICS.get(result.metric, result.metric)
    return ", ".join(filter(None, (preset, _POOLS.get(pool, pool) if pool else None, metric)))


def frequent_class(result: Result) -> float | None:
    """The accuracy of always predicting the most frequent class, 0 to 1; None where the protocol has none."""
    return result.details.get("most_frequent_class", {}).get(result.metric, result.details.get("frequent_class"))


def summarise(results: Sequence[Result]) -> str:
    """One sentence with figures: the first compared result of every protocol, on the data of the first of all."""
    results = [result for result in results if result.random_value is not None] or results
    first = results[0]
    result_of_protocol = {result.protocol["name"]: result for result in reversed(results) if result.data == first.data}
    if first.random_value is None:
        figures = ", ".join(map(_plain, reversed(result_of_protocol.values())))
        return f"On {first.test_images:,} test images of {first.data} ({first.classes} classes): {figures}."
    clauses = [_clause(result) for result in reversed(result_of_protocol.values())]
    return (
        f"On {first.test_images:,} test images of {first.data} ({first.classes} classes), against the same backbone at random "
        f"initialisation, pre-training {', and '.join(clauses)}.{_pooling([*reversed(result_of_protocol.values())])}"
    )


def _pooling(results: Sequence[Result]) -> str:
    """The pools of the results; "" where there was nothing to choose."""
    names: dict[str, list[str]] = {}
    for result in results:
        if result.pool in _POOLS:
            names.setdefault(_POOLS[result.pool], []).append(protocol_name(result))
    protocols_by_pool = "; ".join(f"{pool} ({', '.join(protocols)})" for pool, protocols in names.items())
    return f" Features: {protocols_by_pool}." if protocols_by_pool else ""


def _plain(result: Result) -> str:
    floor = frequent_class(result)
    floor_note = "" if floor is None else f" (the most frequent class everywhere: {100 * floor:.1f} %)"
    title = ", ".join(filter(None, (protocol_name(result), protocol_words(result))))
    return f"{title}: {100 * result.value:.1f} %{floor_note}"


def copies_words(results: Sequence[Result]) -> list[str]:
    """What is to be known of images that occur more than once, a sentence for every data set where there are any."""
    copies_of_data = {result.data: (result.details.get("copies"), result.test_images) for result in results}
    lines = {
        data: copies_line(counts, images) if isinstance(counts, dict) else "" for data, (counts, images) in copies_of_data.items()
    }
    return [f"{data}: {line}" for data, line in lines.items() if line]


def _clause(result: Result) -> str:
    after, before = result.value, result.random_value or 0.0
    gain = 100 * (after - before)
    verb = "moves" if not _is_certain(result) else "lifts" if gain > 0 else "lowers"
    doubt = ", within the sampling error of the test images" if verb == "moves" else ""
    if result.gain_interval is not None:
        low, high = result.gain_interval
        doubt = f", 95 % interval {100 * low:.1f} to {100 * high:.1f}{': not distinguishable' if verb == 'moves' else ''}"
    what = METRICS.get(result.metric, result.metric) if result.metric != "top1" else "accuracy"
    return f"{verb} the {protocol_name(result)} {what} from {100 * before:.1f} to {100 * after:.1f} % ({gain:+.1f} points{doubt})"


def _is_certain(result: Result) -> bool:
    """Whether the gain is more than the choice of test images explains: by its paired interval; without one, as if unpaired."""
    if result.gain_interval is not None:
        return is_distinguishable(result.gain_interval)
    shares = () if result.metric == "miou" else (result.value, result.random_value or 0.0)
    error = math.sqrt(sum(share * (1 - share) / result.test_images for share in shares))
    return abs(result.gain or 0.0) > 1.96 * error
