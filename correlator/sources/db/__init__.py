"""A database: sessions, dialects, zones, and the queries as values."""
