"""Metadata filters: text or mapping -> small tree -> SQL expression with bound parameters."""

from indexer.filters.nodes import Filter, fields_of
from indexer.filters.parse import parse_filter
from indexer.filters.sql import CompiledFilter, Field, FieldType, compile_filter

__all__ = ["CompiledFilter", "Field", "FieldType", "Filter", "compile_filter", "fields_of", "parse_filter"]
