"""The HTTP listener: REST, websocket, server-sent events, the page, and access control."""
