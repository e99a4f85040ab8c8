"""What is published, as types: the only public shapes."""
