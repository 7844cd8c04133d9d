"""Mistakes in tokenizers, token stores, checkpoints and files: (name, file, before, after, tests)."""

from __future__ import annotations

_KMEANS = "tokenizers/clustering/test_kmeans.py"
_FILES = "runtime/test_files.py"
_RESUME = "training/test_training_views.py::test_a_run_stopped_within_an_epoch_continues_bitwise"

MUTANTS = [
    (
        "k-means/half-of-the-product",
        "tokenizers/clustering/lloyd.py",
        "else centroids).mul(-2).T",
        "else centroids).mul(-1).T",
        f"{_KMEANS}::test_same_moves_as_scikit_learn_from_the_same_start",
    ),
    (
        "k-means/empty-clusters-take-points-and-leave-them",
        "tokenizers/clustering/lloyd.py",
        "        sums.index_add_(0, ids, points.double(), alpha=-1)\n"
        "        counts.index_add_(0, ids, torch.ones_like(ids), alpha=-1)\n",
        "",
        "tokenizers/clustering/test_lloyd.py",
    ),
    (
        "k-means/the-last-restart-wins",
        "tokenizers/clustering/state.py",
        "if self.best is None or self.history[-1] < self.best_history[-1]:",
        "if self.best is None or self.history[-1] < self.best_history[0]:",
        f"{_KMEANS}::test_the_best_restart_wins",
    ),
    (
        "k-means/inertia-of-the-centroids-before",
        "tokenizers/clustering/kmeans.py",
        "[*state.best_history[:-1], final]",
        "[*state.best_history, final]",
        f"{_KMEANS}::test_result_describes_its_centroids",
    ),
    (
        "nearest/ties-to-the-highest-id",
        "tokenizers/clustering/nearest.py",
        "return exact.argmin(1)",
        "return candidates.shape[1] - 1 - exact.flip(1).argmin(1)",
        "tokenizers/clustering/test_nearest.py::test_ties_go_to_the_lowest_id",
    ),
    (
        "nearest/origin-left-in-the-points",
        "tokenizers/clustering/nearest.py",
        "near = points - origin",
        "near = points",
        "tokenizers/clustering/test_nearest.py::test_equals_float64_search",
    ),
    (
        "straight-through/no-gradient-to-the-encoder",
        "tokenizers/vq_kd/distillation.py",
        "codes + (chosen - codes).detach()",
        "chosen",
        "tokenizers/vq_kd/test_distillation.py::test_losses_and_gradients_of_the_published_model",
    ),
    (
        "straight-through/commitment-to-the-wrong-side",
        "tokenizers/vq_kd/distillation.py",
        "commitment = (chosen - codes).square()",
        "commitment = (chosen - codes.detach()).square()",
        "tokenizers/vq_kd/test_distillation.py::test_losses_and_gradients_of_the_published_model",
    ),
    (
        "codebook-average/shares-swapped",
        "tokenizers/vq_kd/codebook.py",
        "decay * codebook + (1 - decay) * target",
        "(1 - decay) * codebook + decay * target",
        "tokenizers/vq_kd/test_distillation.py::test_codebook_over_three_steps",
    ),
    (
        "codebook-average/entries-of-no-code-vanish",
        "tokenizers/vq_kd/codebook.py",
        "torch.where(counts[:, None] > 0, means, otherwise)",
        "means",
        "tokenizers/vq_kd/test_distillation.py::test_a_mean_that_loses_its_points_stays",
    ),
    (
        "codebook-average/no-longer-unit-vectors",
        "tokenizers/vq_kd/codebook.py",
        "F.normalize(decay * codebook + (1 - decay) * target, dim=1)",
        "decay * codebook + (1 - decay) * target",
        "tokenizers/vq_kd/test_distillation.py::test_codebook_over_three_steps",
    ),
    (
        "store/one-row-on",
        "token_store/read.py",
        "np.searchsorted(self._keys, wanted)",
        'np.searchsorted(self._keys, wanted, side="right")',
        "token_store/test_read.py::test_lookup_gives_the_tokens_of_each_image_in_any_order_and_repeated",
    ),
    (
        "store/unknown-keys-take-a-neighbour",
        "token_store/read.py",
        "return rows, (self._keys[rows] == wanted) & whole",
        "return rows, whole",
        "token_store/test_read.py::test_unknown_keys_are_refused",
    ),
    (
        "store/the-first-view-for-all",
        "token_store/read.py",
        "self._ids[rows, numbers]",
        "self._ids[rows, 0]",
        "token_store/test_views.py::test_lookup_takes_one_view_for_all_or_one_for_each",
    ),
    (
        "store/tokens-of-another-view-than-shown",
        "training/trainer.py",
        "self.store.lookup(loaded.keys, loaded.crops[0])",
        "self.store.lookup(loaded.keys, 0)",
        "training/test_training_views.py::test_the_objective_sees_exactly_the_crop_whose_tokens_it_gets",
    ),
    (
        "store/key-of-a-part-of-the-file",
        "data/sources.py",
        "hashlib.blake2b(content, digest_size=KEY_LENGTH // 2)",
        "hashlib.blake2b(content[:4096], digest_size=KEY_LENGTH // 2)",
        "data/test_sources.py::test_sample_key_is_the_content_and_nothing_else",
    ),
    (
        "resume/order-from-the-start",
        "training/trainer.py",
        "settings.training.batch_size, settings.seed, self.first_step, self.total_steps)",
        "settings.training.batch_size, settings.seed, 0, self.total_steps - self.first_step)",
        _RESUME,
    ),
    (
        "resume/moments-are-lost",
        "training/checkpoint.py",
        'optimizer.load_state_dict({"state": state,',
        'optimizer.load_state_dict({"state": {},',
        _RESUME,
    ),
    (
        "resume/a-step-taken-twice",
        "training/trainer.py",
        "return checkpoint.step\n",
        "return checkpoint.step - 1\n",
        _RESUME,
    ),
    (
        "checksum/only-the-weights",
        "training/checkpoint.py",
        'for name, expected in header["sha256"].items():',
        'for name, expected in [*header["sha256"].items()][:1]:',
        "training/test_checkpoint.py::test_a_damaged_checkpoint_is_named_and_the_one_before_used",
    ),
    (
        "checksum/not-of-the-header",
        "training/checkpoint.py",
        'header.pop("own_sha256", None) != _digest(header)',
        'not header.pop("own_sha256", None)',
        "training/test_checkpoint.py::test_no_byte_of_the_header_can_change_unnoticed",
    ),
    (
        "checksum/of-the-store-only-the-keys",
        "token_store/content.py",
        "    for name in (KEYS, IDS):\n        found = sha256",
        "    for name in (KEYS,):\n        found = sha256",
        "token_store/test_read.py::test_f5_a_flipped_bit_is_found",
    ),
    (
        "checksum/of-the-store-spared-by-size-and-time",
        "token_store/content.py",
        "[stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]",
        "[stat.st_size, stat.st_mtime_ns]",
        "token_store/test_read.py::test_f5_a_changed_file_of_the_same_size_and_time_is_read_again",
    ),
    (
        "fingerprint/not-of-the-settings",
        "tokenizers/base.py",
        '"code_version": self.code_version, "settings": self.settings()}\n        return',
        '"code_version": self.code_version}\n        return',
        "tokenizers/vq_kd/test_tokenizer.py::test_number_of_heads_changes_tokens_and_fingerprint",
    ),
    (
        "atomic-rename/a-file-written-in-its-place",
        "runtime/files.py",
        '    partial = _beside(path, f"{os.getpid()}.partial")\n    with storage_errors(path):\n'
        "        path.parent.mkdir(parents=True, exist_ok=True)\n        remove_leftovers(path.parent, glob.escape(path.name))\n"
        "        try:\n            yield partial",
        "    partial = path\n    with storage_errors(path):\n"
        "        path.parent.mkdir(parents=True, exist_ok=True)\n        remove_leftovers(path.parent, glob.escape(path.name))\n"
        "        try:\n            yield partial",
        f"{_FILES}::test_files_are_replaced_as_a_whole",
    ),
    (
        "atomic-rename/the-older-folder-removed-first",
        "runtime/files.py",
        "            os.replace(path, aside)\n",
        "            shutil.rmtree(path)\n",
        _FILES,
    ),
    (
        "atomic-rename/not-on-disk-before-it-is-named",
        "runtime/files.py",
        "            yield partial\n            _flush(partial)\n            os.replace(partial, path)",
        "            yield partial\n            os.replace(partial, path)",
        _FILES,
    ),
    (
        "atomic-rename/leftovers-of-living-writers-removed",
        "runtime/files.py",
        "(int(process) == os.getpid() or not _is_alive(int(process)))",
        "(int(process) == os.getpid() or _is_alive(int(process)) is not None)",
        _FILES,
    ),
    (
        "lock/of-the-name-and-not-of-the-place",
        "runtime/lock.py",
        "Path(os.path.realpath(out)) for out in outs",
        "Path(out) for out in outs",
        "runtime/test_lock.py::test_f6_a_link_to_the_folder_has_its_lock",
    ),
    (
        "lock/the-second-writer-goes-on",
        "runtime/lock.py",
        "        except Timeout:\n            raise InUseError(",
        "        except Timeout:\n            return None\n            raise InUseError(",
        "runtime/test_lock.py::test_f6_the_second_writer_refuses_and_names_the_first",
    ),
    (
        "lock/a-file-that-a-killed-process-leaves-behind",
        "runtime/lock.py",
        "lock = FileLock(file, mode=0o666, fallback_to_soft=False, on_acquired=_sign)",
        "from filelock import SoftFileLock\n\n        lock = SoftFileLock(file, mode=0o666)",
        "runtime/test_lock.py::test_f6_the_lock_of_a_killed_process_is_taken_over",
    ),
]
