"""Imported once, by the process from which those of `ranks` are forked."""

import os

import tests.conftest
import tests.distributed.endings_on_ranks
import tests.distributed.evaluation_on_ranks
import tests.distributed.fit_on_ranks
import tests.distributed.kmeans_on_ranks
import tests.distributed.vq_kd_on_ranks

tests.conftest.keep_what_was_imported()
os.fsync = lambda _: None  # as in the process of the tests
