"""A field of one of several kinds, with one error for all of them: a union's would name its branches."""

from __future__ import annotations

from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "object": (dict,),
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


class Either:
    """For `Annotated[Any, Either(…)]`. what: the kinds in words; schemas: one of JSON's for each, of which `type`,
    `minimum`, `maximum` and `maxItems` are enforced; a list must hold objects."""

    def __init__(self, what: str, *schemas: dict[str, Any]) -> None:
        self.what, self.schemas = what, schemas

    def check(self, value: Any) -> Any:
        if not any(_fits(value, schema) for schema in self.schemas):
            raise ValueError(f"must be {self.what}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": list(self.schemas)}


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    if type(value) not in _KINDS[schema["type"]]:
        return False
    if isinstance(value, list):
        return len(value) <= schema.get("maxItems", len(value)) and all(isinstance(item, dict) for item in value)
    return not (
        ("minimum" in schema and value < schema["minimum"]) or ("maximum" in schema and value > schema["maximum"])
    )
