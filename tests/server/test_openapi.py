"""The document and the server agree: a fuzzer that reads the document finds no fault and nothing undocumented."""

import json
import re
import subprocess
from pathlib import Path

import httpx
import jsonschema
import msgspec
import pytest
from km_server.api.openapi import render_document
from km_server.api.operations import Operation
from km_server.api.routes import OPERATIONS
from km_server.ingest.form import BatchBody, Envelope, SingleBody, SingleEnvelope
from km_server.store.values import Scope

from tests.server.clients import WAIT_S, Api, make_answer, make_batch, make_event, new_key
from tests.server.conftest import Served
from tests.support.processes import command

PAGE = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text(encoding="utf-8")
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,ignored_auth,unsupported_method,missing_required_header"
)


def fuzz(served: Served, folder: Path, examples: int, phases: str) -> None:
    """Run the fuzzer against the running server with a key that may do everything. Fails with what it found."""
    key = new_key(served.database_url, f"fuzzed-{examples}", *Scope)
    words = [
        command("schemathesis"),
        "run",
        served.url + "/api/openapi.json",
        "--header",
        f"Authorization: Bearer {key}",
    ]
    words += ["--checks", CHECKS, "--max-examples", str(examples), "--seed", "1", "--phases", phases]
    # The live feed never ends by itself; tests/server/test_live.py has it.
    words += ["--exclude-path", "/api/v1/live", "--generation-database", "none", "--suppress-health-check", "all"]
    words += ["--warnings", "off", "--request-timeout", str(WAIT_S)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.timeout(300)
def test_a_fuzzer_that_reads_the_document_finds_nothing(served: Served, tmp_path: Path) -> None:
    fuzz(served, tmp_path, 12, "examples,coverage,fuzzing")


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["served_file", "served_postgres"])
def test_a_fuzzer_with_much_time_finds_nothing(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    fuzz(request.getfixturevalue(kind), tmp_path, 400, "examples,coverage,fuzzing,stateful")


def test_the_document_is_served_as_it_is_made(served: Served) -> None:
    answer = httpx.get(served.url + "/api/openapi.json", timeout=WAIT_S)
    assert answer.json() == json.loads(msgspec.json.encode(render_document(OPERATIONS)))


def test_every_answer_is_what_the_document_says(api: Api) -> None:
    """Real answers of every reading operation, against the schemas of the document."""
    document = api.http.get("/api/openapi.json").json()
    api.send(make_batch([make_event(1), make_answer(1, 5_000_000), make_event(2, payload=None)]))
    first = api.feed()[0]["id"]
    for one in OPERATIONS:
        if one.method == "GET" and one.scope is not None and one.success.body is not None:
            path = one.path.replace("{session}", "s1").replace("{id}", str(first))
            found = api.get(path)
            schema = {"$ref": f"#/components/schemas/{one.success.body.__name__}", "components": document["components"]}
            jsonschema.validate(found, schema)


def test_a_question_too_long_for_a_line_is_in_the_document(api: Api) -> None:
    """Each parameter may be within its bounds, and the line that carries it too long all the same."""
    document = api.http.get("/api/openapi.json").json()
    answer = api.http.get("/api/v1/activity", params={"target": "\U0001f600" * 4000})
    assert str(answer.status_code) in document["paths"]["/api/v1/activity"]["get"]["responses"]
    assert answer.status_code == 431


def test_what_decodes_a_body_is_what_the_document_describes() -> None:
    for described, decoding in ((BatchBody, Envelope), (SingleBody, SingleEnvelope)):
        assert described.__struct_fields__ == decoding.__struct_fields__
        assert described.__struct_defaults__ == decoding.__struct_defaults__


def section(one: Operation) -> str:
    """What the page says under the heading of an operation."""
    heading = f"## {one.method} {one.path}\n"
    assert heading in PAGE, f"docs/http-api.md has no heading '{heading.strip()}'"
    return PAGE.split(heading, 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("one", OPERATIONS, ids=lambda one: one.name)
def test_the_page_names_every_operation_its_scope_and_its_parameters(one: Operation) -> None:
    text = section(one)
    if one.scope:
        assert f"Scope `{one.scope}`" in text
    elif one.any_key:
        assert "Any live key" in text
    else:
        assert "No key" in text
    for field in msgspec.structs.fields(one.parameters):
        assert f"`{field.encode_name}" in text


def test_the_page_names_every_field_of_every_body_and_answer() -> None:
    components = render_document(OPERATIONS)["components"]["schemas"]
    names = {name for schema in components.values() for name in schema.get("properties", {})}
    assert len(names) > 40
    assert not {name for name in names if f"`{name}`" not in PAGE and f'"{name}"' not in PAGE}


def test_the_page_names_every_error_code() -> None:
    sources = (Path(__file__).parents[2] / "server" / "km_server").rglob("*.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    codes = set(re.findall(r'(?:ApiError|unauthorized)\(\s*(?:\d{3},\s*|status,\s*)?"([a-z_]+)"', text))
    codes |= set(re.findall(r'ErrorDetail\("([a-z_]+)"', text))
    assert len(codes) > 20
    assert not {code for code in codes if f"`{code}`" not in PAGE}
