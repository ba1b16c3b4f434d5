"""The server against its own OpenAPI document: whatever schemathesis makes up, no answer is a fault
of the server."""

import dataclasses

import httpx
import pytest

from bigmodel_jax.serve.document import BODIES, document


@pytest.mark.slow
def test_every_route_and_every_field_is_described(server):
    served = httpx.get(f"{server.url}/openapi.json").json()
    assert served == document()
    for path, (cls, _) in BODIES.items():
        assert path in served["paths"]
        schema = served["components"]["schemas"][cls.__name__]
        assert set(schema["properties"]) == {field.name for field in dataclasses.fields(cls)}
    limits = served["components"]["schemas"]["Completion"]["properties"]["top_p"]["anyOf"][0]
    assert limits == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}


@pytest.mark.slow
@pytest.mark.parametrize("path", BODIES)
def test_made_up_requests_are_answered_or_refused_as_described(server, path):
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    count = 0
    for mode in modes:

        @given(case=api[path]["POST"].as_strategy(generation_mode=mode))
        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def sent(case):
            nonlocal count
            count += 1
            if isinstance(case.body, dict) and case.body.get("stream"):
                case.body["stream"] = False
            case.call_and_validate(checks=checks, timeout=60)

        sent()
    assert count > 40
    assert server.idle()
