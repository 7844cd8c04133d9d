"""Imported once, by the process from which those of `ranks` are forked."""

import tests.conftest
import tests.distributed.endings_on_ranks
import tests.distributed.evaluation_on_ranks
import tests.distributed.fit_on_ranks
import tests.distributed.kmeans_on_ranks
import tests.distributed.vq_kd_on_ranks  # noqa: F401
