"""What the database knows beyond memory, for requests."""
