"""The configuration: its keys (schema), the syntax of their values (values), and where they come from (loading)."""
