"""What lies in an index directory: the database, the vector file, the commit, and one consistent view for readers."""
