"""OpenAPI and AsyncAPI, generated from the types of the code."""
