"""What the pre-training was worth, in words: probes of the backbone against the same backbone at random initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
}
_POOLS = {"mean": "mean of the patches", "cls": "class token", "both": "class token and mean"}


def protocol_name(result: Result) -> str:
    """The protocol in a word or two."""
    name = str(result.protocol["name"])
    return _NAMES.get(name, name)


def protocol_words(result: Result) -> str:
    """What else tells the protocol from others of its name, without its hash; "" for nothing."""
    pool, share = result.protocol.get("pool"), result.protocol.get("share")
    preset = result.preset if share is None else f"{100 * share:g} % of the labels"
    metric = None if result.metric == "top1" else METRICS.get(result.metric, result.metric)
    return ", ".join(filter(None, (preset, _POOLS.get(pool, pool) if pool else None, metric)))


def frequent_class(result: Result) -> float | None:
    """What always answering the most frequent class would give, 0 to 1; None where the protocol does not say."""
    return result.details.get("most_frequent_class", {}).get(result.metric, result.details.get("frequent_class"))


def verdict(results: Sequence[Result]) -> str:
    """One sentence with figures: the first compared result of every protocol, on the data of the first of all."""
    results = [result for result in results if result.random_value is not None] or results
    first = results[0]
    chosen = {result.protocol["name"]: result for result in reversed(results) if result.data == first.data}
    if first.random_value is None:
        found = ", ".join(map(_plain, reversed(chosen.values())))
        return f"On {first.test_images:,} test images of {first.data} ({first.classes} classes): {found}."
    clauses = [_clause(result) for result in reversed(chosen.values())]
    return (
        f"On {first.test_images:,} test images of {first.data} ({first.classes} classes), against the same backbone at random "
        f"initialisation, pre-training {', and '.join(clauses)}."
    )


def _plain(result: Result) -> str:
    floor = frequent_class(result)
    beside = "" if floor is None else f" (the most frequent class everywhere: {100 * floor:.1f} %)"
    title = ", ".join(filter(None, (protocol_name(result), protocol_words(result))))
    return f"{title}: {100 * result.value:.1f} %{beside}"


def _clause(result: Result) -> str:
    after, before = result.value, result.random_value or 0.0
    gain = 100 * (after - before)
    shares = () if result.metric == "miou" else (after, before)
    error = 100 * math.sqrt(sum(share * (1 - share) / result.test_images for share in shares))
    verb = "moves" if abs(gain) <= 1.96 * error else "lifts" if gain > 0 else "lowers"
    doubt = ", within the sampling error of the test images" if verb == "moves" else ""
    what = METRICS.get(result.metric, result.metric) if result.metric != "top1" else "accuracy"
    name = protocol_name(result)
    return f"{verb} the {name} {what} from {100 * before:.1f} to {100 * after:.1f} % ({gain:+.1f} points{doubt})"
