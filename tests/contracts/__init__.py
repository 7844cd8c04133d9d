import pytest

pytest.register_assert_rewrite("tests.contracts.objective_suite")
