"""Texts into vectors: the contract, the bulk encoder, the query encoder. Import from its modules."""
