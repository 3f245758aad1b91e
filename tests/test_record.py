"""Records: the same bytes for the same content, every past schema readable, the schema published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from msgspec.structs import replace

from harness.errors import BenchError, RecordError
from harness.metric import Measurement, Metric
from harness.record import SCHEMA, Record, Setup, content_sha256, digest, from_json, json_schema, slug, to_json
from harness.skim import skim

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"


def golden() -> Record:
    path = GOLDEN / f"record_v{SCHEMA}.json"
    return from_json(path.read_bytes(), path.name)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("record_v*.json")), ids=lambda path: path.stem)
def test_every_past_schema_still_loads(path: Path) -> None:
    record = from_json(path.read_bytes(), path.name)
    assert record.model == "vit_s16+agent"
    assert record.values()["top1"] == 81.25


def test_there_is_a_golden_file_for_each_schema() -> None:
    assert {path.stem for path in GOLDEN.glob("record_v*.json")} == {f"record_v{v}" for v in range(1, SCHEMA + 1)}


def test_a_record_survives_the_round_trip_byte_for_byte() -> None:
    text = to_json(golden())
    assert from_json(text, "again") == golden()
    assert to_json(from_json(text, "again")) == text


def test_the_hash_of_a_record_outlives_fields_that_come_later() -> None:
    text = (GOLDEN / f"record_v{SCHEMA}.json").read_bytes()
    later = to_json(golden())
    assert b"power_limit" in later
    assert b"power_limit" not in text, "the file was written before there was this field"
    content = json.loads(text) | {"content_sha256": ""}
    written = json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
    assert content_sha256(text) == hashlib.sha256(written).hexdigest() != content_sha256(later)
    sealed_text = to_json(replace(golden(), content_sha256=content_sha256(later)))
    assert content_sha256(sealed_text) == content_sha256(later)


def test_the_published_schema_is_that_of_the_code_and_accepts_records() -> None:
    published = json.loads((ROOT / "docs" / "record.schema.json").read_text())
    assert published == json_schema()
    jsonschema.Draft202012Validator(published).validate(json.loads(to_json(golden())))


def test_the_published_schema_refuses_a_record_without_a_model() -> None:
    content = json.loads(to_json(golden()))
    del content["model"]
    with pytest.raises(jsonschema.ValidationError, match="model"):
        jsonschema.validate(content, json_schema())


def test_a_newer_schema_is_refused_with_the_way_out() -> None:
    newer = to_json(replace(golden(), schema=SCHEMA + 1))
    with pytest.raises(RecordError, match=r"r\.json has schema 3; this harness reads up to 2\. Update"):
        from_json(newer, "r.json")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"schema": "one"}', b'{"schema": 1}', b"\xff\xfe"])
def test_what_is_no_record_is_named(text: bytes) -> None:
    with pytest.raises(RecordError, match=r"^x\.json is not a record"):
        from_json(text, "x.json")


def test_digest_tells_setups_apart_and_is_stable() -> None:
    assert digest("m", Setup()) == digest("m", Setup())
    assert (
        len({digest("m", Setup()), digest("m", Setup(seed=1)), digest("n", Setup()), digest("m", Setup(), None)}) == 4
    )


def test_slug_keeps_names_readable_and_safe() -> None:
    assert slug("timm:vit_tiny.augreg+agent") == "timm-vit_tiny.augreg+agent"
    assert "/" not in slug("../../etc/passwd:x")


def test_a_measurement_without_a_value_needs_a_reason() -> None:
    with pytest.raises(BenchError, match="needs a reason"):
        Measurement(Metric("gmacs", "G", False), None)


WRONG: dict[str, tuple[tuple[str | int, ...], object]] = {
    "decimals below 0": (("measurements", 0, "metric", "decimals"), -1),
    "a billion decimals": (("measurements", 0, "metric", "decimals"), 10**9),
    "a metric without a name": (("measurements", 0, "metric", "name"), ""),
    "an interval the wrong way round": (("measurements", 0, "interval"), [5.0, 1.0]),
    "no value and no reason": (("measurements", 0), {"metric": {"name": "x", "unit": "", "higher_is_better": True},
                                                      "value": None}),
    "no batch": (("setup", "batch_size"), 0),
    "an image without pixels": (("setup", "preprocessing", "image_size"), [0, 224]),
    "a limit of none": (("setup", "limit"), 0),
    "no model": (("model",), ""),
    "a key that leaves the folder": (("key",), "../../x"),
    "a hash that leaves the folder": (("outcomes_sha256",), "../../x"),
    "a number without end": (("task_version",), 10**30),
    "a race of nobody": (("details", "race"), 5),
    "equal trainings without seeds": (("details",), {"equal": {"recipe": "a", "order": "b"}}),
    "a submission that is no table": (("details", "submission"), "mine"),
    "reasons that are one word": (("details", "unranked"), "why"),
    "a disturbance that is none": (("details", "disturbed"), {"a": 1}),
    "a note that is no text": (("details", "nominal"), 3.5),
    "panels without names": (("details", "panels"), [1]),
}  # fmt: skip


@pytest.mark.parametrize("read", [from_json, skim], ids=["whole", "skimmed"])
@pytest.mark.parametrize("what", WRONG)
def test_what_no_run_writes_is_refused_by_name(what: str, read: Callable[[bytes, str], Record]) -> None:
    path, value = WRONG[what]
    content = json.loads(to_json(golden()))
    part = content
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    with pytest.raises(RecordError, match=r"^r\.json is not a record .*Restore it"):
        read(json.dumps(content).encode(), "r.json")


@pytest.mark.parametrize("text", ["1e999", "-1e999", "NaN", "Infinity"])
def test_a_value_is_a_finite_number(text: str) -> None:
    content = json.loads(to_json(golden()))
    content["measurements"][0]["value"] = "HERE"
    with pytest.raises(RecordError, match=r"^r\.json is not a record"):
        from_json(json.dumps(content).replace('"HERE"', text).encode(), "r.json")


def test_details_without_end_are_refused_by_name() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    text = to_json(golden()).replace(b'"details": {', b'"details": {"deep": ' + deep + b",", 1)
    assert deep in text
    with pytest.raises(RecordError, match=r"^r\.json is not a record"):
        from_json(text, "r.json")


def test_details_of_a_task_are_its_own() -> None:
    content = json.loads(to_json(golden()))
    content["details"] = {"seeds": 5, "mine": [{"a": None}], "recipe": 3}
    assert from_json(json.dumps(content).encode(), "r.json").details == content["details"]
