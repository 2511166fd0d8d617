"""FAISS indexes over the vector file: kinds, and generations of them."""
