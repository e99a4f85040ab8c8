"""A gateway serves the jobs of all appliances from the stream that their collectors write. It reads no database."""
