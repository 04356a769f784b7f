"""The routes, as their OpenAPI description tells them, tried with what nobody thought of: no answer is a 500."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from conftest import FULL
from server.conftest import Server
from sr_pipeline.server.openapi import describe
from sr_pipeline.server.routes import ENDPOINTS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of another's package
    import schemathesis
    from schemathesis import GenerationMode

_described: Any = schemathesis.openapi.from_dict(describe())
OPERATIONS: list[Any] = [found.ok() for found in _described.get_all_operations()]
CHOOSY = {f"{e.method} {e.path.replace(':path', '')}" for e in ENDPOINTS if e.query or e.body or e.form}
"""Endpoints that take something that can be wrong."""
CASES = [(o, GenerationMode.POSITIVE) for o in OPERATIONS]
CASES += [(o, GenerationMode.NEGATIVE) for o in OPERATIONS if o.label in CHOOSY]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("operation", "mode"), CASES, ids=[f"{o.label} {mode.value}" for o, mode in CASES])
def test_no_request_is_answered_with_500(server: Server, operation: Any, mode: GenerationMode) -> None:
    @settings(max_examples=200 if FULL else 10, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def tried(case: Any) -> None:
        answer = case.call(base_url=server.url)
        assert answer.status_code < 500, answer.text

    tried()
