"""Metadata filters: text or mapping -> small tree -> SQL expression with bound parameters."""

from indexer.filters.nodes import Filter, fields_of
from indexer.filters.parse import Where, parse_filter
from indexer.filters.sql import CompiledFilter, Field, FieldType, compile_filter

__all__ = ["CompiledFilter", "Field", "FieldType", "Filter", "Where", "compile_filter", "fields_of", "parse_filter"]
