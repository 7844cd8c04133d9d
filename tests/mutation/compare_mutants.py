"""Mistakes in how pre-trainings are compared: (name, file, before, after, tests)."""

from __future__ import annotations

_STATISTICS = "compare/test_statistics.py"
_COMPARE = "compare/test_compare.py"
_TASKS = "compare/test_tasks.py"
_PAIRING = "compare/test_pairing.py"
_STATISTICS_FILE, _RESULTS_FILE, _MANIFEST_FILE = "compare/statistics.py", "compare/results.py", "compare/manifest.py"

MUTANTS = [
    (
        "compare/seeds-are-no-draws",
        _STATISTICS_FILE,
        "return images * float(over_seeds.var(ddof=1)), seeds * float(over_images.var(ddof=1)), rest",
        "return rest, seeds * float(over_images.var(ddof=1)), rest",
        f"{_STATISTICS}::test_intervals_cover_what_they_promise",
    ),
    (
        "compare/images-are-no-draws",
        _STATISTICS_FILE,
        "return images * float(over_seeds.var(ddof=1)), seeds * float(over_images.var(ddof=1)), rest",
        "return images * float(over_seeds.var(ddof=1)), rest, rest",
        f"{_STATISTICS}::test_one_seed_is_the_interval_of_bonett_and_price {_STATISTICS}::test_many_images_are_needed_too",
    ),
    (
        "compare/normal-in-place-of-student",
        _STATISTICS_FILE,
        "distribution = norm if math.isinf(freedom) else t(freedom)",
        "distribution = norm",
        f"{_STATISTICS}::test_by_hand",
    ),
    (
        "compare/one-sided-p",
        _STATISTICS_FILE,
        "p = 2 * float(distribution.sf(abs(mean) / error))",
        "p = float(distribution.sf(abs(mean) / error))",
        f"{_STATISTICS}::test_intervals_cover_what_they_promise",
    ),
    (
        "compare/holm-without-the-largest-so-far",
        _STATISTICS_FILE,
        "largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))",
        "largest = min(1.0, (len(p_values) - rank) * p_values[index])",
        f"{_STATISTICS}::test_holm_by_hand",
    ),
    (
        "compare/images-by-their-place",
        _RESULTS_FILE,
        "index = torch.tensor([order[key] for key in sorted(keys)])",
        "index = torch.arange(len(keys))",
        f"{_PAIRING}::test_images_are_paired_by_their_keys",
    ),
    (
        "compare/classes-weigh-as-many-images-as-they-have",
        _RESULTS_FILE,
        "weights = len(labels) / (np.bincount(labels)[labels] * len(np.unique(labels)))",
        "weights = np.ones(len(labels))",
        f"{_PAIRING}::test_the_mean_per_class_weighs_classes_alike",
    ),
    (
        "compare/other-images-share-a-table",
        _MANIFEST_FILE,
        'return hash_of_science({**common, "images": config.get("images")})',
        "return hash_of_science(common)",
        f"{_COMPARE}::test_runs_on_other_images_never_share_a_table",
    ),
    (
        "compare/rows-in-place-of-their-inverse",
        "compare/carry_out.py",
        "round(steps * cost[0] / cell_cost)",
        "round(steps * cell_cost / cost[0])",
        f"{_COMPARE}::test_equal_rows",
    ),
    (
        "tuning/on-the-test-images",
        "evaluation/evaluate.py",
        "train, test = _training_images_alone(train, self._validation_share)",
        "pass",
        f"{_TASKS}::test_tuning_chooses_on_training_images_and_is_shown",
    ),
    (
        "tuning/the-worst-is-chosen",
        "compare/tuning.py",
        "self.manifest.chosen_trials[cell] = max(",
        "self.manifest.chosen_trials[cell] = min(",
        f"{_TASKS}::test_tuning_chooses_on_training_images_and_is_shown",
    ),
    (
        "compare/one-baseline-for-all-tokens",
        "compare/grid.py",
        "        if cell.objective == first.objective:",
        "        if True:",
        f"{_COMPARE}::test_each_cell_is_compared_with_the_first_objective_on_the_same_tokens",
    ),
    (
        "checkpoint/parts-of-another-model",
        "engine/checkpoint.py",
        '_require_same({name.rpartition(":")[0] for name in names} - {*parameters}, set(), path)',
        'names = {name for name in names if name.rpartition(":")[0] in parameters}',
        "engine/test_shards.py::test_parts_that_do_not_fit_are_refused_in_words",
    ),
]
